"""From a thread into the engine: one event loop, in one thread of the process.

Rule 1. The engine is async only. Code without an event loop submits one whole call to this
one, and waits for its result.
Rule 2. Nothing starts at import. The loop starts with the first call, in the process that
makes the call, so a server may import the application first and fork afterwards.
Rule 3. A forked child starts a loop of its own. It leaves its parent's loop alone: to close
a shared socket is to close it for the parent, and to wake a shared loop is to wake the
parent.
Rule 4. If the loop has died, the next call starts another one, after the old thread has
ended. A call that waited for the dead loop raises :class:`SessionsUnavailable`. It is not
repeated, because it may have been done. What ends a thread or a loop (``SystemExit``, a
cancellation) is never raised in the caller's thread.
Rule 5. Before the interpreter ends, everything that was opened here is closed while threads
can still be started: pending activity is written.
Rule 6. Where threads are replaced, this module raises :class:`ConfigError` and does not
hang: greenlets in place of threads share one running loop, and uWSGI without
``enable-threads`` never runs a second thread.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread  # noqa: F401 - its own function at exit must run after ours
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
    fork_aware_objects,
    pin,
    reset_in_forked_children,
)
from handstamp.errors import ConfigError, SessionsUnavailable

logger = logging.getLogger("handstamp")

P = ParamSpec("P")
T = TypeVar("T")

CLOSE_TIMEOUT = 6.0
"""Seconds that the end of the process waits for the loop."""
START_TIMEOUT = 3.0
"""Seconds that a loop may take to start, and the one before it to end."""
MAX_QUEUED = 10_000
"""Calls that wait for the loop. More are refused: a blocked loop keeps every call that it
was given, also those whose callers do not wait any more."""
LOG_INTERVAL = 60.0
"""Seconds between two log lines about calls of :func:`call_soon` that failed."""
_ENDED = "the thread of the event loop has ended"
_GREENLETS = (
    "{} has replaced the threads of this process, and handstamp needs a real one: serve "
    "this application with threads (gunicorn --worker-class gthread)"
)


def call(function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call an async function of handstamp from code without an event loop.

        call(sessions.revoke_user, "7", reason="left the company")

    Blocks this thread, and an event loop that runs on it. Returns what the function returns
    and raises what it raises; also :class:`SessionsUnavailable` if the thread of the loop
    ended, and :class:`ConfigError` where threads cannot work, or in the loop's own thread.
    """
    return call_within(None, function, *args, **kwargs)


