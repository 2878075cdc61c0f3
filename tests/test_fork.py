"""Forks: a child resets its objects, and does nothing to its parent's connections.

Real children of this very process, on PostgreSQL. C-136 and C-137.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from handstamp import _fork as forking
from handstamp.blocking import call
from handstamp.config import Cookies
from handstamp.engine.sessions import Sessions
from handstamp.stores.install import install
from handstamp.stores.notify import PostgresListenConnection
from handstamp.wsgi import SessionAuthMiddleware
from tests.support.engines import Engine
from tests.support.wsgi import asking, cookie, environ, get, new_user, rows, serve

pytestmark = pytest.mark.multiprocess

PATIENCE = 30.0
SECRET = "a secret of the tests, and of nothing else"


@pytest.fixture
def sessions(dsn: str) -> Iterator[Sessions]:
    """Open on this process's loop, with the trigger, and listening."""

    async def add() -> None:
        import asyncpg

        connection = await asyncpg.connect(dsn)
        try:
            await install(connection, "ulid", trigger=True)
        finally:
            await connection.close()

    asyncio.run(add())
    sessions = Sessions(dsn, secret=SECRET)
    call(sessions.open)
    until(lambda: sessions.stats().listener == "listening")
    yield sessions
    call(sessions.close)


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


class Child:
    """A forked process that runs ``work`` and says what it returned.

    As in production, a warning about an unclosed connection is no error there: as one it
    would stop the driver from closing what the child lets go of.
    """

    def __init__(self, work: Callable[[], Any], *, finalize: bool = False) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            self._fork(work, finalize)

    def _fork(self, work: Callable[[], Any], finalize: bool) -> None:
        self._ours, theirs = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(theirs)
            return
        # Where it hangs is what the parent reads in place of an answer.
        faulthandler.dump_traceback_later(PATIENCE, file=theirs, exit=True)
        try:
            os.write(theirs, json.dumps({"returned": work()}).encode())
        except BaseException:
            os.write(theirs, json.dumps({"raised": traceback.format_exc()}).encode())
        if finalize:
            end_like_multiprocessing()
        os._exit(0)

    def result(self) -> Any:
        """What it said, once it has ended."""
        with os.fdopen(self._ours, "rb") as pipe:
            killer = threading.Timer(2 * PATIENCE, os.kill, [self.pid, signal.SIGKILL])
            killer.start()
            said = pipe.read()
            os.waitpid(self.pid, 0)
            killer.cancel()
        assert said.startswith(b"{"), f"the child hung, or died: {said.decode()}"
        answer = json.loads(said)
        assert "returned" in answer, answer.get("raised")
        return answer["returned"]


def end_like_multiprocessing() -> None:
    """What the end of a child of multiprocessing runs, before it exits at once."""
    threading._shutdown()  # type: ignore[attr-defined]


def held(sessions: Sessions) -> list[int]:
    """The server's processes behind the connections that this process uses."""

    async def find() -> list[int]:
        await sessions.ping()
        database: Any = sessions.store._database  # type: ignore[attr-defined]
        pool = [*database._reads._all, *database._writes._all]
        links = [
            o._connection for o in gc.get_objects() if type(o) is PostgresListenConnection
        ]
        mine = [c for c in (*pool, *links) if c._loop is sessions._loop]
        return [c.get_server_pid() for c in mine if not c.is_closed()]

    return call(find)


def test_c136_a_child_shares_no_loop_and_no_connection(
    dsn: str, sessions: Sessions
) -> None:
    """Its own thread and backends; the parent's are all there afterwards, and hear."""
    user = new_user(dsn)
    issued = call(sessions.create, user)
    app = SessionAuthMiddleware(asking(), sessions)
    assert get(app, HTTP_COOKIE=cookie(issued)).body == repr(user).encode()
    before = held(sessions)

    def work() -> Any:
        answer = serve(app, environ(HTTP_COOKIE=cookie(issued)))
        until(lambda: sessions.stats().listener == "listening")
        loops = [t.name for t in threading.enumerate()].count("handstamp")
        return [answer.body.decode(), held(sessions), loops]

    body, theirs, loops = Child(work, finalize=True).result()
    assert (body, loops) == (repr(user), 1)
    assert theirs
    assert not set(before) & set(theirs)
    assert set(held(sessions)) >= set(before)
    # Another process revokes: the parent receives that on its old connection.
    assert sessions.stats().listener == "listening"
    rows(dsn, "update user_sessions set is_active = false where id = $1", issued.session.id)
    until(lambda: get(app, HTTP_COOKIE=cookie(issued)).body == b"None")
    assert set(held(sessions)) >= set(before)


