"""A claim of the application's: a short text that the tokens of a session carry."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest

from handstamp.asgi import SCOPE_KEY, SessionAuthMiddleware
from handstamp.core.models import Invalid, Issued
from handstamp.core.tokens import Tokens
from tests.support import asgi
from tests.support.engines import (
    LAPTOP,
    SECRET,
    Engine,
    credentials_of,
    new_tokens,
    running,
    session_of,
)

CLAIM = "AbC-_9" * 10
OLDER, NEWER = SECRET, "another secret, of thirty-two bytes or more"


async def login(engine: Engine, claim: str | None = CLAIM) -> Issued:
    """A session with this claim."""
    return await engine.sessions.create("alice", remember=True, claim=claim)


async def test_every_token_of_a_session_carries_its_claim() -> None:
    """From the cache and from the table, by the session token and by the refresh token, on
    a passive request, after a rotation and after a repeated one."""
    async with running() as engine:
        issued = await login(engine)
        assert issued.session.claim == CLAIM
        for _ in range(2):
            assert session_of(await engine.ask(issued)).claim == CLAIM
            engine.sessions._state.cache.reset_after_fork()
        await engine.expire()
        for _ in range(2):
            answer = await engine.ask(issued, session=False, passive=True)
            assert session_of(answer).claim == CLAIM
        fresh, again = [await engine.refreshed(issued) for _ in range(2)]
        for tokens in (fresh, again):
            assert tokens.session.claim == CLAIM
            assert session_of(await engine.ask(tokens, refresh=False)).claim == CLAIM
        assert (await engine.sessions.list_for_user("alice"))[0].claim is None


async def test_new_tokens_keep_the_claim_or_get_another() -> None:
    """A step-up keeps it, `renew` changes it; the old tokens are dead, and the new ones go
    on rotating."""
    async with running() as engine:
        issued = await login(engine)
        answer = await engine.sessions.step_up(issued.session.id, 2, claim=CLAIM)
        stepped = new_tokens(answer)  # type: ignore[arg-type]
        refresh = [str(stepped.refresh_token).encode()]
        renew = engine.sessions.renew
        renewed = new_tokens(await renew(issued.session.id, claim="new", refresh=refresh))  # type: ignore[arg-type]
        for old, claim in ((stepped, CLAIM), (renewed, "new")):
            assert old.session.claim == claim
            assert old.session.id == issued.session.id
            assert old.remember
        assert isinstance(await engine.ask(stepped, refresh=False), Invalid)
        assert session_of(await engine.ask(renewed)).claim == "new"
        assert session_of(await engine.ask(renewed)).level == 2
        await engine.expire()
        assert (await engine.refreshed(renewed)).session.claim == "new"
        await engine.sessions.revoke(issued.session.id)
        assert await renew(issued.session.id, claim="x") is None


@pytest.mark.parametrize("verb", ["step_up", "renew"])
async def test_a_handle_replaces_the_tokens_and_sets_the_cookies(verb: str) -> None:
    """What a view calls; the claim of the session stays, or is the new one."""
    async with running() as engine:
        issued = await login(engine)
        seen: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            handle = scope[SCOPE_KEY]
            given = {"level": 2} if verb == "step_up" else {"claim": "new"}
            seen.append((await getattr(handle, verb)(**given)).claim)
            await asgi.responding()(scope, receive, send)

        cookie = (
            f"__Host-session={issued.session_token}; __Host-refresh={issued.refresh_token}"
        )
        scope = asgi.http_scope("/", method="POST", headers=[(b"cookie", cookie.encode())])
        answer = await asgi.serve(SessionAuthMiddleware(app, engine.sessions), scope)
        assert seen == [CLAIM if verb == "step_up" else "new"]
        lines = [v for k, v in answer.start["headers"] if k == b"set-cookie"]
        texts = [line.partition(b";")[0].partition(b"=")[2].decode() for line in lines]
        found = await engine.sessions.authenticate(credentials_of(texts[:1]), LAPTOP)
        assert session_of(found).claim == seen[0]


async def test_a_session_without_a_claim_has_tokens_as_before() -> None:
    """Those that are out stay good, byte for byte."""
    entropy = bytes(range(64))
    pair = Tokens([SECRET]).mint("id", entropy, remember=True)
    assert (len(pair.session), pair.refresh[:5]) == (87, "id.r.")
    async with running() as engine:
        issued = await login(engine, None)
        assert session_of(await engine.ask(issued)).claim is None
        await engine.expire()
        assert (await engine.refreshed(issued)).session.claim is None


@pytest.mark.parametrize("other", ["x", CLAIM[:-1], CLAIM + "A", "", None])
async def test_nobody_else_can_change_a_claim(other: str | None) -> None:
    """It is signed, and the digest in the table is of the whole text."""
    async with running() as engine:
        issued = await login(engine)
        value, _, signature = issued.session_token.split(".")
        text = value + ("" if other is None else f".{other}") + f".{signature}"
        assert isinstance(
            await engine.sessions.authenticate(credentials_of([text]), LAPTOP), Invalid
        )
        sid, kind, state, signature = str(issued.refresh_token).split(".")
        text = f"{sid}.{kind[0]}{other or ''}.{state}.{signature}"
        answer = await engine.sessions.authenticate(credentials_of([], [text]), LAPTOP)
        assert isinstance(answer, Invalid)


async def test_a_claim_stays_while_the_secrets_change() -> None:
    """A rotation under the newer secret carries it on."""
    async with running(secrets=[OLDER]) as engine:
        issued = await login(engine)
        await engine.expire()
    table = {"clock": engine.clock, "store": engine.store}
    async with running(secrets=[OLDER, NEWER], **table) as both:
        fresh = new_tokens(await both.ask(issued))
    async with running(secrets=[NEWER], **table) as newer:
        assert session_of(await newer.ask(fresh)).claim == CLAIM


@pytest.mark.parametrize("claim", ["", "a.b", "a b", "é", "x" * 65, "a\n"])
async def test_what_cannot_stand_in_a_token_is_refused(claim: str) -> None:
    """Before anything is written."""
    async with running() as engine:
        with pytest.raises(ValueError, match="claim"):
            await login(engine, claim)
        assert engine.store.rows == {}


def test_no_claim_shows_itself() -> None:
    """It may be a digest of something."""
    pair = Tokens([SECRET]).mint("id", bytes(64), remember=True, claim=CLAIM)
    token = Tokens([SECRET]).read_refresh(pair.refresh.encode())
    assert token is not None
    assert token.claim == CLAIM
    assert CLAIM not in repr(pair) + repr(token)
    assert sha256(pair.session.encode()).hexdigest() == pair.session_digest
