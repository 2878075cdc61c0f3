"""From a test into the engine, on whichever event loop the engine lives.

Rule 1. An engine that is open is asked on its own loop, wherever that runs: a test client's
portal, the loop of a WSGI process, the test's own.
Rule 2. An engine that is open nowhere is opened on a loop made for this one call and closed
again, so that the client's first request finds it as it was.

Several calls released at one moment, for what only shows when they meet.

Each call waits at a barrier until all of them are there. What a call returned or raised
comes back in the order of their numbers, so nothing is lost and nothing needs a lock.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from inspect import signature
from typing import Any, ParamSpec, TypeVar, cast

from anyio.from_thread import start_blocking_portal

from handstamp.engine.sessions import Sessions
from handstamp.errors import ConfigError

P = ParamSpec("P")
T = TypeVar("T")

_opening = threading.Lock()


def call(function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """What a method of a :class:`Sessions` returns, for a test without await.

        call(sessions.revoke_user, "alice", reason="left the company")

    Works whatever the engine runs on, which :func:`handstamp.blocking.call` does not.
    Raises what the method raises, and :class:`ConfigError` on the engine's own loop.
    """
    return cross(_owner(function), partial(function, *args, **kwargs))


async def acall(
    function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
) -> T:
    """The same for a test with await, where the engine may run on another loop.

    An engine that is open nowhere is opened on this loop and stays open, as it would by a
    first request here. Raises what the method raises.
    """
    return await across(_owner(function), partial(function, *args, **kwargs))


def cross(sessions: Sessions, work: Callable[[], Awaitable[T]]) -> T:
    """Any work on the loop of ``sessions``."""
    with _opening:
        loop = _loop_of(sessions)
        if loop is None:
            return _apart(sessions, work)
    return asyncio.run_coroutine_threadsafe(_whole(work), loop).result()


async def across(sessions: Sessions, work: Callable[[], Awaitable[T]]) -> T:
    """The same with await."""
    loop = _running(sessions)
    if loop is None or loop is asyncio.get_running_loop():
        await sessions.open()
        return await work()
    crossing = asyncio.run_coroutine_threadsafe(_whole(work), loop)
    return await asyncio.wrap_future(crossing)


def let_go(sessions: Sessions) -> None:
    """Close ``sessions`` where it is open on another thread's loop, at the end of a test.

    One on the test's own loop is closed by the test or ends with the loop.
    """
    loop = _running(sessions)
    if loop is not None and loop is not asyncio._get_running_loop():
        asyncio.run_coroutine_threadsafe(sessions.close(), loop).result()


def _owner(function: Callable[..., object]) -> Sessions:
    owner = getattr(function, "__self__", None)
    if not isinstance(owner, Sessions):
        raise ConfigError("give a method of a Sessions, such as sessions.revoke")
    return owner


def _running(sessions: Sessions) -> asyncio.AbstractEventLoop | None:
    loop = sessions._loop
    return loop if loop is not None and loop.is_running() else None


def _loop_of(sessions: Sessions) -> asyncio.AbstractEventLoop | None:
    """The loop it is open on; never the one that this thread runs."""
    loop = _running(sessions)
    if loop is not None and loop is asyncio._get_running_loop():
        raise ConfigError(
            "this Sessions is open on this very event loop: await its methods, and use an "
            "async client with alogin_as"
        )
    return loop


def _apart(sessions: Sessions, work: Callable[[], Awaitable[T]]) -> T:
    async def whole() -> T:
        async with sessions:
            return await work()

    with start_blocking_portal() as portal:  # a thread: this one may run a loop itself
        return portal.call(whole)


def _whole(work: Callable[[], Awaitable[T]]) -> Coroutine[Any, Any, T]:
    async def whole() -> T:
        return await work()

    return whole()


PATIENCE = 30.0
"""Seconds until a barrier that not all have reached is given up."""


def concurrently(
    n: int, function: Callable[[], T] | Callable[[int], T]
) -> list[T | Exception]:
    """Call ``function`` in ``n`` threads at once.

    It gets its number, from 0, if it takes an argument. Returns what each call returned,
    or the exception it raised, by number.
    """
    numbered, barrier = _numbered(function), threading.Barrier(n, timeout=PATIENCE)

    def one(number: int) -> T | Exception:
        barrier.wait()
        try:
            return numbered(number)
        except Exception as exc:
            return exc

    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(one, range(n)))


async def aconcurrently(
    n: int, function: Callable[[], Awaitable[T]] | Callable[[int], Awaitable[T]]
) -> list[T | Exception]:
    """Await ``function`` in ``n`` tasks at once; the rest as :func:`concurrently`."""
    numbered, barrier = _numbered(function), asyncio.Barrier(n)

    async def one(number: int) -> T | Exception:
        await barrier.wait()
        try:
            return await numbered(number)
        except Exception as exc:
            return exc

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(number)) for number in range(n)]
    return [task.result() for task in tasks]


def _numbered(function: Callable[[], T] | Callable[[int], T]) -> Callable[[int], T]:
    """``function`` as one that takes a number, whether it wants it or not."""
    try:
        signature(function).bind(0)
    except (TypeError, ValueError):
        plain = cast("Callable[[], T]", function)
        return lambda number: plain()
    return cast("Callable[[int], T]", function)
