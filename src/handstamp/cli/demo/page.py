"""What the page shows of a process: its figures and its last events.

No token is in an event, and of an address only its network is shown.

DEMO ONLY. A thief to watch: it presents the refresh token that was replaced last.

Scripts cannot read our cookies, so the server has to play this part: it remembers, in
memory, the last two refresh tokens that each session's browser has sent. No application
should ever do that.

The demo's front: its page and its figures, and behind them the example as it is.

The page's own requests never reach the middleware, so watching changes no figure.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route, Router

from handstamp import Sessions
from handstamp._connections import ASGIApp, Receive, Scope, Send
from handstamp.config import Cookies, Policy
from handstamp.core.cookies import CookieReader
from handstamp.core.models import Client, masked
from handstamp.core.requests import is_cross_site
from handstamp.events import Event

_KEPT = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    number: int
    at: float
    event: Event


class Feed:
    """The last events of one `Sessions`."""

    def __init__(self, sessions: Sessions) -> None:
        self._entries: deque[_Entry] = deque(maxlen=_KEPT)
        self._number = 0
        sessions.on(Event, self._take)

    def _take(self, event: Event) -> None:
        self._number += 1
        entry = _Entry(number=self._number, at=time.monotonic(), event=event)
        self._entries.append(entry)

    def told(self) -> list[dict[str, object]]:
        """The events as JSON knows them, oldest first, with their age in seconds."""
        now = time.monotonic()
        return [
            {
                "number": entry.number,
                "age": round(now - entry.at, 3),
                "action": entry.event.action,
                "alarming": entry.event.alarming,
                **_facts(entry.event),
            }
            for entry in self._entries
        ]


def _facts(event: Event) -> dict[str, object]:
    values = {f.name: getattr(event, f.name) for f in fields(event)}
    return {
        name: masked(value.address) if isinstance(value, Client) else value
        for name, value in values.items()
    }


def figures(sessions: Sessions, requests: int) -> dict[str, object]:
    """The counters of this process, with how many requests the example got."""
    stats = asdict(sessions.stats())
    looked_up = stats["hits"] + stats["misses"]
    hit_rate = stats["hits"] / looked_up if looked_up else None
    return {"requests": requests, "hit_rate": hit_rate, **stats}


def lifetimes(policy: Policy) -> dict[str, float]:
    """Every duration of the policy, in seconds."""
    values = {f.name: getattr(policy, f.name) for f in fields(policy)}
    return {n: v.total_seconds() for n, v in values.items() if isinstance(v, timedelta)}


_THIEF = Client(address="203.0.113.66", user_agent="a thief")


class Thief:
    """Watches the cookies of all requests, and plays one back on demand."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._read = CookieReader(Cookies.insecure()).read
        self._sent: dict[str, tuple[str | None, str]] = {}

    def watch(self, scope: Scope) -> None:
        """Remember the refresh token of a request beside the one it replaced."""
        token = self._token(scope)
        if token is None:
            return
        _, current = self._sent.get(_session_id(token), (None, None))
        if token != current:
            self._sent[_session_id(token)] = (current, token)

    async def strike(self, request: Request) -> Response:
        """Present the token that this browser's session had before the current one."""
        if is_cross_site(request.scope["headers"]):
            return JSONResponse({"outcome": "cross_site"}, 403)
        self.watch(request.scope)
        token = self._token(request.scope)
        stale = self._sent[_session_id(token)][0] if token else None
        outcome = "no_stale_token" if stale is None else await self._present(stale)
        return JSONResponse({"outcome": outcome})

    async def _present(self, stale: str) -> str:
        before = self._replays()
        issued = await self._sessions.refresh(stale, client=_THIEF)
        if issued is not None:
            return "same_successor"
        return "revoked" if self._replays() > before else "refused"

    def _replays(self) -> int:
        return self._sessions.stats().events.get("replayed", 0)

    def _token(self, scope: Scope) -> str | None:
        sent = self._read(scope["headers"]).refresh
        return sent[0].decode("latin-1") if len(sent) == 1 else None


def _session_id(token: str) -> str:
    return token.partition(".")[0]


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
