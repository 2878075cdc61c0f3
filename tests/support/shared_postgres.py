"""One PostgreSQL server for all workers of a run.

The workers of pytest-xdist are processes of their own. The first that needs a server
starts a keeper: one more process, which runs the server, leaves its address in a file and
waits for the last worker to end. Each worker holds a shared lock for as long as it lives,
and the keeper waits for an exclusive one: the system gives up the lock of a process that
crashes, so the server ends in any case. If the keeper is killed, the server ends with it
(:mod:`handstamp.testing.postgres`).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from handstamp.testing.postgres import ephemeral

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0
"""Seconds that a worker waits for the server to start, on a machine that is busy."""


def folder_of_run() -> Path | None:
    """The folder that the workers of this run share; None if there is one process."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run is None:
        return None
    folder = Path(tempfile.gettempdir()) / f"handstamp-run-{run}"
    folder.mkdir(mode=0o700, exist_ok=True)  # there is a password in it
    return folder


@contextmanager
def shared_postgres(
    folder: Path,
    *,
    settings: Mapping[str, str],
    bin_dir: Path | None = None,
    inside: Path | None = None,
) -> Iterator[str]:
    """The address of the server that the workers with this folder share.

    The arguments are those of ``ephemeral``; the first worker's count. Raises
    ``RuntimeError`` with the keeper's log if it does not start.
    """
    place = folder / f"server{str(bin_dir or '').replace('/', '-')}"
    with ExitStack() as stack:
        _join(place, stack)
        with locked(place / "start", fcntl.LOCK_EX):
            if not (place / "address").exists():
                _start(place, settings, bin_dir, inside)
        yield (place / "address").read_text()


def _join(place: Path, stack: ExitStack) -> None:
    """Become a user of the server, for which the keeper waits."""
    while True:
        place.mkdir(parents=True, exist_ok=True)
        lock = locked(place / "users", fcntl.LOCK_SH)
        stack.enter_context(lock)
        if (place / "users").exists():
            return
        stack.close()  # a keeper without users has just removed the folder


@contextmanager
def locked(file: Path, kind: int) -> Iterator[None]:
    """Hold a lock on a file for the time of a ``with`` block."""
    with file.open("a") as handle:
        fcntl.flock(handle, kind)
        yield


def _start(
    place: Path, settings: Mapping[str, str], bin_dir: Path | None, inside: Path | None
) -> None:
    given = [f"{name}={text}" for name, text in settings.items()]
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    with (place / "log").open("wb") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", __name__, place, bin_dir or "", inside or "", *given],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C ends the workers first
        )
    deadline = time.monotonic() + PATIENCE
    while not (place / "address").exists():
        if keeper.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"no server: {(place / 'log').read_text()}")
        time.sleep(0.02)
    keeper.returncode = 0  # it outlives this process, which must not warn of that


def keep(place: Path, bin_dir: Path | None, inside: Path | None, *settings: str) -> None:
    """Run a server until its last user is gone."""
    given = dict(setting.split("=", 1) for setting in settings)
    with ephemeral(settings=given, bin_dir=bin_dir, inside=inside) as server:
        draft = place / "draft"
        draft.write_text(server.dsn())
        draft.rename(place / "address")
        with locked(place / "users", fcntl.LOCK_EX):
            shutil.rmtree(place)
    with suppress(OSError):  # another server is in use
        place.parent.rmdir()


if __name__ == "__main__":
    where, programs, inside, *rest = sys.argv[1:]
    keep(
        Path(where),
        Path(programs) if programs else None,
        Path(inside) if inside else None,
        *rest,
    )