def call_within(
    seconds: float | None,
    function: Callable[P, Awaitable[T]],
    /,
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """The same as :func:`call`, but wait at most ``seconds``.

    Raises :class:`SessionsUnavailable` then. The function is cancelled, or does not start.
    """
    result = _submit(partial(function, *args, **kwargs))
    try:
        return result.result(seconds)
    except TimeoutError:
        if not result.cancel():
            return (
                result.result()
            )  # it came in the last moment, or is a TimeoutError itself
        raise SessionsUnavailable("the event loop did not answer") from None
    except BaseException:  # such as SystemExit, from a signal handler of the server
        result.cancel()
        raise
    finally:
        del result  # else the traceback of its exception would refer to it: a cycle


def call_soon(function: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
    """Call a plain function on the loop, and do not wait for it. Never raises; a failure is
    logged."""

    async def work() -> None:
        function(*args, **kwargs)

    try:
        _submit(work)
    except (ConfigError, SessionsUnavailable) as exc:
        _process.log_failure(exc)


class _LoopThread:
    """One event loop in one thread, from its start to its end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unfinished: set[Future[Any]] = set()
        self._queued: deque[tuple[Callable[[], Awaitable[Any]], Future[Any]]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        ready: Future[None] = Future()
        self.thread = threading.Thread(
            target=self._run, args=[ready], name="handstamp", daemon=True
        )
        self.thread.start()
        try:
            ready.result(START_TIMEOUT)
        finally:
            ready.cancel()

    @property
    def is_open(self) -> bool:
        """Whether the loop takes calls."""
        return self._loop is not None

    def submit(self, work: Callable[[], Awaitable[T]]) -> Future[T]:
        """Start ``work`` on the loop. The future gets a result or an exception in any case,
        also if the loop dies.

        Raises :class:`SessionsUnavailable` if the loop takes no call, or not now.
        """
        result: Future[T] = Future()
        with self._lock:
            if self._loop is None:
                raise SessionsUnavailable(_ENDED)
            if len(self._queued) >= MAX_QUEUED:
                raise SessionsUnavailable("the event loop is behind")
            self._queued.append((work, result))
            self._unfinished.add(result)
            self._loop.call_soon_threadsafe(self._start_queued)
        result.add_done_callback(self._unfinished.discard)
        return result

    def _start_queued(self) -> None:
        while self._queued:
            self._start(*self._queued.popleft())

    def _start(self, work: Callable[[], Awaitable[Any]], result: Future[Any]) -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(_complete(result, work))

        def cancel_task(result: Future[Any]) -> None:
            if result.cancelled():
                with suppress(RuntimeError):  # the loop is closed, and the task gone
                    loop.call_soon_threadsafe(task.cancel)

        result.add_done_callback(cancel_task)

    def _run(self, ready: Future[None]) -> None:
        """The function of the thread."""
        try:
            with asyncio.Runner() as runner:
                self._run_until(runner, self._serve(ready))
                self._take_no_more()
                self._run_until(runner, _close_all())
        except BaseException as exc:
            logger.exception("no event loop", extra={"action": "loop_ended"})
            if not ready.done():
                ready.set_exception(exc)
        finally:
            self._take_no_more()
            for result in list(self._unfinished):  # no caller waits for ever (rule 4)
                with suppress(InvalidStateError):
                    result.set_exception(SessionsUnavailable(_ENDED))

    def _run_until(self, runner: asyncio.Runner, work: Any) -> None:
        try:
            runner.run(work)
        except BaseException:
            # Most likely SystemExit in a callback. No caller can receive it.
            logger.exception("the event loop ended", extra={"action": "loop_ended"})

    async def _serve(self, ready: Future[None]) -> None:
        self._stop = asyncio.Event()
        if (
            ready.set_running_or_notify_cancel()
        ):  # else it started too late: no caller waits
            self._loop = asyncio.get_running_loop()
            ready.set_result(None)
            await self._stop.wait()

    def _take_no_more(self) -> None:
        with self._lock:
            self._loop = None

    def end(self) -> None:
        """Close what was opened here and end the loop, within ``CLOSE_TIMEOUT``."""
        with self._lock:
            if self._loop is not None and self._stop is not None:
                self._loop.call_soon_threadsafe(self._stop.set)
        self.thread.join(CLOSE_TIMEOUT)
        if self.thread.is_alive():
            logger.warning("the event loop does not end", extra={"action": "close_failed"})


async def _complete(result: Future[T], work: Callable[[], Awaitable[T]]) -> None:
    """Run ``work``, and put what it returns or raises into ``result``."""
    if result.cancelled():
        return  # the caller does not wait any more, so the work is not started
    with suppress(InvalidStateError):  # the caller has stopped waiting meanwhile
        try:
            returned = await work()
        except Exception as exc:
            result.set_exception(exc)
        except BaseException as exc:
            # It ends this loop or a thread, not the request that happens to wait.
            result.set_exception(SessionsUnavailable(_ENDED))
            if not isinstance(exc, (SystemExit, KeyboardInterrupt)):
                raise
            logger.exception("a call tried to exit", extra={"action": "loop_ended"})
        else:
            result.set_result(returned)


async def _close_all() -> None:
    async def close(opened: ForkAware) -> None:
        try:
            await opened.close()
        except Exception:
            logger.warning("not closed", exc_info=True, extra={"action": "close_failed"})

    await asyncio.gather(*map(close, fork_aware_objects()))


class _Process:
    """The state of this module in one process; a forked child makes another one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.loop: _LoopThread | None = None
        self.ending = False
        self._logged_at = float("-inf")

    def running(self) -> _LoopThread:
        """Return the loop, and start it if there is none."""
        loop = self.loop
        if loop is not None and loop.thread is threading.current_thread():
            raise ConfigError("this is the event loop's own thread: await it instead")
        if loop is not None and loop.is_open:
            return loop
        check_threads()
        _check_uwsgi_has_forked()
        if loop is not None:
            loop.thread.join(START_TIMEOUT)  # without the lock: all threads wait together
        with self.lock:
            return self._replace(loop)

    def _replace(self, before: _LoopThread | None) -> _LoopThread:
        """Return a loop in place of ``before``, unless another thread has made one."""
        if self.ending:
            raise SessionsUnavailable("the process is ending")
        if self.loop is not None and self.loop is not before:
            return self.loop
        if before is not None and before.thread.is_alive():
            raise SessionsUnavailable("the thread of the event loop that died still runs")
        try:
            self.loop = _LoopThread()
        except (RuntimeError, OSError, TimeoutError) as exc:
            # There is no thread or no file descriptor left now; there may be one later.
            raise SessionsUnavailable(f"no event loop: {type(exc).__name__}") from exc
        return self.loop

    def log_failure(self, exc: Exception) -> None:
        """Log a call that was not done, at most once in ``LOG_INTERVAL`` seconds."""
        now = time.monotonic()
        if now >= self._logged_at + LOG_INTERVAL:
            self._logged_at = now
            logger.warning("not done: %s", exc, extra={"action": "loop_ended"})

    def end(self) -> None:
        """At the end of the process: close what was opened, and start no other loop."""
        with self.lock:
            self.ending, loop = True, self.loop
        if loop is not None:
            loop.end()


_process = _Process()


def _submit(work: Callable[[], Awaitable[T]]) -> Future[T]:
    """Start ``work`` on the loop; on another one if that loop ended just now."""
    detect_fork()
    try:
        return _process.running().submit(work)
    except SessionsUnavailable:
        return _process.running().submit(work)


def check_threads() -> None:
    """Raise :class:`ConfigError` where threads do not run (rule 6)."""
    gevent = sys.modules.get("gevent.monkey")
    eventlet = sys.modules.get("eventlet.patcher")
    if gevent is not None and gevent.is_module_patched("threading"):
        raise ConfigError(_GREENLETS.format("gevent"))
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        raise ConfigError(_GREENLETS.format("eventlet"))
    uwsgi: Any = sys.modules.get("uwsgi")
    options = {
        name.decode() if isinstance(name, bytes) else str(name)
        for name in getattr(uwsgi, "opt", {})
    }
    if uwsgi is not None and not {"enable-threads", "threads"} & options:
        raise ConfigError("uWSGI runs no threads: start it with enable-threads = true")


def _check_uwsgi_has_forked() -> None:
    """Raise :class:`ConfigError` in the uWSGI process that forks the workers.

    uWSGI forks without regard to other threads: one of them may hold the interpreter's lock
    at that moment, and then no worker ever gets it.
    """
    uwsgi: Any = sys.modules.get("uwsgi")
    if uwsgi is None:
        return
    # A module in place of uWSGI may lack these functions; it does not fork.
    names = ("worker_id", "mule_id", "i_am_the_spooler")
    if not any(getattr(uwsgi, name, lambda: True)() for name in names):
        raise ConfigError(
            "uWSGI forks after it has imported the application: ask handstamp nothing at "
            "import, or set lazy-apps = true"
        )


def _end() -> None:
    _process.end()


class _ForkHook:
    """Gives a forked child a :class:`_Process` of its own (rule 3)."""

    def reset_after_fork(self) -> None:
        global _process
        pin(_process)
        _process = _Process()

    async def close(self) -> None:
        """Nothing of it is on the loop."""


_fork_hook = _ForkHook()
reset_in_forked_children(_fork_hook)
# When the functions of atexit run, threads cannot be started any more; the private hook of
# threading runs earlier. Some servers run the functions of atexit themselves, and first.
atexit.register(_end)
getattr(threading, "_register_atexit", atexit.register)(_end)
