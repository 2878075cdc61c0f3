"""An application on Supabase's sessions, its database, and tokens made as GoTrue does."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import asyncpg
import httpx
import jwt
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from handstamp import Cookies
from handstamp.events import Event
from handstamp.starlette import session_auth, wrap
from handstamp.supabase import SupabaseSessions
from handstamp.supabase.cookies import cut, encode_session
from handstamp.supabase.rules import SupabaseRules
from tests.support.waiting import until

JWT_SECRET = "the secret of a project of the tests: 32 bytes and more"
URL = "https://abcd.supabase.co"
NAME = "sb-abcd-auth-token"
HOUR = 3600.0

E = TypeVar("E", bound=Event)


async def login(request: Request) -> Response:
    session = await session_auth(request).login(request.path_params["user"])
    return JSONResponse({"id": session.id})


async def me(request: Request) -> Response:
    session = session_auth(request).require()
    return JSONResponse(
        {"id": session.id, "user_id": session.user_id, "level": session.level}
    )


async def maybe(request: Request) -> Response:
    return JSONResponse({"user_id": session_auth(request).user_id})


async def secure(request: Request) -> Response:
    session_auth(request).require(level=2)
    return Response(status_code=204)


async def broken(request: Request) -> Response:
    raise RuntimeError("a page with a mistake")


async def logout(request: Request) -> Response:
    await session_auth(request).logout()
    return Response(status_code=204)


async def others(request: Request) -> Response:
    return JSONResponse(await session_auth(request).revoke_others())


site = Starlette(
    routes=[
        Route("/login/{user}", login, methods=["POST"]),
        Route("/logout", logout, methods=["POST"]),
        Route("/others", others, methods=["POST"]),
        Route("/write", me, methods=["POST"]),
        Route("/me", me),
        Route("/maybe", maybe),
        Route("/secure", secure),
        Route("/broken", broken),
    ]
)


@dataclass(frozen=True)
class Held:
    """The ids and tokens of one session in a browser."""

    id: str
    user_id: str
    refresh_token: str

    def token(self, lasts: float = HOUR, secret: str = JWT_SECRET, **claims: Any) -> str:
        """An access token of this session, made without handstamp."""
        return jwt.encode(
            {
                "sub": self.user_id,
                "session_id": self.id,
                "aud": "authenticated",
                "role": "authenticated",
                "aal": "aal1",
                "exp": int(time.time() + lasts),
                **claims,
            },
            secret,
            claims.get("alg", "HS256"),
        )

    def body(self, lasts: float = HOUR, **claims: Any) -> dict[str, Any]:
        """The response of GoTrue when it issues such a token."""
        return {
            "access_token": self.token(lasts, **claims),
            "token_type": "bearer",
            "expires_in": int(lasts),
            "expires_at": int(time.time() + lasts),
            "refresh_token": claims.get("refresh_token", self.refresh_token),
            "user": {"id": self.user_id},
        }

    def cookie(self, lasts: float = HOUR, **claims: Any) -> dict[str, str]:
        """The Cookie header, with an access token that lasts so many seconds."""
        return as_header(self.body(lasts, **claims))


def as_header(body: Mapping[str, Any], name: str = NAME) -> dict[str, str]:
    """The Cookie header with this session."""
    pieces = cut(name, encode_session(body))
    return {"cookie": "; ".join(f"{name}={value}" for name, value in pieces.items())}


class World:
    """One database of Supabase Auth, and the processes on it."""

    def __init__(self, dsn: str, psql: asyncpg.Connection, stack: AsyncExitStack) -> None:
        self.dsn = dsn
        self.psql = psql
        self._stack = stack
        self.events: list[Event] = []

    async def add_user(self) -> str:
        """Insert a user as GoTrue does. Returns the id."""
        user_id = uuid.uuid4()
        await self.psql.execute(
            "insert into auth.users (id, instance_id, aud, role, email, is_anonymous)"
            " values ($1, $2, 'authenticated', 'authenticated', $3, false)",
            user_id,
            uuid.UUID(int=0),
            f"{user_id}@example.org",
        )
        return str(user_id)

    async def process(self, *, version: Any = 2, **options: Any) -> SupabaseSessions:
        """Another process that serves the application. It listens for notifications."""
        rules = {"algorithm_version": version, **options.pop("rules", {})}
        keys = {"jwt_secret": JWT_SECRET} if "jwt_keys" not in options else {}
        options = {"rules": SupabaseRules(**rules), "url": URL, **keys, **options}
        sessions = SupabaseSessions(self.dsn, **options)
        sessions.on(Event, self.events.append)
        await self._stack.enter_async_context(sessions)
        await until(lambda: sessions.stats().listener == "listening")
        return sessions

    async def browser(
        self, sessions: SupabaseSessions, **options: Any
    ) -> httpx.AsyncClient:
        """A client of the application in this process. A Cookie header replaces its stored
        cookies."""
        app = wrap(site, sessions, **{"cookies": Cookies.insecure(), **options})
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        client = httpx.AsyncClient(transport=transport, base_url="http://testserver")
        return await self._stack.enter_async_context(client)

    async def sign_in(self, sessions: SupabaseSessions, user_id: str | None = None) -> Held:
        """Create a session by handstamp."""
        issued = await sessions.create(user_id or await self.add_user())
        assert issued.refresh_token is not None
        return Held(issued.session.id, issued.session.user_id, issued.refresh_token)

    async def connect(self) -> asyncpg.Connection:
        """Another connection of GoTrue."""
        connection = await asyncpg.connect(self.dsn)
        self._stack.push_async_callback(connection.close)
        return connection

    async def row(self, held: Held) -> asyncpg.Record | None:
        return await self.psql.fetchrow(
            "select * from auth.sessions where id = $1", uuid.UUID(held.id)
        )

    def of(self, kind: type[E]) -> list[E]:
        """The published events of one kind, of all processes."""
        return [event for event in self.events if isinstance(event, kind)]


@asynccontextmanager
async def living(dsn: str) -> AsyncIterator[World]:
    """A :class:`World` on this database, closed at the end."""
    async with AsyncExitStack() as stack:
        psql = await asyncpg.connect(dsn)
        stack.push_async_callback(psql.close)
        yield World(dsn, psql, stack)
