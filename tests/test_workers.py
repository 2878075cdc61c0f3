"""The server that the workers of a run share: started once, ended with the last of them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import asyncpg
import pytest

import run
from tests.support.shared_postgres import ROOT, folder_of_run
from tests.support.waiting import until
from tests.support.xdist_scheduler import scope_of

WORKER = """
import sys
from pathlib import Path
from tests.support.shared_postgres import shared_postgres
with shared_postgres(Path(sys.argv[1]), settings={"shared_buffers": "16MB"}) as dsn:
    print(dsn, flush=True)
    sys.stdin.read()
"""
Start = Callable[[], subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a worker, which holds on to the server until its input ends."""
    path = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-c", WORKER, str(tmp_path / "run")]
    with ExitStack() as stack:

        def start() -> subprocess.Popen[str]:
            worker = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(worker)
            stack.callback(worker.kill)
            return worker

        yield start


def read_line(worker: subprocess.Popen[str]) -> str:
    """The address that a worker was given."""
    assert worker.stdout is not None
    return worker.stdout.readline().strip()


async def answers(dsn: str) -> bool:
    """Whether there is a server."""
    try:
        connection = await asyncpg.connect(dsn)
    except (OSError, asyncpg.PostgresError):
        return False
    await connection.close()
    return True


async def ended(dsn: str, folder: Path) -> None:
    """Return when the server is gone, and what was kept about it."""
    async with asyncio.timeout(60):
        while await answers(dsn):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await until(lambda: not folder.exists())


@pytest.mark.slow
async def test_a_server_is_started_once_and_ends_with_the_last_worker(
    start: Start, tmp_path: Path
) -> None:
    """A worker that comes at the same time or later finds it; a killed one is not waited
    for."""
    workers = [start() for _ in range(3)]
    (dsn,) = {read_line(worker) for worker in workers}
    workers[0].send_signal(signal.SIGKILL)
    workers[1].communicate("")
    assert await answers(dsn)
    late = start()
    assert read_line(late) == dsn
    late.send_signal(signal.SIGKILL)
    workers[2].send_signal(signal.SIGKILL)
    await ended(dsn, tmp_path / "run")


@pytest.mark.slow
async def test_after_the_last_worker_the_next_one_starts_another_server(
    start: Start, tmp_path: Path
) -> None:
    """Also one that comes while the old one ends."""
    first = start()
    old = read_line(first)
    first.send_signal(signal.SIGKILL)
    second = start()
    dsn = read_line(second)
    assert await answers(dsn)
    second.communicate("")
    for each in (old, dsn):
        await ended(each, tmp_path / "run")


def test_one_process_has_a_server_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without workers there is nothing to share."""
    monkeypatch.delenv("PYTEST_XDIST_TESTRUNUID", raising=False)
    assert folder_of_run() is None


@pytest.mark.parametrize(
    ("nodeid", "scope"),
    [
        ("tests/core/test_ids.py::test_x[1]", "tests/core/test_ids.py"),
        (
            "tests/examples/test_example_contract.py::test_x[flask-wsgi-ulid-a]",
            "tests/examples/flask-wsgi-ulid",
        ),
        (
            "tests/examples/test_two_frameworks.py::test_x[a-asgi-ulid-then-b-asgi-ulid]",
            "tests/examples/test_two_frameworks.py",
        ),
        (
            "tests/stores/test_contract.py::test_x[system ulid]",
            "tests/stores/test_contract.py::test_x",
        ),
    ],
)
def test_tests_that_share_what_is_costly_run_in_one_worker(nodeid: str, scope: str) -> None:
    """A server of an example is started once; the contract is spread over all workers."""
    assert scope_of(nodeid) == scope


AT_ONCE = ["-n", "auto", "--dist", "loadscope"]


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ([], [*AT_ONCE, "-m", "not slow"]),
        (["--all", "-x"], [*AT_ONCE, "-x"]),
        (["-m", "browser"], [*AT_ONCE, "-m", "not slow", "-m", "browser"]),
        (["-k", "idle"], [*AT_ONCE, "-m", "not slow", "-k", "idle"]),
        (["tests/core", "-x"], ["tests/core", "-x"]),
        (["tests/test_workers.py::test_x[1]"], ["tests/test_workers.py::test_x[1]"]),
    ],
    ids=str,
)
def test_what_is_named_runs_in_one_process(arguments: list[str], given: list[str]) -> None:
    """And slow or not; the last ``-m`` is the one that counts."""
    assert run.for_pytest(arguments) == given
