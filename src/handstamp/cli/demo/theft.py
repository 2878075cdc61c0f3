"""DEMO ONLY. A thief to watch: it presents the refresh token that was replaced last.

Scripts cannot read our cookies, so the server has to play this part: it remembers, in
memory, the last two refresh tokens that each session's browser has sent. No application
should ever do that.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from handstamp import Client, Sessions
from handstamp.config import Cookies
from handstamp.core.credentials import CookieReader
from handstamp.core.origins import is_cross_site
from handstamp.types import Scope

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