def test_c136_a_child_that_frees_everything_does_not_disturb_its_parent(
    dsn: str, sessions: Sessions
) -> None:
    """It collects garbage, closes what it has and ends as interpreters end."""
    before = held(sessions)

    def work() -> int:
        gc.collect()
        call(sessions.ping)
        call(sessions.close)
        gc.collect()
        return 1

    for _ in range(3):
        assert Child(work, finalize=True).result() == 1
    assert held(sessions) == before
    bus = sessions._listener.proven_until
    until(lambda: sessions._listener.proven_until > bus)  # the next heartbeat gets through


def test_c136_pending_touches_are_the_parents_and_written_once(
    dsn: str, sessions: Sessions
) -> None:
    """The child has none of them, and what it notes itself is its own."""
    user = new_user(dsn)
    mine, theirs = call(sessions.create, user), call(sessions.create, user)
    app = SessionAuthMiddleware(asking(), sessions)
    get(app, HTTP_COOKIE=cookie(mine))
    assert sessions.stats().pending_touches == 1

    def work() -> list[int]:
        pending = [sessions.stats().pending_touches]
        serve(app, environ(HTTP_COOKIE=cookie(theirs)))
        pending.append(sessions.stats().pending_touches)
        call(sessions.flush)
        return [*pending, sessions.stats().written_touches]

    assert Child(work).result() == [0, 1, 1]
    seen = "select id from user_sessions where last_activity_at > created_at"
    assert [row["id"] for row in rows(dsn, seen)] == [theirs.session.id]
    call(sessions.flush)
    assert len(rows(dsn, seen)) == 2


def test_a_childs_graceful_end_writes_its_activity(dsn: str, sessions: Sessions) -> None:
    """A worker of multiprocessing that ends by itself loses nothing."""
    issued = call(sessions.create, new_user(dsn))
    app = SessionAuthMiddleware(asking(), sessions)
    sent = {"HTTP_COOKIE": cookie(issued)}

    def work() -> int:
        return serve(app, environ(**sent)).status

    assert Child(work, finalize=True).result() == 200
    seen = "select id from user_sessions where last_activity_at > created_at"
    assert len(rows(dsn, seen)) == 1


def test_c136_a_child_reads_again_what_its_parent_had_cached(
    dsn: str, sessions: Sessions
) -> None:
    """It listens to nothing yet, so it does not trust its parent's cache."""
    issued = call(sessions.create, new_user(dsn))
    app = SessionAuthMiddleware(asking(), sessions)
    until(lambda: get(app, HTTP_COOKIE=cookie(issued)).body != b"None")

    def work() -> list[Any]:
        assert not sessions.stats().cached
        rows(dsn, "update user_sessions set is_active = false")
        return [serve(app, environ(HTTP_COOKIE=cookie(issued))).body.decode()]

    assert Child(work).result() == ["None"]


LOCKS = {
    "cache": lambda s: s._state.cache._lock,
    "activity": lambda s: s._state.activity._lock,
    "the negative cache": lambda s: s._state.negative_cache._lock,
    "the process": lambda s: __import__("handstamp.blocking").blocking._process.lock,
    "the loop": lambda s: __import__("handstamp.blocking").blocking._process.loop._lock,
    "forking": lambda s: forking._lock,
}


class SlowEnviron(dict[str, Any]):
    """What a server gives for a request; whoever reads its headers waits."""

    def __init__(self, environ: dict[str, Any]) -> None:
        super().__init__(environ)
        self.reading, self.go_on = threading.Event(), threading.Event()

    def copy(self) -> SlowEnviron:
        return self

    def items(self) -> Any:
        self.reading.set()
        self.go_on.wait(PATIENCE)
        return super().items()


def test_a_fork_while_another_thread_reads_its_headers_hangs_no_child(
    dsn: str, sessions: Sessions
) -> None:
    """Reading the headers of a request takes no lock that a child would wait for.

    In Python 3.11 ``functools.cached_property`` has one for all instances of a class.
    """
    issued = call(sessions.create, new_user(dsn))
    app = SessionAuthMiddleware(asking(), sessions)
    slow = SlowEnviron(environ(HTTP_COOKIE=cookie(issued)))
    reader = threading.Thread(target=serve, args=[app, slow])
    reader.start()
    assert slow.reading.wait(PATIENCE)
    child = Child(lambda: serve(app, environ(HTTP_COOKIE=cookie(issued))).body.decode())
    slow.go_on.set()
    reader.join()
    assert child.result() == repr(issued.session.user_id)


