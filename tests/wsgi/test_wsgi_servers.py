"""The middleware on real servers: gunicorn, uWSGI and wsgiref, with real forks."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from handstamp.stores.install import install
from tests.examples.servers import PATIENCE, until
from tests.support.wsgi import new_user, rows
from tests.wsgi.serving import Server, gunicorn, serving, started, uwsgi, wsgiref

pytestmark = [pytest.mark.server, pytest.mark.slow]

UWSGI = pytest.mark.skipif(
    not Path(sys.executable).with_name("uwsgi").exists() and not shutil.which("uwsgi"),
    reason="uWSGI is not installed",
)
WORKERS = 4
FORKING: dict[str, tuple[Any, list[str]]] = {
    "gunicorn-sync": (gunicorn, ["--preload", "--workers", "4"]),
    "gunicorn-gthread": (gunicorn, ["--preload", "--workers", "4", "--threads", "4"]),
    "uwsgi": (uwsgi, ["--master", "--processes", "4", "--enable-threads"]),
    "uwsgi-threads": (uwsgi, ["--master", "--processes", "4", "--threads", "2"]),
}
# The master of uWSGI may not use the sessions: its own test says so.
forking = pytest.mark.parametrize(
    ("make", "options", "used"),
    [
        pytest.param(
            *how, used, id=f"{name}{used}", marks=[UWSGI] if "uwsgi" in name else []
        )
        for name, how in FORKING.items()
        for used in ("", "1")
        if not (used and "uwsgi" in name)
    ],
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "server.log"


@pytest.fixture
def dsn_with_trigger(dsn: str) -> str:
    """A database with the trigger: every worker is notified of every writer."""
    import asyncpg

    async def add() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            await install(connection, "ulid", trigger=True)
        finally:
            await connection.close()

    asyncio.run(add())
    return dsn


def last_seen(dsn: str) -> list[str]:
    """The ids of the sessions with activity in the table."""
    sql = "select id from user_sessions where last_activity_at > created_at"
    return [row["id"] for row in rows(dsn, sql)]


def everywhere(client: httpx.Client, status: int) -> set[int]:
    """The workers that answered a good many requests, all with this status."""
    answers = [client.get("/me") for _ in range(60)]
    assert {answer.status_code for answer in answers} == {status}
    return {answer.json()["pid"] for answer in answers if status == 200}


@forking
def test_c136_workers_share_nothing_of_what_the_master_had(
    make: Any, options: list[str], used: str, dsn_with_trigger: str, log: Path
) -> None:
    """Each has connections and a listener of its own; a revocation reaches all."""
    with serving(make, options, dsn_with_trigger, log, SITE_USED=used) as server:
        workers = server.workers(WORKERS)
        before = server.get("/").json()["used"] or {"backends": []}
        holders = [set(w["backends"]) for w in workers.values()] + [set(before["backends"])]
        assert sum(map(len, holders)) == len(set.union(*holders)), holders
        assert all(holders[:-1])
        alive = {
            row["pid"] for row in rows(dsn_with_trigger, "select pid from pg_stat_activity")
        }
        assert set.union(*holders) <= alive
        if used:
            until(lambda: last_seen(dsn_with_trigger) == [before["session"]], "the touch")
        with server.signed_in() as browser, server.signed_in() as other:
            assert everywhere(browser, 200) <= set(workers)
            assert other.get("/revoke").json() >= 1
            until(lambda: refused_by_all(browser), "the revocation to reach all")
            everywhere(browser, 401)
            everywhere(other, 200)
    assert "Traceback" not in server.text


def refused_by_all(client: httpx.Client) -> bool:
    return {client.get("/me").status_code for _ in range(20)} == {401}


@UWSGI
def test_uwsgis_master_that_uses_the_sessions_is_refused_with_an_explanation(
    dsn: str, log: Path
) -> None:
    """uWSGI forks without telling Python: a loop in its master is a deadlock to come."""
    options = ["--master", "--processes", "2", "--enable-threads"]
    with started(uwsgi, options, dsn, log, SITE_USED="1") as server:
        assert server.process.wait(PATIENCE) != 0
    assert "lazy-apps" in server.text


@UWSGI
def test_uwsgi_with_lazy_apps_may_use_the_sessions_at_import(dsn: str, log: Path) -> None:
    """Then each worker imports for itself, after the fork."""
    options = ["--master", "--processes", "2", "--enable-threads", "--lazy-apps"]
    used = {"SITE_USED": "1"}
    with serving(uwsgi, options, dsn, log, **used) as server, server.signed_in() as browser:
        assert browser.get("/me").status_code == 200


@UWSGI
@pytest.mark.parametrize("option", [["--master"], []])
def test_c138_uwsgi_without_threads_is_refused_with_an_explanation(
    dsn: str, log: Path, option: list[str]
) -> None:
    """At the start, with the setting that is missing."""
    with started(uwsgi, option, dsn, log) as server:
        assert server.process.wait(PATIENCE) != 0
    assert "start it with enable-threads = true" in server.text


@pytest.mark.parametrize("worker", ["gevent", "eventlet"])
def test_c138_gunicorn_with_greenlets_is_refused_with_an_explanation(
    dsn: str, log: Path, worker: str
) -> None:
    """The server ends, and its log says what to do; or it has no such worker."""
    with started(gunicorn, ["--worker-class", worker], dsn, log) as server:
        assert server.process.wait(PATIENCE) != 0
    if worker == "gevent":
        assert "ConfigError: gevent has replaced the threads" in server.text
        assert "--worker-class gthread" in server.text
    else:
        assert "eventlet" in server.text


def test_c138_gunicorn_that_patches_after_the_import_never_hangs(
    dsn: str, log: Path
) -> None:
    """With ``--preload`` the application was there first: its requests are refused."""
    options = ["--preload", "--worker-class", "gevent"]
    with serving(gunicorn, options, dsn, log) as server:
        assert server.get(f"/login?user={server.user}").status_code == 500
        assert "ConfigError: gevent has replaced the threads" in server.text


@pytest.mark.parametrize(
    ("make", "options", "by"),
    [
        (gunicorn, ["--workers", "2"], signal.SIGTERM),
        (gunicorn, ["--workers", "2"], signal.SIGQUIT),
        (gunicorn, ["--workers", "2", "--threads", "4"], signal.SIGTERM),
        (gunicorn, ["--workers", "2", "--threads", "4", "--preload"], signal.SIGINT),
        pytest.param(
            uwsgi, ["--master", "--enable-threads"], signal.SIGINT, marks=UWSGI
        ),
        pytest.param(
            uwsgi,
            ["--master", "--enable-threads", "--die-on-term"],
            signal.SIGTERM,
            marks=UWSGI,
        ),
        (wsgiref, [], signal.SIGINT),
    ],
)  # fmt: skip
def test_a_graceful_stop_writes_what_is_pending(
    make: Any, options: list[str], by: signal.Signals, dsn: str, log: Path
) -> None:
    """Activity of a moment ago is in the table when the server is gone."""
    slow = {"HANDSTAMP_FLUSH_EVERY": "14"}
    with serving(make, options, dsn, log, **slow) as server:
        with server.signed_in() as browser:
            assert browser.get("/me").status_code == 200
        assert last_seen(dsn) == []
        server.end(by)
        assert len(last_seen(dsn)) == 1, server.text


@pytest.mark.parametrize("options", [["--threads", "4"], ["--preload"]])
def test_a_reload_under_load_loses_nothing(options: list[str], dsn: str, log: Path) -> None:
    """SIGHUP replaces every worker, and every request is answered, as its user's."""
    with serving(gunicorn, ["--workers", "2", *options], dsn, log) as server:
        seen, wrong, stop = set[int](), list[str](), threading.Event()

        def ask() -> None:
            with server.signed_in() as browser:
                while not stop.is_set():
                    answer = browser.get("/me")
                    if answer.status_code == 200:
                        seen.add(answer.json()["pid"])
                    else:
                        wrong.append(answer.text)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: len(seen) == 2, "both workers")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: len(seen) >= 4 or wrong, f"the next two workers: {server.text}")
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert wrong == []


