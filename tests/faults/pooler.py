"""A PgBouncer in transaction mode in front of a PostgreSQL, where one is installed."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

CONFIG = """\
[databases]
* = host={host} port={port} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 4
logfile = {folder}/log
pidfile = {folder}/pid
ignore_startup_parameters = extra_float_digits
"""


def program() -> str | None:
    """Where the pooler is, if it is installed."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@contextmanager
def pooled(dsn: str) -> Iterator[str]:
    """Give the address of the same database through a pooler."""
    url = urlsplit(dsn)
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        values = {
            "host": url.hostname,
            "port": url.port or 5432,
            "user": url.username,
            "password": unquote(url.password or ""),
            "own_port": port,
            "folder": folder,
        }
        config = Path(folder, "pgbouncer.ini")
        config.write_text(CONFIG.format(**values))
        process = _start(config)
        try:
            _await_port(port, process)
            yield urlunsplit(url._replace(netloc=f"{url.username}@127.0.0.1:{port}"))
        finally:
            process.terminate()
            process.wait(15)


def _start(config: Path) -> subprocess.Popen[bytes]:
    path = program()
    assert path is not None
    account = _ordinary_account(config)
    return subprocess.Popen([path, "-q", str(config)], user=account)


def _ordinary_account(config: Path) -> str | None:
    """PgBouncer refuses to run as root: then its folder belongs to another user."""
    if os.geteuid() != 0:
        return None
    account = pwd.getpwnam("nobody")
    for path in (config, config.parent):
        os.chown(path, account.pw_uid, -1)
    return account.pw_name


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError("the pooler does not accept connections")
