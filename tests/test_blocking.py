"""One loop in one thread: calls while it runs, is blocked, dies, or cannot start."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from handstamp import blocking
from handstamp.blocking import call, call_soon, call_within
from handstamp.config import Policy
from handstamp.engine.sessions import Sessions
from handstamp.errors import ConfigError, SessionsUnavailable
from handstamp.events import Event, LoggedIn, Revoked
from handstamp.wsgi import SessionAuthMiddleware
from tests.support.engines import Engine
from tests.support.wsgi import (
    asking,
    cookie,
    get,
    new_user,
    responding,
    rows,
    running,
)

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 15.0


@pytest.fixture
def nothing_logged_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process: the next thing that is not done is logged."""
    monkeypatch.setattr(blocking._process, "_logged_at", float("-inf"))


async def where() -> threading.Thread:
    """The thread this runs on."""
    return threading.current_thread()


async def never() -> None:
    """Never return."""
    await asyncio.Event().wait()


async def die() -> None:
    """End the loop, as a callback that exits does."""
    asyncio.get_running_loop().call_soon(sys.exit, 3)
    await never()


EARLIER: set[threading.Thread] = set()
"""Threads that other modules' tests have left: blocked for good, by what they tested."""


@pytest.fixture(autouse=True, scope="module")
def earlier() -> None:
    """Record the loops that exist before the first test of this module."""
    EARLIER.update(set(loops()) - {call(where)})


def loops() -> list[threading.Thread]:
    """The threads of this module's loops that live."""
    found = [thread for thread in threading.enumerate() if thread.name == "handstamp"]
    return [thread for thread in found if thread not in EARLIER]


