"""A TCP proxy that can lose a connection in every way a network can.

It runs in a thread of its own, so a test may block and the proxy still forwards. What it
withholds is delivered once it passes again, as TCP would.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

_RST = struct.pack("ii", 1, 0)


class Proxy:
    """Forwards one port of this machine to another, until it is stopped.

    ``withheld`` counts the bytes of answers that wait for :meth:`heal`.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self._refusing = False
        self._latency = 0.0
        self.withheld = 0
        self.port = 0

    def start(self) -> None:
        """Listen on a port of one's own, and pass."""
        self._thread.start()
        self._run(self._listen())
        self.heal()

    def stop(self) -> None:
        """Cut everything and end."""
        self._run(self._finish())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def before(self, dsn: str) -> str:
        """The same address by way of this proxy."""
        url = urlsplit(dsn)
        place = url.netloc.rpartition(":")[0]
        return urlunsplit(url._replace(netloc=f"{place}:{self.port}"))

    def heal(self) -> None:
        """Pass everything at once, and take new connections."""
        self._call(self._pass)

    def stall(self) -> None:
        """Deliver nothing in either direction; every socket stays open."""
        self._call(lambda: (self._up.clear(), self._down.clear()))

    def withhold_answers(self) -> None:
        """Forward what the clients send, and no answer; every socket stays open."""
        self._call(self._down.clear)

    def delay(self, seconds: float) -> None:
        """Deliver every piece this much later."""
        self._latency = seconds

    def cut(self) -> None:
        """Close every connection, and every new one at once."""
        self._call(lambda: self._end(b""))

    def reset(self) -> None:
        """The same with RST instead of FIN."""
        self._call(lambda: self._end(_RST))

    def reset_once(self) -> None:
        """Reset every connection, and pass everything that comes after."""
        self._call(lambda: (self._end(_RST), self._pass()))

    def _pass(self) -> None:
        self._refusing, self._latency, self.withheld = False, 0.0, 0
        self._up.set()
        self._down.set()

    def _end(self, linger: bytes) -> None:
        self._refusing = True
        for writer in tuple(self._writers):
            if linger:
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()

    async def _listen(self) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._server = server
        self.port = server.sockets[0].getsockname()[1]

    async def _accept(
        self, client: asyncio.StreamReader, back: asyncio.StreamWriter
    ) -> None:
        if self._refusing:
            back.transport.abort()
            return
        try:
            server, forth = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            back.transport.abort()
            return
        self._writers |= {back, forth}
        self._begin(self._pump(client, forth, self._up))
        self._begin(self._pump(server, back, self._down))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        gate: asyncio.Event,
    ) -> None:
        try:
            while data := await reader.read(65_536):
                if not gate.is_set():
                    self.withheld += len(data)
                await gate.wait()
                if self._latency:
                    await asyncio.sleep(self._latency)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # one side is gone, and then so is the other
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _finish(self) -> None:
        self._server.close()
        self._end(b"")
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _call(self, act: Callable[[], object]) -> None:
        async def run() -> None:
            act()

        self._run(run())

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


@contextmanager
def proxy(dsn: str) -> Iterator[Proxy]:
    """A proxy before the server of this address."""
    port = urlsplit(dsn).port
    assert port is not None
    one = Proxy(port)
    one.start()
    try:
        yield one
    finally:
        one.stop()
