"""The demo's front: its page and its figures, and behind them the example as it is.

The page's own requests never reach the middleware, so watching changes no figure.
"""

from __future__ import annotations

import secrets
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route, Router

from handstamp import Sessions
from handstamp.cli.demo.feed import Feed, figures, lifetimes
from handstamp.cli.demo.theft import Thief
from handstamp.types import ASGIApp, Receive, Scope, Send

_FRESH = {"Cache-Control": "no-store"}
_POLICY = (
    "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; "
    "connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)


class Front:
    """An ASGI application: ``/`` and ``/demo/…`` are ours, the rest is the example's.

    ``with_thief`` adds the demonstration of a stolen refresh token.
    """

    def __init__(self, example: ASGIApp, sessions: Sessions, *, with_thief: bool) -> None:
        self._example = example
        self._sessions = sessions
        self._feed = Feed(sessions)
        self._thief = Thief(sessions) if with_thief else None
        self._requests = 0
        self._page = (files("handstamp.cli.demo") / "page.html").read_text("utf-8")
        self._router = Router(self._routes(), default=self._pass, redirect_slashes=False)

    def _routes(self) -> list[Route]:
        routes = [Route("/", self._show), Route("/demo/figures", self._count)]
        if self._thief is not None:
            strike = Route("/demo/replay", self._thief.strike, methods=["POST"])
            routes.append(strike)
        return routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection; the lifespan is the example's."""
        inner = self._example if scope["type"] == "lifespan" else self._router
        await inner(scope, receive, send)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._requests += 1
        if self._thief is not None:
            self._thief.watch(scope)
        await self._example(scope, receive, send)

    async def _show(self, request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        headers = {**_FRESH, "Content-Security-Policy": _POLICY.format(nonce)}
        return HTMLResponse(self._page.replace("{nonce}", nonce), headers=headers)

    async def _count(self, request: Request) -> Response:
        told = {
            "figures": figures(self._sessions, self._requests),
            "policy": lifetimes(self._sessions.policy),
            "feed": self._feed.told(),
            "thief": self._thief is not None,
        }
        return JSONResponse(told, headers=_FRESH)
