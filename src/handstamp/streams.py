"""A stream that ends with its session: server-sent events, long downloads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any, TypeVar

from handstamp.core.records import Session
from handstamp.engine.sessions import Sessions

T = TypeVar("T")


async def until_ended(
    sessions: Sessions, session: Session, source: AsyncIterable[T]
) -> AsyncIterator[T]:
    """The items of ``source``, until it ends or the session is over, also in the middle
    of waiting for the next item.

    The session may have ended since the request was authenticated, so the table is asked
    as the stream begins.
    """
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    items = aiter(source)

    def end() -> None:
        loop.call_soon_threadsafe(ended.set)

    sessions.add_connection(session, end)
    over = loop.create_task(ended.wait())
    try:
        while (item := await _next_unless(items, over)) is not None:
            yield item[0]
    finally:
        sessions.connections.remove(session.id, end)
        over.cancel()


async def _next_unless(items: AsyncIterator[T], over: asyncio.Task[Any]) -> tuple[T] | None:
    coming = asyncio.ensure_future(anext(items))
    waits: set[asyncio.Future[Any]] = {coming, over}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not coming.done():
            coming.cancel()
            await asyncio.wait([coming])
    if over.done() or coming.cancelled():
        return None
    try:
        return (coming.result(),)
    except StopAsyncIteration:
        return None
