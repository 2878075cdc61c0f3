"""The shapes of ASGI, as far as handstamp touches them.

A WebSocket that lives no longer than its session.

When the session ends in this process, the socket is closed with 4401 at once, also while
the application only sends or only waits. The application then sees a disconnect, as if the
client had gone.

A stream that ends with its session: server-sent events, long downloads.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    MutableMapping,
)
from typing import Any, TypeVar

from handstamp.core.models import Session
from handstamp.engine.sessions import Sessions

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


SESSION_ENDED = 4401
"""The close code, by analogy with HTTP 401."""
_DISCONNECT = {"type": "websocket.disconnect", "code": SESSION_ENDED}


class SocketGuard:
    """Stands between an application and one WebSocket.

    ``on_first_frame`` is called once, when the client has sent something: a client that
    follows RFC 6455 does so only after it has read the answer to its handshake.
    """

    def __init__(
        self,
        receive: Receive,
        send: Send,
        on_first_frame: Callable[[], None] | None = None,
    ) -> None:
        self._receive = receive
        self._send = send
        self._on_first_frame = on_first_frame
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None
        self._incoming: asyncio.Future[Message] | None = None
        self._accepted = False
        self._over = False

    def end(self) -> None:
        """The session has ended: close, from whichever thread this is called."""
        self._loop.call_soon_threadsafe(self._begin_closing)

    def _begin_closing(self) -> None:
        if self._closing is None and not self._over:
            self._closing = self._loop.create_task(self._close())

    async def _close(self) -> None:
        self._ended.set()
        self._over = True
        try:
            await self._send({"type": "websocket.close", "code": SESSION_ENDED})
        except (OSError, RuntimeError):
            return  # the client was faster; servers differ in how they say so

    async def receive(self) -> Message:
        """The next message, or a disconnect when the session ends first."""
        if self._ended.is_set():
            return dict(_DISCONNECT)
        incoming = self._next()
        ended = self._loop.create_task(self._ended.wait())
        try:
            waits: set[asyncio.Future[Any]] = {incoming, ended}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
        if self._ended.is_set():
            return dict(_DISCONNECT)
        self._incoming = None
        message = incoming.result()
        if message["type"] == "websocket.disconnect":
            self._over = True
        elif self._on_first_frame is not None and message["type"] == "websocket.receive":
            self._on_first_frame()
            self._on_first_frame = None
        return message

    def _next(self) -> asyncio.Future[Message]:
        if self._incoming is None:
            self._incoming = asyncio.ensure_future(self._receive())
        return self._incoming

    async def send(self, message: Message) -> None:
        """Pass a message on; raises OSError once closed, as ASGI 2.4 asks of servers."""
        if self._over:
            raise OSError("the socket is closed: its session has ended")
        if message["type"] == "websocket.close":
            self._over = True
        await self._send(message)

    async def finish(self) -> None:
        """The application is done: leave no task behind."""
        self._over = True
        pending: list[asyncio.Future[Any]] = []
        if self._incoming is not None:
            self._incoming.cancel()
            pending.append(self._incoming)
        if self._closing is not None:
            pending.append(self._closing)
        if pending:
            await asyncio.wait(pending)


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