def test_c147_two_users_on_one_connection_are_never_mixed(dsn: str, log: Path) -> None:
    """A proxy sends the next user's request on the same connection."""
    # Closed after the server: gunicorn's worker takes a lock to hear of a connection that
    # closes, and again in the handler of the signal that ends it. Both at once is a hang.
    with ExitStack() as later, serving(gunicorn, ["--threads", "4"], dsn, log) as server:
        users = [server.user, new_user(dsn)]
        tokens = [server.token(user) for user in users]
        proxy = later.enter_context(server.client(keep_alive=True))
        for turn in range(40):
            sent = {"Cookie": f"session={tokens[turn % 2]}"} if turn % 3 else {}
            answer = proxy.get("/me", headers=sent)
            if sent:
                assert answer.json()["user"] == users[turn % 2]
            else:
                assert answer.status_code == 401


@pytest.mark.parametrize("make", [gunicorn, pytest.param(uwsgi, marks=UWSGI), wsgiref])
def test_a_stream_arrives_before_it_is_finished(
    make: Any, dsn: str, log: Path, tmp_path: Path
) -> None:
    """The first chunk is here while the last is not made yet."""
    options = ["--enable-threads"] if make is uwsgi else []
    with serving(make, options, dsn, log) as server, server.signed_in() as browser:
        gate = tmp_path / "gate"
        with browser.stream("GET", "/stream", params={"gate": str(gate)}) as answer:
            chunks = answer.iter_raw()
            assert next(chunks) == b"first"
            gate.touch()
            assert b"".join(chunks) == b"last"
        assert answer.headers["vary"] == "Cookie"


