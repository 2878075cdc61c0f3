"""From a thread into the engine: one event loop in one thread of the process.

Rule 1. The engine is async only. Whoever has no event loop of their own crosses once, with
a whole call, and waits for its answer.
Rule 2. Nothing starts at import. The loop starts with the first call, in the process that
makes it, so a server may import the application and fork afterwards.
Rule 3. A forked child starts a loop of its own and never touches its parent's: it keeps
what it inherited as it is, for closing a shared socket would speak for the parent, and
waking a shared loop would wake the parent's.
Rule 4. A loop that has died is replaced by the next call, once it is really gone. Whoever
waited on it has no answer, and nothing is repeated, for it may have been done. What ends a
thread or a loop (``SystemExit``, a cancellation) never comes out in a caller's thread.
Rule 5. Before the interpreter ends, everything opened here is closed in time: pending
activity is written while threads can still be started.
Rule 6. Where threads are not threads, this refuses to start rather than hang: greenlets
that look like threads share one running loop, and uWSGI without ``enable-threads`` never
runs a second thread.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread  # noqa: F401 - its own end of the process comes after ours
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from typing import Any, ParamSpec, TypeVar

from handstamp._fork import (
    ForkAware,
    detect_fork,
    everything,
    pin,
    reset_in_forked_children,
)
from handstamp.errors import ConfigError, SessionsUnavailable

logger = logging.getLogger("handstamp")

P = ParamSpec("P")
T = TypeVar("T")

CLOSING = 6.0
"""Seconds that the end of the process may be held up."""
MOST_QUEUED = 10_000
"""Calls that wait for the loop to begin them. Beyond that they are refused: a loop that is
blocked keeps what it was given, also for those who have given up."""
REPORTED = 60.0
"""Seconds until what was not done is logged again."""
STARTING = 3.0
"""Seconds that a loop may take to start, and the one before it to end."""
_ENDED = "the thread of the event loop has ended"


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
    """The same, with :class:`SessionsUnavailable` if there is no answer in time; the
    function is then cancelled, or never begun."""
    return _wait(_begin(partial(function, *args, **kwargs)), seconds)


def soon(function: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
    """Call a plain function on the loop, and do not wait for it. Never raises."""

    async def work() -> None:
        function(*args, **kwargs)

    try:
        _begin(work)
    except (ConfigError, SessionsUnavailable) as exc:
        _process.complain(exc)


class _Loop:
    """One event loop in one thread, from its start to its end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._awaited: set[Future[Any]] = set()
        self._queued: deque[tuple[Callable[[], Awaitable[Any]], Future[Any]]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        ready: Future[None] = Future()
        self.thread = threading.Thread(
            target=self._run, args=[ready], name="handstamp", daemon=True
        )
        self.thread.start()
        try:
            ready.result(STARTING)
        finally:
            ready.cancel()

    @property
    def accepts(self) -> bool:
        """Whether work can still be begun here."""
        return self._loop is not None

    def begin(self, work: Callable[[], Awaitable[T]]) -> Future[T]:
        """Start on the loop. The answer comes in any case, whatever becomes of the loop.

        Raises :class:`SessionsUnavailable` if it takes no more work, or not now.
        """
        answer: Future[T] = Future()
        with self._lock:
            if self._loop is None:
                raise SessionsUnavailable(_ENDED)
            if len(self._queued) >= MOST_QUEUED:
                raise SessionsUnavailable("the event loop is behind")
            self._queued.append((work, answer))
            self._awaited.add(answer)
            self._loop.call_soon_threadsafe(self._start_all)
        answer.add_done_callback(self._awaited.discard)
        return answer

    def _start_all(self) -> None:
        while self._queued:
            self._start(*self._queued.popleft())

    def _start(self, work: Callable[[], Awaitable[Any]], answer: Future[Any]) -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(_settle(work, answer))

        def give_up(answer: Future[Any]) -> None:
            if answer.cancelled():
                with suppress(RuntimeError):  # the loop is gone, and the task with it
                    loop.call_soon_threadsafe(task.cancel)

        answer.add_done_callback(give_up)

    def _run(self, ready: Future[None]) -> None:
        try:
            with asyncio.Runner() as runner:
                self._run_until(runner, self._serve(ready))
                self._loop_ends()
                self._run_until(runner, _close_all())
        except BaseException as exc:
            logger.exception("no event loop", extra={"action": "loop_ended"})
            if not ready.done():
                ready.set_exception(exc)
        finally:
            self._loop_ends()
            self._dismiss()

    def _run_until(self, runner: asyncio.Runner, work: Any) -> None:
        try:
            runner.run(work)
        except BaseException:
            # SystemExit in a callback, most likely. There is no caller to tell.
            logger.exception("the event loop ended", extra={"action": "loop_ended"})

    async def _serve(self, ready: Future[None]) -> None:
        self._stop = asyncio.Event()
        if ready.set_running_or_notify_cancel():  # else it came too late for anyone
            self._loop = asyncio.get_running_loop()
            ready.set_result(None)
            await self._stop.wait()

    def _loop_ends(self) -> None:
        with self._lock:
            self._loop = None

    def _dismiss(self) -> None:
        """Nobody waits for ever: those still there learn that there is no answer."""
        for answer in list(self._awaited):
            with suppress(InvalidStateError):
                answer.set_exception(SessionsUnavailable(_ENDED))

    def end(self) -> None:
        """Close what was opened here and end the loop, within ``CLOSING`` seconds."""
        with self._lock:
            if self._loop is not None and self._stop is not None:
                self._loop.call_soon_threadsafe(self._stop.set)
        self.thread.join(CLOSING)
        if self.thread.is_alive():
            logger.warning("the event loop does not end", extra={"action": "close_failed"})


async def _settle(work: Callable[[], Awaitable[T]], answer: Future[T]) -> None:
    if answer.cancelled():
        return  # nobody waits any more, so it is better not done
    with suppress(InvalidStateError):  # whoever waited has given up meanwhile
        try:
            result = await work()
        except Exception as exc:
            answer.set_exception(exc)
        except BaseException as exc:
            # It ends this loop or a thread, not the request that happens to wait.
            answer.set_exception(SessionsUnavailable(_ENDED))
            if not isinstance(exc, (SystemExit, KeyboardInterrupt)):
                raise
            logger.exception("an exit was not taken", extra={"action": "loop_ended"})
        else:
            answer.set_result(result)


async def _close_all() -> None:
    await asyncio.gather(*map(_close, everything()))


async def _close(opened: ForkAware) -> None:
    try:
        await opened.close()
    except Exception:
        logger.warning("not closed", exc_info=True, extra={"action": "close_failed"})


class _Process:
    """What belongs to one process; another one is made in every child."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.loop: _Loop | None = None
        self.ending = False
        self._complained = float("-inf")

    def running(self) -> _Loop:
        """The loop, started if there is none."""
        loop = self.loop
        if loop is not None and loop.thread is threading.current_thread():
            raise ConfigError("this is the event loop's own thread: await it instead")
        if loop is not None and loop.accepts:
            return loop
        check_threads()
        _check_forked()
        if loop is not None:
            loop.thread.join(STARTING)  # outside of the lock: all who wait, wait at once
        with self.lock:
            return self._next(loop)

    def _next(self, before: _Loop | None) -> _Loop:
        """A new loop in place of ``before``, unless another thread was faster."""
        if self.ending:
            raise SessionsUnavailable("the process is ending")
        if self.loop is not None and self.loop is not before:
            return self.loop
        if before is not None and before.thread.is_alive():
            raise SessionsUnavailable("the event loop that died still holds on")
        try:
            self.loop = _Loop()
        except (RuntimeError, OSError, TimeoutError) as exc:
            # No thread or no file descriptor to be had: not now.
            raise SessionsUnavailable(f"no event loop: {type(exc).__name__}") from exc
        return self.loop

    def complain(self, exc: Exception) -> None:
        """Log what was not done, at most once in ``REPORTED`` seconds."""
        now = time.monotonic()
        if now >= self._complained + REPORTED:
            self._complained = now
            logger.warning("not done: %s", exc, extra={"action": "loop_ended"})

    def end(self) -> None:
        """At the end of the process: close what was opened, start nothing any more."""
        with self.lock:
            self.ending, loop = True, self.loop
        if loop is not None:
            loop.end()


_process = _Process()


def _begin(work: Callable[[], Awaitable[T]]) -> Future[T]:
    """Start on the loop. If it ended just now, on another."""
    detect_fork()
    try:
        return _process.running().begin(work)
    except SessionsUnavailable:
        return _process.running().begin(work)


def _wait(answer: Future[T], seconds: float | None) -> T:
    try:
        return answer.result(seconds)
    except TimeoutError:
        if not answer.cancel():
            return answer.result()  # its own TimeoutError, or it came at the last moment
        raise SessionsUnavailable("the event loop did not answer") from None
    except BaseException:  # a server's alarm went off in this thread
        answer.cancel()
        raise
    finally:
        del answer  # or its exception's traceback would refer to it: a cycle


def check_threads() -> None:
    """Raise :class:`ConfigError` where threads are none (rule 6)."""
    gevent = sys.modules.get("gevent.monkey")
    eventlet = sys.modules.get("eventlet.patcher")
    if gevent is not None and gevent.is_module_patched("threading"):
        raise ConfigError(_GREENLETS.format("gevent"))
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        raise ConfigError(_GREENLETS.format("eventlet"))
    uwsgi: Any = sys.modules.get("uwsgi")
    options = getattr(uwsgi, "opt", {})
    if uwsgi is not None and not {"enable-threads", "threads"} & set(map(_text, options)):
        raise ConfigError("uWSGI runs no threads: start it with enable-threads = true")


def _check_forked() -> None:
    """Raise :class:`ConfigError` in a uWSGI process that is still to be forked.

    It forks without a thought of other threads: one may hold the interpreter's lock at
    that moment, and then no worker ever gets it.
    """
    uwsgi: Any = sys.modules.get("uwsgi")
    names = ("worker_id", "mule_id", "i_am_the_spooler")
    if uwsgi is not None and not any(_ask(uwsgi, name) for name in names):
        raise ConfigError(
            "uWSGI forks after it has imported the application: ask handstamp nothing at "
            "import, or set lazy-apps = true"
        )


def _ask(uwsgi: Any, name: str) -> Any:
    """What uWSGI says; a stand-in that does not know the question is no uWSGI."""
    return getattr(uwsgi, name, lambda: True)()


_GREENLETS = (
    "{} has replaced the threads of this process, and handstamp needs a real one: serve "
    "this application with threads (gunicorn --worker-class gthread)"
)


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _end() -> None:
    _process.end()


class _Inheritance:
    """In a child nothing of the parent's is used, and nothing of it is let go."""

    def reset_after_fork(self) -> None:
        global _process
        pin(_process)
        _process = _Process()

    async def close(self) -> None:
        """There is nothing of it on the loop."""


_inheritance = _Inheritance()
reset_in_forked_children(_inheritance)
# Threads cannot be started any more when atexit runs; the private hook is earlier. Some
# servers run the atexit functions themselves, and first.
atexit.register(_end)
getattr(threading, "_register_atexit", atexit.register)(_end)
