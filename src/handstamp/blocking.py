"""From a thread into the engine: one event loop in one thread of the process.

Rule 1. The engine is async only. Whoever has no event loop of their own crosses once, with
a whole call, and waits for its answer.
Rule 2. Nothing starts at import. The loop starts with the first call, in the process that
makes it, so a server may import the application and fork afterwards.
Rule 3. A forked child starts a loop of its own and never touches its parent's: it keeps
what it inherited as it is, for closing a shared socket would speak for the parent, and
waking a shared loop would wake the parent's.
Rule 4. A loop that has died is replaced by the next call. Whoever waited on it has no
answer, and nothing is repeated, for it may have been done.
Rule 5. Before the interpreter ends, everything opened here is closed in time: pending
activity is written while threads can still be started.
Rule 6. Where threads are not threads, this refuses to start rather than hang: greenlets
that look like threads share one running loop, and uWSGI without ``enable-threads`` never
runs a second thread.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar, cast
from weakref import WeakSet

import anyio
from anyio.from_thread import BlockingPortal

from handstamp.errors import ConfigError, SessionsUnavailable
from handstamp.forking import pin

logger = logging.getLogger("handstamp")

P = ParamSpec("P")
T = TypeVar("T")

CLOSING = 6.0
"""Seconds that the end of the process may be held up."""
_NOT_RUNNING = "the thread of the event loop has ended"


def call(function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """What an async function of handstamp returns, for code without an event loop.

        call(sessions.revoke_user, "7", reason="left the company")

    Blocks this thread, and any event loop that runs on it. Raises what the function
    raises, :class:`SessionsUnavailable` where the loop's thread died, and
    :class:`ConfigError` where threads cannot work, or on the loop's own thread.
    """
    return within(None, function, *args, **kwargs)


def within(
    seconds: float | None,
    function: Callable[P, Awaitable[T]],
    /,
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """The same, with :class:`SessionsUnavailable` if there is no answer in time."""
    return _wait(_begin(partial(function, *args, **kwargs)), seconds)


def soon(function: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
    """Call a plain function on the loop, and do not wait for it. Never raises."""

    async def work() -> None:
        function(*args, **kwargs)

    try:
        _begin(work)
    except (ConfigError, SessionsUnavailable) as exc:
        logger.warning("not done: %s", exc, extra={"action": "loop_ended"})


class Closable(Protocol):
    """Something to close on the loop it was used on; elsewhere that does nothing."""

    async def close(self) -> None:
        """Let go of everything."""


def close_at_exit(opened: Closable) -> None:
    """Close this on the loop before the process ends, in whichever process."""
    _closables.add(opened)


class _Process:
    """What belongs to one process; another one is made in every child."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.portal: BlockingPortal | None = None
        self.thread: int | None = None

    def running(self) -> BlockingPortal:
        """The loop, started if there is none."""
        if self.thread == threading.get_ident():
            raise ConfigError("this is the event loop's own thread: await it instead")
        check_threads()
        with self.lock:
            if self.portal is None:
                self.portal = self._start()
            return self.portal

    def _start(self) -> BlockingPortal:
        ready: Future[BlockingPortal] = Future()
        thread = threading.Thread(
            target=self._run, args=[ready], name="handstamp", daemon=True
        )
        thread.start()
        return ready.result()

    def _run(self, ready: Future[BlockingPortal]) -> None:
        async def serve() -> None:
            async with BlockingPortal() as portal:
                self.thread = threading.get_ident()
                ready.set_result(portal)
                await portal.sleep_until_stopped()

        try:
            anyio.run(serve)
        except BaseException as exc:
            logger.exception("the event loop ended", extra={"action": "loop_ended"})
            if not ready.done():
                ready.set_exception(exc)
        finally:
            self.thread = None

    def close(self) -> None:
        """Close what was opened on the loop, and end it."""
        with self.lock:
            portal, self.portal = self.portal, None
        if portal is None:
            return
        for opened in list(_closables):
            try:
                _wait(portal.start_task_soon(opened.close), CLOSING)
            except Exception as exc:
                logger.warning("not closed: %s", exc, extra={"action": "close_failed"})


_closables: WeakSet[Closable] = WeakSet()
_process = _Process()


def _begin(work: Callable[[], Awaitable[T]]) -> Future[T]:
    """Start on the loop. If it ended just now, on another."""
    for _ in range(2):
        process = _process
        try:
            return cast("Future[T]", process.running().start_task_soon(work))
        except RuntimeError:
            process.portal = None
    raise SessionsUnavailable(_NOT_RUNNING)


def _wait(future: Future[T], seconds: float | None) -> T:
    try:
        return future.result(seconds)
    except CancelledError:
        raise SessionsUnavailable(_NOT_RUNNING) from None
    except TimeoutError:
        if future.done():
            raise  # the function's own
        future.cancel()
        raise SessionsUnavailable("the event loop did not answer") from None
    except BaseException:  # a server's alarm went off in this thread
        future.cancel()
        raise


def check_threads() -> None:
    """Raise :class:`ConfigError` where threads are none (rule 6)."""
    gevent = sys.modules.get("gevent.monkey")
    eventlet = sys.modules.get("eventlet.patcher")
    if (gevent is not None and gevent.is_module_patched("threading")) or (
        eventlet is not None and eventlet.is_monkey_patched("thread")
    ):
        name = "gevent" if gevent is not None else "eventlet"
        raise ConfigError(
            f"{name} has replaced the threads of this process, and handstamp needs a real "
            "one: serve this application with threads (gunicorn --worker-class gthread)"
        )
    uwsgi: Any = sys.modules.get("uwsgi")
    options = getattr(uwsgi, "opt", {})
    if uwsgi is not None and not {"enable-threads", "threads"} & set(map(_text, options)):
        raise ConfigError("uWSGI runs no threads: start it with enable-threads = true")


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _begin_anew() -> None:
    """In a child: nothing of the parent's is used, and nothing of it is let go."""
    global _process
    pin(_process)
    _process = _Process()


os.register_at_fork(after_in_child=_begin_anew)
# Threads cannot be started any more when atexit runs; the private hook is earlier.
getattr(threading, "_register_atexit", atexit.register)(lambda: _process.close())