HOSTILE = [
    b"Cookie: session=\xff\xfe\xc0\x80",
    b"Cookie: session=" + b"A" * 6000,
    b"Cookie: session=a\r\nCookie: session=b",
    b"User-Agent: \x80\xff\x1b[31m\r\nCookie: session=x",
    b"X-\xff\xb5\xdf: 1\r\nCookie: session=x",
    b"Sec-Fetch-Site: \xff\r\nOrigin: \xff\r\nCookie: session=x",
]


@pytest.mark.parametrize("make", [gunicorn, pytest.param(uwsgi, marks=UWSGI), wsgiref])
def test_hostile_bytes_cause_no_500(make: Any, dsn: str, log: Path) -> None:
    """Whatever a client sends, a server says 4xx or the application answers."""
    options = ["--enable-threads"] if make is uwsgi else []
    with serving(make, options, dsn, log) as server:
        for lines in HOSTILE:
            for method in (b"GET", b"POST"):
                status = raw(server, method + b" /me HTTP/1.1\r\nHost: x\r\n" + lines)
                assert 400 <= status < 500, (lines, status)
        with server.signed_in() as browser:
            assert browser.get("/me").status_code == 200
        assert "Traceback" not in server.text


def raw(server: Server, head: bytes) -> int:
    """The status of an answer to these bytes; a server that hangs up refuses, too."""
    import socket

    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as wire:
        wire.sendall(head + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        with suppress(ConnectionResetError):
            return int(wire.makefile("rb").readline().split()[1])
    return 400


def test_sigkill_loses_at_most_one_flush_interval(dsn: str, log: Path) -> None:
    """Nothing can be written then; what was flushed before is there."""
    fast = {"HANDSTAMP_FLUSH_EVERY": "0.2"}
    with serving(gunicorn, [], dsn, log, **fast) as server, server.signed_in() as browser:
        pid = browser.get("/me").json()["pid"]
        until(lambda: last_seen(dsn), "a flush")
        os.kill(pid, signal.SIGKILL)
        until(lambda: alive_again(browser), "the next worker")


def alive_again(client: httpx.Client) -> bool:
    try:
        return client.get("/me").status_code == 200
    except httpx.TransportError:
        return False
