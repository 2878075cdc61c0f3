"""The public API in thirteen typical ways: type-checked, never run."""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from typing import Annotated, assert_type

from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from handstamp import (
    ULID_HASHED,
    Authenticated,
    AuthenticationRequired,
    Client,
    Cookies,
    Issued,
    LoginRefused,
    MemoryStore,
    Policy,
    Session,
    Sessions,
    SessionsUnavailable,
    Stats,
    TableShape,
    TrustedProxies,
    asgi,
    fastapi,
    starlette,
)
from handstamp._connections import ASGIApp, Receive, Scope, Send
from handstamp.asgi import Handle
from handstamp.events import Event, Replayed, SessionEvent
from handstamp.fastapi import CurrentSession, SessionAuth
from handstamp.testing import (
    FrozenClock,
    Recorded,
    SignedIn,
    Stolen,
    acall,
    aconcurrently,
    alogin_as,
    assert_revoked,
    call,
    concurrently,
    frozen_clock,
    login_as,
    memory_sessions,
    outage,
    steal,
)

SECRET = os.environ["HANDSTAMP_SECRET"]
logger = logging.getLogger(__name__)


# 1. One line for most: a URI and a secret.
sessions = Sessions("postgresql://app@db/app", secret=SECRET)

# 2. Everything said: two secrets, a policy, a table of another name.
other = Sessions(
    "postgresql://app@db/app",
    secrets=[b"x" * 32, SECRET],
    shape=TableShape(table="auth.logins"),
    policy=Policy(
        session_ttl=timedelta(minutes=5), idle_ttl=timedelta(hours=8), max_sessions=5
    ),
    cache_size=1_000,
    pool_size=4,
    connect={"ssl": "require"},
)

# 3. A policy from the environment.
assert_type(Policy.from_env(), Policy)
assert_type(Policy.from_env({"APP_GRACE": "3"}, prefix="APP_"), Policy)


# 4. Any ASGI application, with every option.
async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """An application on bare ASGI."""
    handle: Handle = scope["handstamp"]
    assert_type(handle.session, Session | None)
    assert_type(handle.user_id, str | None)
    assert_type(handle.is_authenticated, bool)


bare: ASGIApp = asgi.SessionAuthMiddleware(
    app,
    sessions,
    cookies=Cookies(same_site="Strict"),
    trusted_proxies=TrustedProxies("10.0.0.0/8"),
    exclude={"/healthz"},
    passive=lambda scope: scope["path"].startswith("/poll/"),
    trusted_origins=["https://login.example.com"],
    bearer=True,
)


# 5. Starlette: log in and out.
async def sign_in(request: Request) -> Response:
    """A sign-in form's target."""
    auth = starlette.session_auth(request)
    try:
        assert_type(await auth.login("alice", remember=True), Session)
    except LoginRefused as exc:
        return JSONResponse({"reason": exc.reason}, status_code=exc.status)
    return Response(status_code=204)


async def sign_out(request: Request) -> Response:
    """A sign-out button's target."""
    await starlette.session_auth(request).logout()
    return Response(status_code=204)


# 6. Wrapped applications are ASGI applications.
wrapped: ASGIApp = starlette.wrap(Starlette(), sessions, cookies=Cookies.insecure())
api = FastAPI()
served: ASGIApp = fastapi.wrap(api, sessions)


# 7. FastAPI: the session as a parameter.
@api.get("/me")
async def me(session: CurrentSession) -> dict[str, str]:
    """Who is asking."""
    return {"user_id": assert_type(session.user_id, str)}


# 8. A dependency of the application's own, on top.
async def admin(auth: SessionAuth) -> Session:
    """A recent sign-in at a high level."""
    return auth.require(level=2, fresh_within=timedelta(minutes=10))


@api.post("/keys")
async def make_key(session: Annotated[Session, Depends(admin)]) -> str:
    """Something that needs more than a cookie."""
    return session.id


# 9. Outside of a request: tokens for a mobile app.
async def mobile() -> str:
    """Issue, refresh, revoke."""
    async with sessions:
        issued = await sessions.create("alice", client=Client(fingerprint="phone"))
        assert_type(issued, Issued)
        again = assert_type(await sessions.refresh(issued.refresh_token), Issued | None)
        raised = await sessions.step_up(issued.session.id, 2)
        assert_type(raised, Authenticated | None)
        if again is None:
            raise AuthenticationRequired
        assert_type(await sessions.revoke(again.session.id, reason="lost"), bool)
        assert_type(await sessions.revoke_user("alice", keep=None), int)
        return again.session_token


# 10. The "your sessions" page.
async def devices(auth: SessionAuth) -> list[str]:
    """A user's own sessions."""
    listed = assert_type(await auth.list_sessions(), list[Session])
    assert_type(await auth.revoke_others(), int)
    return [session.id for session in listed if not session.current]


# 11. Events, in a function and in a coroutine.
async def alarm(event: Replayed) -> None:
    """Tell somebody."""
    assert_type(event.presented_by, Client)


def count(event: SessionEvent) -> None:
    """Keep a figure."""
    assert_type(event.session_id, str)


sessions.on(Replayed, alarm)
sessions.on(SessionEvent, count)
sessions.on(Event, lambda event: logger.info(event.action))


# 12. Operations: health, figures, pruning, and a store for unit tests.
async def operate() -> Stats:
    """What a cron job and a health page do."""
    try:
        await sessions.ping()
    except SessionsUnavailable as exc:
        logger.info("down: %d", assert_type(exc.retry_after, int))
    assert_type(await sessions.prune(), int)
    assert_type(await sessions.list_for_user("alice", current=None), list[Session])
    return sessions.stats()


fake = Sessions(MemoryStore(), secret="x" * 32, shape=ULID_HASHED)


# 13. Tests of an application: sync and async clients, time, an outage, a thief.
def check_by_hand(client: object, clock: FrozenClock) -> None:
    """A test without await."""
    engine = assert_type(memory_sessions(clock=clock, policy=Policy()), Sessions)
    events = Recorded(engine)
    alice = assert_type(login_as(client, "alice", remember=True, sessions=engine), SignedIn)
    assert_type(alice.session, Session)
    stolen = assert_type(steal(client, sessions=engine), Stolen)
    clock.advance(timedelta(minutes=15))
    with outage(engine), frozen_clock(other) as another:
        assert_type(another, FrozenClock)
    assert_type(stolen.replay(), Issued | None)
    assert_type(alice.revoke(reason="lost"), bool)
    assert_revoked(alice, reason="lost", events=events)
    assert_revoked(alice.session.id, sessions=engine)
    assert_type(events.of(Replayed), list[Replayed])
    assert_type(call(engine.revoke_user, "alice", keep=None), int)
    assert_type(concurrently(2, lambda: 1), list[int | Exception])
    assert_type(concurrently(2, str), list[str | Exception])


async def check_with_await(client: object) -> None:
    """A test with await."""
    alice = assert_type(await alogin_as(client, "alice", sessions=fake), SignedIn)
    assert_type(await acall(sessions.list_for_user, "alice"), list[Session])
    assert_type(await aconcurrently(2, alice.arevoke), list[bool | Exception])
