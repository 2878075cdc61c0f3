"""A wire to a server that a test can freeze, cut or unplug."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit, urlunsplit

CHUNK = 65536


class Wire:
    """A TCP proxy in this event loop. ``dsn`` leads through it."""

    def __init__(self, dsn: str) -> None:
        url = urlsplit(dsn)
        self._url = url
        self._target = url.hostname or "127.0.0.1", url.port or 5432
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.connections = 0

    @property
    def dsn(self) -> str:
        user, _, _ = self._url.netloc.rpartition("@")
        netloc = f"{user}@127.0.0.1:{self.port}"
        return urlunsplit(self._url._replace(netloc=netloc))

    async def plug_in(self) -> None:
        """Accept connections, on the same port as before."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def unplug(self) -> None:
        """Refuse connections and cut those there are."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()

    def cut(self) -> None:
        """Lose every connection there is."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def freeze(self) -> None:
        """Let no byte through, in either direction; sockets stay open."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Deliver what was held, and go on."""
        self._flowing.set()

    async def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.connections += 1
        self._writers.add(writer)
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        self._writers.add(far_writer)
        for source, target in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.ensure_future(self._carry(source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while data := await source.read(CHUNK):
                await self._flowing.wait()
                target.write(data)
                await target.drain()
        target.close()

    async def close(self) -> None:
        """End it all."""
        self.thaw()
        await self.unplug()
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


@asynccontextmanager
async def wired(dsn: str) -> AsyncIterator[Wire]:
    """A wire that is plugged in."""
    wire = Wire(dsn)
    await wire.plug_in()
    try:
        yield wire
    finally:
        await wire.close()