@pytest.mark.parametrize("lock", LOCKS.values(), ids=LOCKS)
def test_c137_a_fork_while_another_thread_holds_a_lock(
    dsn: str, sessions: Sessions, lock: Callable[[Any], Any]
) -> None:
    """The child has locks of its own, and waits for no thread of its parent."""
    issued = call(sessions.create, new_user(dsn))
    app = SessionAuthMiddleware(asking(), sessions)
    taken, free = threading.Event(), threading.Event()

    def hold() -> None:
        with lock(sessions):
            taken.set()
            free.wait(PATIENCE)

    def work() -> list[str]:
        first = serve(app, environ(HTTP_COOKIE=cookie(issued)))
        forged = cookie(session=issued.session_token[:-1] + "A")
        call(sessions.revoke, issued.session.id)
        last = serve(app, environ(HTTP_COOKIE=cookie(issued)))
        serve(app, environ(HTTP_COOKIE=forged))
        return [first.body.decode(), last.body.decode()]

    holder = threading.Thread(target=hold)
    holder.start()
    assert taken.wait(PATIENCE)
    child = Child(work)
    free.set()
    holder.join()
    assert child.result() == [repr(issued.session.user_id), "None"]


def test_c136_many_children_at_once_while_the_parent_serves(
    dsn: str, sessions: Sessions
) -> None:
    """Forked in the middle of requests: every child answers, and so does the parent."""
    user = new_user(dsn)
    issued = [call(sessions.create, user) for _ in range(8)]
    app = SessionAuthMiddleware(asking(), sessions)
    stop, wrong = threading.Event(), list[Any]()

    def serve_on(number: int) -> None:
        while not stop.is_set():
            sent = environ(HTTP_COOKIE=cookie(issued[number]))
            body = serve(app, sent).body
            sessions._state.cache.forget_session(issued[number].session.id)
            if body != repr(user).encode():
                wrong.append(body)

    threads = [threading.Thread(target=serve_on, args=[n]) for n in range(4)]
    for thread in threads:
        thread.start()

    def work() -> list[str]:
        answers = [serve(app, environ(HTTP_COOKIE=cookie(one))) for one in issued]
        return sorted({answer.body.decode() for answer in answers})

    children = [Child(work, finalize=True) for _ in range(6)]
    results = [child.result() for child in children]
    stop.set()
    for thread in threads:
        thread.join()
    assert results == [[repr(user)]] * 6
    assert wrong == []


def test_a_fork_without_pythons_hook_is_detected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As under uWSGI: the next crossing looks at the process id and starts over."""
    engine = Engine()
    issued = call(engine.login)
    thread = call(_thread)
    monkeypatch.setattr(forking, "_pid", -1)
    again = call(_thread)
    assert again is not thread
    assert forking._pid == os.getpid()
    assert engine.sessions.stats().cached == 0
    assert call(engine.login).session.id != issued.session.id
    call(engine.sessions.close)


def test_under_uwsgi_a_hit_detects_a_fork_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The parent's cache is not trusted for a single request."""
    engine = Engine()
    issued = call(engine.login)
    uwsgi: Any = type(sys)("uwsgi")
    uwsgi.opt = {b"enable-threads": True}
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi)
    app = SessionAuthMiddleware(asking(), engine.sessions, cookies=Cookies.insecure())
    sent = {"HTTP_COOKIE": f"session={issued.session_token}"}
    assert get(app, **sent).body == b"'alice'"
    del engine.store.rows[issued.session.id]
    monkeypatch.setattr(forking, "_pid", -1)
    assert get(app, **sent).body == b"None"
    call(engine.sessions.close)


async def _thread() -> threading.Thread:
    return threading.current_thread()


def test_an_object_that_cannot_be_reset_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its failure is logged, and the other objects are reset."""

    class Broken:
        def reset_after_fork(self) -> None:
            raise RuntimeError("broken")

        async def close(self) -> None: ...

    reset: list[str] = []

    class Sound(Broken):
        def reset_after_fork(self) -> None:
            reset.append("reset")

    things = [Broken(), Sound(), Broken()]
    monkeypatch.setattr(forking, "_objects", things)
    forking._reset_all()
    assert reset == ["reset"]
    assert caplog.text.count("not reset after a fork") == 2
