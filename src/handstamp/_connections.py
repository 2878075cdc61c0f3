"""Connections that end with their session: WebSockets and streams. Also the types of ASGI.

Rule 1. When a session ends, its WebSockets are closed with 4401 at once, also while the
application only sends or only waits. The application then sees a disconnect, as if the
client had gone.
Rule 2. A stream (server-sent events, a long download) ends with its session, also while it
waits for its next item.
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
from handstamp.errors import AuthenticationRequired

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

T = TypeVar("T")
SESSION_ENDED = AuthenticationRequired.close_code
"""The close code of a WebSocket whose session has ended."""


class SocketGuard:
    """Wraps ``receive`` and ``send`` of one WebSocket, and closes it when its session ends.

    ``on_first_frame`` is called once, when the client has sent a frame. A client that
    follows RFC 6455 does so only after it has read the response to its handshake.
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
        self._closed = False

    def end(self) -> None:
        """Close the socket, because its session has ended. For any thread."""

        def begin() -> None:
            if self._closing is None and not self._closed:
                self._closing = self._loop.create_task(self._close())

        self._loop.call_soon_threadsafe(begin)

    async def _close(self) -> None:
        self._ended.set()
        self._closed = True
        try:
            await self._send({"type": "websocket.close", "code": SESSION_ENDED})
        except (OSError, RuntimeError):
            return  # the client has closed it; servers raise different errors then

    async def receive(self) -> Message:
        """Return the next message, or a disconnect if the session ends first."""
        disconnect: Message = {"type": "websocket.disconnect", "code": SESSION_ENDED}
        if self._ended.is_set():
            return disconnect
        if self._incoming is None:
            self._incoming = asyncio.ensure_future(self._receive())
        incoming = self._incoming
        ended = self._loop.create_task(self._ended.wait())
        try:
            waits: set[asyncio.Future[Any]] = {incoming, ended}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
        if self._ended.is_set():
            return disconnect
        self._incoming = None
        message = incoming.result()
        if message["type"] == "websocket.disconnect":
            self._closed = True
        elif self._on_first_frame is not None and message["type"] == "websocket.receive":
            self._on_first_frame()
            self._on_first_frame = None
        return message

    async def send(self, message: Message) -> None:
        """Pass a message on. Raises OSError once the socket is closed, as version 2.4 of
        the ASGI specification requires of servers."""
        if self._closed:
            raise OSError("the socket is closed: its session has ended")
        if message["type"] == "websocket.close":
            self._closed = True
        await self._send(message)

    async def finish(self) -> None:
        """Cancel what is still waiting, after the application has returned."""
        self._closed = True
        pending: list[asyncio.Future[Any]] = []
        if self._incoming is not None:
            self._incoming.cancel()
            pending.append(self._incoming)
        if self._closing is not None:
            pending.append(self._closing)
        if pending:
            await asyncio.wait(pending)


async def until_ended(
    sessions: Sessions, session: Session, source: AsyncIterable[T]
) -> AsyncIterator[T]:
    """Return the items of ``source``, until it ends or the session ends.

    The session may have ended since the request was authenticated, so the table is read
    when the stream begins.
    """
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    items = aiter(source)

    def end() -> None:
        loop.call_soon_threadsafe(ended.set)

    async def next_item() -> tuple[T] | None:
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

    sessions.add_connection(session, end)
    over = loop.create_task(ended.wait())
    try:
        while (item := await next_item()) is not None:
            yield item[0]
    finally:
        sessions.connections.remove(session.id, end)
        over.cancel()
