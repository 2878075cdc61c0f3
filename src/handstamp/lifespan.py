"""Opening and closing the engine with the server, whatever the application makes of it.

An application that knows the lifespan protocol is served as usual, with the engine open
around it. For one that does not, the protocol is spoken here, so that pending activity is
written at a graceful stop in any case.
"""

from __future__ import annotations

from handstamp.engine.sessions import Sessions
from handstamp.types import ASGIApp, Message, Receive, Scope, Send


class Lifespan:
    """One lifespan connection of ``app``, with ``sessions`` open around it."""

    def __init__(self, app: ASGIApp, sessions: Sessions) -> None:
        self._app = app
        self._sessions = sessions
        self._asked = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the connection to its end."""

        async def opening() -> Message:
            self._asked = True
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self._sessions.open()
            return message

        async def closing(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown."):
                await self._sessions.close()
            await send(message)

        try:
            await self._app(scope, opening, closing)
        except Exception:
            if self._asked:
                raise  # it knows the protocol and failed
        except GeneratorExit:
            self._asked = False  # forgotten by its server, with its loop: nothing to await
            raise
        finally:
            if self._asked:
                await self._sessions.close()
        if not self._asked:
            await self._stand_in(receive, send)

    async def _stand_in(self, receive: Receive, send: Send) -> None:
        await receive()
        await self._sessions.open()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._sessions.close()
        await send({"type": "lifespan.shutdown.complete"})
