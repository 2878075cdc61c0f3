"""From wherever Django runs a view to the loop that the engine is on.

Rule 1. Under ASGI the engine is on the server's loop, under WSGI on the one of
:mod:`handstamp.blocking`, and it stays where it was opened.
Rule 2. A sync view under ASGI runs in a thread: it crosses to the loop and waits. A test
that mixes Django's two clients has the engine on the other loop, and crosses as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

from asgiref.sync import async_to_sync

from handstamp import blocking
from handstamp.django.settings import get_sessions
from handstamp.engine.sessions import Sessions
from handstamp.errors import ConfigError

logger = logging.getLogger("handstamp")

P = ParamSpec("P")
T = TypeVar("T")
Function = Callable[P, Coroutine[Any, Any, T]]


def call(function: Function[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """What an async function returns, in a sync view, under WSGI and ASGI alike.

        call(get_sessions().revoke_user, "7", reason="left the company")

    Raises what the function raises, and :class:`ConfigError` on a thread that runs an
    event loop: await :func:`acall` there.
    """
    loop = _home(get_sessions())
    if loop is None:
        _refuse_to_block_a_loop()
        return blocking.call(function, *args, **kwargs)
    return _wait_on(loop, function, *args, **kwargs)


async def acall(function: Function[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """The same in an async view, on whichever loop it runs."""
    return await across(get_sessions(), function, *args, **kwargs)


def wait(
    sessions: Sessions, function: Function[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> T:
    """The same for the handle of a request under ASGI: without a loop of its own the
    engine opens on the request's."""
    loop = _home(sessions)
    if loop is None:
        _refuse_to_block_a_loop()
        run: Callable[P, T] = async_to_sync(function)
        return run(*args, **kwargs)
    return _wait_on(loop, function, *args, **kwargs)


async def across(
    sessions: Sessions, function: Function[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> T:
    """What an async function returns, run on the loop that the engine is on."""
    loop = _home(sessions)
    if loop is None or loop is asyncio.get_running_loop():
        return await function(*args, **kwargs)
    future = asyncio.run_coroutine_threadsafe(function(*args, **kwargs), loop)
    return await asyncio.wrap_future(future)


def later(
    sessions: Sessions, function: Function[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> None:
    """Begin an async function on the loop that the engine is on, and wait for nothing: for
    what may be asked for on any thread. What it raises is logged. Nothing is begun where
    the engine is closed and there is no loop."""
    loop = _home(sessions) or _running()
    if loop is None:
        return
    task = asyncio.run_coroutine_threadsafe(function(*args, **kwargs), loop)
    task.add_done_callback(_complain)


def _complain(task: Future[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("a session was not ended", exc_info=error)


def _home(sessions: Sessions) -> asyncio.AbstractEventLoop | None:
    loop = sessions._loop
    return loop if loop is not None and loop.is_running() else None


def _wait_on(
    loop: asyncio.AbstractEventLoop,
    function: Function[P, T],
    /,
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    _refuse_to_block_a_loop()
    return asyncio.run_coroutine_threadsafe(function(*args, **kwargs), loop).result()


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _refuse_to_block_a_loop() -> None:
    if _running() is None:
        return
    raise ConfigError(
        "this is an async view: await alogin, alogout, arevoke … or acall(function)"
    )
