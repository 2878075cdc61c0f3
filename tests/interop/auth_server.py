"""A small server that plays the part of Supabase Auth with tokens of ours."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from handstamp.supabase.jwt import AccessTokens, Keys
from handstamp.supabase.rules import AmrEntry, AuthSession, AuthUser
from handstamp.supabase.tokens import read_v2, write_v2
from tests.support.supabase_keys import private_key, public_key

SECRET = "super-secret-jwt-token-with-at-least-32-characters-long"
USER = "123e4567-e89b-42d3-a456-426614174000"
SESSION = "f47ac10b-58cc-4372-a567-0e02b2c3d479"
KEY = bytes(range(32))
SHORT, LONG = timedelta(seconds=30), timedelta(hours=1)


@dataclass
class AuthServer:
    """One user with one session. ``padding`` is how large its metadata is."""

    url: str = ""
    counter: int = 0
    padding: int = 0
    asked: list[str] = field(default_factory=list)
    tokens: dict[str, AccessTokens] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for algorithm in ("ES256", "RS256"):
            self.tokens[algorithm] = AccessTokens(Keys(key_set=[private_key(algorithm)]))
        self.tokens["HS256"] = AccessTokens(Keys(secret=SECRET))

    def mint(self, algorithm: str = "ES256", lasts: timedelta = LONG) -> str:
        """An access token of the session."""
        now = datetime.now(UTC)
        session = AuthSession(id=SESSION, user_id=USER, created_at=now, read_at=now)
        user = AuthUser(
            id=USER,
            aud="authenticated",
            role="authenticated",
            email="alice@example.com",
            phone="",
            app_metadata={},
            user_metadata={},
        )
        amr = [AmrEntry(method="password", at=now)]
        times = {"issued_at": now, "expires_at": now + lasts}
        return self.tokens[algorithm].mint(session, user, amr, **times)

    def session(self, lasts: timedelta = LONG) -> dict[str, Any]:
        """The body of a successful sign-in or refresh, which is also the cookie's."""
        return {
            "access_token": self.mint(lasts=lasts),
            "token_type": "bearer",
            "expires_in": int(lasts.total_seconds()),
            "expires_at": int((datetime.now(UTC) + lasts).timestamp()),
            "refresh_token": write_v2(SESSION, self.counter, KEY),
            "user": self.user(),
        }

    def user(self) -> dict[str, Any]:
        """The user as JSON, with letters of more than one byte."""
        metadata = {"name": "Žofie 🎉", "padding": "x" * self.padding}
        return {"id": USER, "aud": "authenticated", "user_metadata": metadata}

    def answer(
        self, method: str, target: str, headers: Any, body: bytes
    ) -> tuple[int, Any]:
        """Status and body for one request."""
        parts = urlsplit(target)
        self.asked.append(f"{method} {parts.path}")
        if parts.path == "/auth/v1/.well-known/jwks.json":
            return 200, {"keys": [public_key("ES256"), public_key("RS256")]}
        if (method, parts.path) == ("POST", "/auth/v1/token"):
            assert parse_qs(parts.query) == {"grant_type": ["refresh_token"]}
            return self._refresh(json.loads(body)["refresh_token"])
        now = datetime.now(UTC)
        presented = headers.get("authorization", "").removeprefix("Bearer ")
        read = (tokens.read(presented) for tokens in self.tokens.values())
        if not any(token is not None and token.is_live(now) for token in read):
            return 403, {"code": "bad_jwt", "message": "invalid JWT"}
        return (200, self.user()) if method == "GET" else (204, None)

    def _refresh(self, text: str) -> tuple[int, Any]:
        token = read_v2(text)
        if token is None or not token.is_signed_by(KEY) or token.counter != self.counter:
            return 400, {"code": "refresh_token_not_found", "message": "not found"}
        self.counter += 1
        return 200, self.session()


@contextmanager
def run_auth_server() -> Iterator[AuthServer]:
    """Listen on a free port of this host, and stop."""
    played = AuthServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("content-length", 0))
            body = self.rfile.read(length)
            status, answer = played.answer(self.command, self.path, self.headers, body)
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.end_headers()
            if answer is not None:
                self.wfile.write(json.dumps(answer).encode())

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None:
            """Keep quiet."""

    # Not HTTPServer: that looks its own name up, which may take long.
    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        played.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield played
        finally:
            server.shutdown()
            thread.join()