def until(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """An event to block the loop with; it is set at the end in any case."""
    gate = threading.Event()
    yield gate
    gate.set()
    call(where)


# A call.


def test_a_call_returns_what_the_function_returns() -> None:
    """With its arguments, on the loop's thread, which is always the same one."""

    async def add(one: int, *, two: int) -> int:
        return one + two

    assert call(add, 1, two=2) == 3
    assert call(where) is call(where) is not threading.current_thread()


@pytest.mark.parametrize("error", [ValueError("x"), TimeoutError("its own"), KeyError()])
def test_a_call_raises_what_the_function_raises(error: Exception) -> None:
    """The very error, a TimeoutError of its own included."""

    async def fail() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        call_within(PATIENCE, fail)
    assert raised.value is error


def test_32_threads_start_one_loop() -> None:
    """The first thread starts it, and no thread starts a second one."""
    kill()
    barrier = threading.Barrier(32)

    def ask(_: int) -> threading.Thread:
        barrier.wait()
        return call(where)

    with ThreadPoolExecutor(32) as pool:
        assert len(set(pool.map(ask, range(32)))) == 1
    assert len(loops()) == 1


def kill() -> None:
    """End the loop."""
    thread = call(where)
    with pytest.raises(SessionsUnavailable):
        call(die)
    thread.join(PATIENCE)


def test_c140_a_call_from_inside_a_running_loop_is_no_deadlock() -> None:
    """An async view that calls something sync waits for our loop, not for its own."""

    async def view() -> threading.Thread:
        return call(where)

    assert asyncio.run(view()).name == "handstamp"


def test_c140_an_async_view_may_call_the_sync_middleware() -> None:
    """A miss, a hit and a login, all on the thread of somebody's running loop."""
    with running() as engine:
        issued = call(engine.login)
        engine.sessions._state.cache.reset_after_fork()

        async def view() -> list[bytes]:
            app = SessionAuthMiddleware(asking(), engine.sessions)
            return [get(app, HTTP_COOKIE=cookie(issued)).body for _ in range(2)]

        assert asyncio.run(view()) == [b"'alice'", b"'alice'"]


def test_a_call_on_the_loops_own_thread_is_an_error() -> None:
    """It would wait for itself."""

    async def inside() -> None:
        call(where)

    with pytest.raises(ConfigError, match="await it instead"):
        call(inside)


def test_a_call_carries_the_context_of_its_caller() -> None:
    """A trace or a request id is available in the engine."""
    variable = contextvars.ContextVar("variable", default="none")
    variable.set("the caller's")

    async def read() -> str:
        return variable.get()

    assert call(read) == "the caller's"


def test_c145_the_engines_own_work_is_of_no_request() -> None:
    """A task that outlives the first request does not have that request's context."""
    variable = contextvars.ContextVar("variable", default="none")
    variable.set("the first request's")
    values: list[str] = []
    policy = Policy(flush_every=timedelta(milliseconds=1))
    sessions = Engine(policy=policy).sessions
    sessions._listener._on_reset = lambda: values.append(variable.get())  # at its start
    flush = sessions._state.activity.flush = Flush(variable)  # type: ignore[method-assign]
    call(sessions.open)
    until(lambda: values and flush.values)
    assert {*values, flush.values[0]} == {"none"}
    call(sessions.close)


class Flush:
    """In place of a flush: records the context that it runs in."""

    def __init__(self, variable: contextvars.ContextVar[str]) -> None:
        self._variable = variable
        self.values: list[str] = []

    async def __call__(self, *_: object) -> int:
        self.values.append(self._variable.get())
        return 0


# No answer.


def unavailable_once_begun(begun: threading.Event, function: Any) -> None:
    """Call a function that does not return, until its time was enough to begin it."""
    seconds = 0.01
    while not begun.is_set():
        with pytest.raises(SessionsUnavailable, match="did not answer"):
            call_within(seconds, function)
        seconds *= 2


def test_a_call_without_a_result_is_cancelled() -> None:
    """The caller waits no longer than it says, and the function is cancelled."""
    begun, ended = threading.Event(), threading.Event()

    async def wait() -> None:
        begun.set()
        try:
            await never()
        finally:
            ended.set()

    unavailable_once_begun(begun, wait)
    assert ended.wait(PATIENCE)


def test_a_blocked_loop_is_a_503_and_hits_go_on(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A miss waits for its time budget and then has no answer; a hit does not wait."""
    monkeypatch.setattr("handstamp.wsgi.LOOP_MARGIN", 0.0)
    with running(policy=Policy(time_budget=timedelta(milliseconds=1))) as engine:
        issued, other = call(engine.login), call(engine.login, "bob")
        engine.sessions._state.cache.forget_session(other.session.id)
        app = SessionAuthMiddleware(asking(), engine.sessions)
        call_soon(gate.wait)
        answer = get(app, HTTP_COOKIE=cookie(other))
        assert (answer.status, answer.one("retry-after")) == (503, "1")
        assert get(app, HTTP_COOKIE=cookie(issued)).body == b"'alice'"
        gate.set()


def test_a_call_that_was_cancelled_before_it_started_is_not_done(
    gate: threading.Event,
) -> None:
    """A login opens no session later, when its caller has stopped waiting."""
    done: list[str] = []

    async def work() -> None:
        done.append("done")

    call_soon(gate.wait)
    with pytest.raises(SessionsUnavailable):
        call_within(0.01, work)
    gate.set()
    call(where)
    assert done == []


@pytest.mark.usefixtures("nothing_logged_yet")
def test_p2_what_waits_for_a_blocked_loop_is_bounded(
    gate: threading.Event, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that gave up and events of a flood are kept up to a bound. What comes after
    is refused at once, and is one line in the log."""
    monkeypatch.setattr(blocking, "MAX_QUEUED", 100)
    done: list[int] = []
    blocked = threading.Event()

    def block() -> None:
        blocked.set()
        gate.wait()

    async def work() -> None:
        done.append(-1)

    call_soon(block)
    assert blocked.wait(PATIENCE)
    for number in range(50):
        call_soon(done.append, number)
    for _ in range(100):
        with pytest.raises(SessionsUnavailable):
            call_within(0.0, work)
    for number in range(1000):
        call_soon(done.append, number)
    with pytest.raises(SessionsUnavailable, match="behind"):
        call(work)
    gate.set()
    assert _until_accepted(where).is_alive()
    assert done == list(range(50))
    assert caplog.text.count("not done") == 1


def _until_accepted(function: Any) -> Any:
    """What a call returns once the loop has worked off what waited."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return call(function)
        except SessionsUnavailable:
            assert time.monotonic() < end


def test_cancelling_a_call_does_not_wait_for_a_blocked_loop(gate: threading.Event) -> None:
    """The function had begun when the loop was blocked: it is cancelled later."""
    begun = threading.Event()

    async def begin_and_wait() -> None:
        begun.set()
        asyncio.get_running_loop().call_soon(gate.wait)
        await never()

    waiter = threading.Thread(
        target=unavailable_once_begun, args=(begun, begin_and_wait), daemon=True
    )
    waiter.start()
    waiter.join(PATIENCE)
    assert begun.is_set()
    assert not waiter.is_alive()


def test_a_signal_handler_of_the_server_ends_a_call() -> None:
    """A worker that exits while it waits for a call does so, and the call is cancelled."""
    ended = threading.Event()

    def main_thread_waits() -> bool:
        """Whether it is so far inside of Condition.wait() that an exception restores the
        condition's lock; earlier, CPython itself raises another error."""
        frame = sys._current_frames()[threading.main_thread().ident or 0]
        return frame.f_code.co_name == "wait" and "gotit" in frame.f_locals

    async def wait() -> None:
        until(main_thread_waits)
        os.kill(os.getpid(), signal.SIGUSR1)
        try:
            await never()
        finally:
            ended.set()

    def exit(*_: object) -> None:
        raise SystemExit(1)

    before = signal.signal(signal.SIGUSR1, exit)
    try:
        with pytest.raises(SystemExit):
            call(wait)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert ended.wait(PATIENCE)


# The loop dies.


def test_c139_a_dead_loop_is_replaced() -> None:
    """The waiting call is unavailable, and the next call has a loop again."""
    thread = call(where)
    with pytest.raises(SessionsUnavailable, match="ended"):
        call(die)
    again = call(where)
    assert again is not thread
    assert not thread.is_alive()
    assert loops() == [again]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_c139_a_system_exit_in_a_call_is_not_raised_in_the_request(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """It would end the worker that waits; the loop goes on."""
    thread = call(where)

    async def exit() -> None:
        raise error

    with pytest.raises(SessionsUnavailable):
        call(exit)
    assert call(where) is thread
    assert "the event loop ended" not in caplog.text


def test_c139_a_loop_that_cannot_clean_up_leaves_no_caller_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever fails at its end, every caller gets SessionsUnavailable."""
    call(where)

    def close(runner: asyncio.Runner) -> None:
        runner.get_loop().close()
        raise RuntimeError("not closed")

    with monkeypatch.context() as patch:
        patch.setattr(asyncio.Runner, "close", close)
        with pytest.raises(SessionsUnavailable):
            call(die)
    assert call(where).is_alive()


def test_c139_a_subscriber_that_exits_costs_one_answer(dsn: str) -> None:
    """Beside a request or within one, on PostgreSQL: the next request is served."""
    sessions = Sessions(dsn, secret="a secret of the tests, and of nothing else")

    def exit(event: Event) -> None:
        sys.exit(3)

    async def exit_later(event: Event) -> None:
        sys.exit(3)

    user = new_user(dsn)
    app = SessionAuthMiddleware(asking(), sessions)
    issued = call(sessions.create, user)
    sessions.on(LoggedIn, exit)
    with pytest.raises(SessionsUnavailable):
        call(sessions.create, user)
    assert get(app, HTTP_COOKIE=cookie(issued)).body == repr(user).encode()
    sessions.on(Revoked, exit_later)
    thread = call(where)
    call(sessions.revoke, call_id(sessions, user, issued))
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert get(app, HTTP_COOKIE=cookie(issued)).body == repr(user).encode()
    call(sessions.close)


def call_id(sessions: Any, user: str, issued: Any) -> str:
    """The id of the session that was opened although its caller got no result."""
    listed = call(sessions.list_for_user, user)
    (other,) = [one.id for one in listed if one.id != issued.session.id]
    return str(other)


def test_c139_calls_that_race_a_dying_loop_return_or_are_unavailable() -> None:
    """None hangs, none raises another error, and one loop is left."""
    failed: list[BaseException] = []
    answered: list[threading.Thread] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                answered.append(call_within(PATIENCE, where))
            except SessionsUnavailable:
                pass
            except BaseException as exc:
                failed.append(exc)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        with pytest.raises(SessionsUnavailable):
            call(die)
    stop.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert failed == []
    assert loops() == [call(where)]
    assert answered


def test_without_a_free_thread_a_call_is_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process at its limits answers 503, and recovers."""
    kill()

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        with pytest.raises(SessionsUnavailable, match="RuntimeError"):
            call(where)
    assert call(where).is_alive()


def test_without_a_file_descriptor_a_call_is_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same, where a loop cannot be made."""
    kill()

    def refused() -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "new_event_loop", refused)
        patch.setattr(asyncio.events, "new_event_loop", refused)
        with pytest.raises(SessionsUnavailable, match="OSError"):
            call(where)
    assert call(where).is_alive()


@pytest.mark.usefixtures("nothing_logged_yet")
def test_call_soon_never_raises(caplog: pytest.LogCaptureFixture) -> None:
    """The function runs on the loop; where that is not possible, a line is logged."""
    done: list[str] = []
    call_soon(done.append, "done")
    call(where)
    assert done == ["done"]

    async def inside() -> None:
        call_soon(done.append, "on its own thread")

    call(inside)
    assert "not done" in caplog.text


# Where threads are replaced.

GREENLETS = """
{patch}
from handstamp.engine.sessions import Sessions
from handstamp.stores.memory import MemoryStore
from handstamp.blocking import call
from handstamp.wsgi import SessionAuthMiddleware
sessions = Sessions(MemoryStore(), secret="x" * 32)
{late}
wrap = lambda: SessionAuthMiddleware(print, sessions)
for refused in (wrap, lambda: call(sessions.ping)):
    try:
        refused()
    except Exception as exc:
        print(type(exc).__name__, exc)
"""


@pytest.mark.parametrize("early", [True, False])
def test_c138_gevent_is_refused_with_an_explanation(early: bool) -> None:
    """Patched before our import or after it: at the start, and never a hang."""
    patch = "from gevent import monkey; monkey.patch_all()"
    code = GREENLETS.format(patch=patch if early else "", late="" if early else patch)
    ran = python(code)
    lines = ran.stdout.splitlines()
    assert len(lines) == 2, ran.stderr
    assert all(line.startswith("ConfigError gevent has replaced") for line in lines)


def test_c138_eventlet_is_refused_with_an_explanation() -> None:
    """The same for eventlet, as long as it can still be imported."""
    patch = "import eventlet; eventlet.monkey_patch()"
    if python(patch, "-W", "ignore").returncode:
        pytest.skip("eventlet cannot be imported on this Python")
    ran = python(GREENLETS.format(patch=patch, late=""), "-W", "ignore")
    lines = ran.stdout.splitlines()
    assert len(lines) == 2, ran.stderr
    assert all(line.startswith("ConfigError eventlet has replaced") for line in lines)


@pytest.mark.parametrize("loaded", ["gevent.monkey", "eventlet.patcher"])
def test_greenlets_that_patch_nothing_are_accepted(
    monkeypatch: pytest.MonkeyPatch, loaded: str
) -> None:
    """gevent may be installed in an application that is served with threads."""
    module: Any = ModuleType(loaded)
    module.is_module_patched = module.is_monkey_patched = lambda name: False
    monkeypatch.setitem(sys.modules, loaded, module)
    blocking.check_threads()


@pytest.mark.parametrize(
    ("options", "refused"),
    [({}, True), ({b"enable-threads": True}, False), ({"threads": b"4"}, False)],
)
def test_uwsgi_needs_threads(
    monkeypatch: pytest.MonkeyPatch, options: dict[Any, Any], refused: bool
) -> None:
    """Without them the loop's thread would never run."""
    module: Any = ModuleType("uwsgi")
    module.opt = options
    monkeypatch.setitem(sys.modules, "uwsgi", module)
    if not refused:
        blocking.check_threads()
        return
    with pytest.raises(ConfigError, match="enable-threads"):
        SessionAuthMiddleware(responding(), Engine().sessions)


# The beginning and the end of a process.


def python(code: str, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a script, and see what it prints."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_nothing_starts_at_import() -> None:
    """No thread and no loop, whatever is made, until something is asked."""
    code = """
import threading, handstamp.wsgi as w, handstamp.blocking
from handstamp import Sessions
app = w.SessionAuthMiddleware(print, Sessions("postgresql://nowhere/x", secret="x" * 32))
print(threading.active_count(), handstamp.blocking._process.loop)
"""
    assert python(code).stdout == "1 None\n"


SEEN = "select id from user_sessions where last_activity_at > created_at"
SCRIPT = """
import asyncio, os, sys
from handstamp import Sessions
from handstamp.blocking import call
from handstamp.wsgi import SessionAuthMiddleware
from tests.support.wsgi import asking, cookie, get
sessions = Sessions(os.environ["DSN"], secret="x" * 32)
app = SessionAuthMiddleware(asking(), sessions)
issued = call(sessions.create, os.environ["USER_ID"])
assert get(app, HTTP_COOKIE=cookie(issued)).body != b"None"
assert sessions.stats().pending_touches == 1
"""


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "del app, sessions"])
def test_the_end_of_a_process_is_silent_and_writes_what_is_pending(
    dsn: str, end: str
) -> None:
    """No warning in development mode, and the activity is in the table."""
    ran = python(SCRIPT + end, "-X", "dev", "-W", "error", DSN=dsn, USER_ID=new_user(dsn))
    assert (ran.stdout, ran.stderr, ran.returncode) == ("", "", 0)
    assert len(rows(dsn, SEEN)) == 1


def test_a_process_that_fails_writes_what_is_pending(dsn: str) -> None:
    """An uncaught exception is an end like any other."""
    ran = python(SCRIPT + "1 / 0", DSN=dsn, USER_ID=new_user(dsn))
    assert ran.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert len(rows(dsn, SEEN)) == 1


def test_a_process_that_only_calls_ends_silently(dsn: str) -> None:
    """A management command without a middleware leaves nothing to complain about."""
    code = """
import os
from handstamp import Sessions
from handstamp.blocking import call
sessions = Sessions(os.environ["DSN"], secret="x" * 32)
print(call(sessions.revoke_user, os.environ["USER_ID"]))
"""
    ran = python(code, "-X", "dev", "-W", "error", DSN=dsn, USER_ID=new_user(dsn))
    assert (ran.stdout, ran.stderr, ran.returncode) == ("0\n", "", 0)


def test_a_blocked_loop_delays_the_end_of_the_process_by_the_close_timeout() -> None:
    """The process ends, and the log has the reason for the delay."""
    code = """
import threading, handstamp.blocking as b
b.CLOSE_TIMEOUT = 0.2
b.call_soon(threading.Event().wait)
"""
    ran = python(code)
    assert ran.returncode == 0
    assert "does not end" in ran.stderr


def test_at_the_end_no_loop_is_started_any_more() -> None:
    """A thread that outlives the others gets SessionsUnavailable, and starts no loop."""
    code = """
import threading, handstamp.blocking as b
async def nothing(): pass
b.call(nothing)
def late():
    threading.main_thread().join()
    b._process.loop.thread.join()
    try:
        b.call(nothing)
    except b.SessionsUnavailable as exc:
        print(exc)
threading.Thread(target=late).start()
"""
    ran = python(code)
    assert "the process is ending" in ran.stdout, ran.stderr
    assert ran.stderr == ""
