"""P2 under floods: forged and unknown tokens cost live sessions nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from handstamp import Policy, Sessions
from handstamp.core.cookies import Credentials
from handstamp.core.models import Answer, Client, Invalid, Issued, Reason
from handstamp.core.tokens import ENTROPY, Tokens
from handstamp.engine import invalidation
from handstamp.engine.cache import MAX_NEGATIVE, NEGATIVE_LIFE
from handstamp.stores.shapes import UUID_PLAIN
from tests.faults.fleet import until
from tests.support.tables import PostgresTable, postgres_table

pytestmark = pytest.mark.slow

SECRET = "the secret of the flood tests: 32 bytes and more"
LIVE = 200
FLOOD = 20_000


class Hourglass:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.shows = 1000.0

    def __call__(self) -> float:
        return self.shows


@pytest.fixture
def clock() -> Hourglass:
    """The engine's clock, which only the test moves."""
    return Hourglass()


@pytest.fixture
async def table(dsn: str) -> AsyncIterator[PostgresTable]:
    """A real table."""
    async with postgres_table(dsn) as table:
        yield table


@pytest.fixture
async def sessions(
    dsn: str, table: PostgresTable, clock: Hourglass, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Sessions]:
    """An engine whose cache has room for ``LIVE`` sessions and not one more. On a busy
    machine its listener waits a minute for the server: reconnecting empties the cache."""
    monkeypatch.setattr(invalidation, "PROOF_TIMEOUT", 60.0)
    engine = Sessions(dsn, secret=SECRET, cache_size=LIVE, clock=clock)
    async with engine:
        await until(lambda: _listens(engine), "the listener to start with an empty cache")
        yield engine


async def _listens(sessions: Sessions) -> bool:
    return sessions.stats().listener == "listening"


async def _live(sessions: Sessions, table: PostgresTable) -> list[Issued]:
    user = await table.add_user()
    return [await sessions.create(user, remember=True) for _ in range(LIVE)]


async def _ask(sessions: Sessions, token: bytes) -> Answer:
    credentials = Credentials(session=(token,), refresh=(), sent=True, ambient=True)
    return await sessions.authenticate(credentials, Client())


def _genuine(number: int) -> list[bytes]:
    """Session tokens with our signature that no table ever knew."""
    tokens = Tokens([SECRET])
    pairs = (
        tokens.mint("x", os.urandom(2 * ENTROPY), remember=True) for _ in range(number)
    )
    return [pair.session.encode() for pair in pairs]


def _forged(number: int) -> list[bytes]:
    """Session tokens in our format, signed with another key."""
    tokens = Tokens([SECRET[::-1]])
    pairs = (
        tokens.mint("x", os.urandom(2 * ENTROPY), remember=True) for _ in range(number)
    )
    return [pair.session.encode() for pair in pairs]


def _hits(sessions: Sessions, live: list[Issued]) -> int:
    return sum(sessions.hit(one.session_token.encode()) is not None for one in live)


async def test_P2_C35_C37_N18_a_flood_of_forged_tokens_costs_no_query_and_no_entry(
    sessions: Sessions, table: PostgresTable
) -> None:
    """Twenty thousand of them are refused by their signature alone."""
    live = await _live(sessions, table)
    before = sessions.stats()
    for token in _forged(FLOOD):
        assert await _ask(sessions, token) == Invalid(Reason.FORGED)
    after = sessions.stats()
    assert (after.queries, after.misses) == (before.queries, before.misses)
    assert _hits(sessions, live) == LIVE


async def test_P2_C37_N18_a_flood_of_unknown_tokens_evicts_no_live_session(
    sessions: Sessions, table: PostgresTable
) -> None:
    """Twenty thousand signed tokens without a row share queries, fill a bounded place of
    their own, and leave a cache that was exactly full as it was."""
    live = await _live(sessions, table)
    before = sessions.stats()
    tokens = _genuine(FLOOD)
    for start in range(0, FLOOD, 1000):
        asked = (_ask(sessions, token) for token in tokens[start : start + 1000])
        answers = await asyncio.gather(*asked)
        assert {Invalid(Reason.NOT_FOUND)} == set(answers)
    after = sessions.stats()
    assert after.misses - before.misses == FLOOD
    assert after.queries - before.queries < FLOOD / 100
    assert len(sessions._authenticator._negative_cache) == MAX_NEGATIVE
    assert after.cached == LIVE
    assert _hits(sessions, live) == LIVE


async def test_P2_C36_an_unknown_token_costs_one_query_in_its_life(
    sessions: Sessions, clock: Hourglass
) -> None:
    """However often it is sent, it is looked up once in ``NEGATIVE_LIFE`` seconds."""
    await sessions.ping()
    (token,) = _genuine(1)
    before = sessions.stats().queries
    for lives in (1, 2, 3):
        for _ in range(1000):
            assert await _ask(sessions, token) == Invalid(Reason.NOT_FOUND)
        assert sessions.stats().queries - before == lives
        clock.shows += NEGATIVE_LIFE


async def test_P2_C37_a_flood_of_made_up_tokens_in_plaintext_leaves_no_text_behind(
    uuid_dsn: str,
) -> None:
    """On a table that holds plaintext tokens each of them is asked for, and sent again
    beside a new one; what was sent is not kept, and what was learned has a bound."""
    patient = Policy(time_budget=timedelta(seconds=30))
    async with Sessions(
        uuid_dsn, secret=SECRET, shape=UUID_PLAIN, policy=patient
    ) as sessions:
        texts = [os.urandom(16).hex().encode() for _ in range(FLOOD)]
        for start in range(500, FLOOD, 500):
            new, old = texts[start : start + 500], texts[start - 500 : start]
            sent = [Credentials(session=pair) for pair in zip(new, old, strict=True)]
            asked = (sessions.authenticate(each, Client()) for each in sent)
            assert {Invalid(Reason.NOT_FOUND)} == set(await asyncio.gather(*asked))
        sent_texts = {text.decode() for text in texts}
        assert sent_texts & set(_reachable(sessions._authenticator._loader)) == set()
        assert len(sessions._authenticator._negative_cache) == MAX_NEGATIVE


def _reachable(root: object) -> list[str]:
    """Every string that is reached from ``root`` through attributes and containers."""
    found, seen, ahead = [], set[int](), [root]
    while ahead:
        thing = ahead.pop()
        if id(thing) in seen or isinstance(thing, type | asyncio.AbstractEventLoop):
            continue
        seen.add(id(thing))
        if isinstance(thing, str):
            found.append(thing)
        elif isinstance(thing, dict):
            ahead += [*thing, *thing.values()]
        elif isinstance(thing, list | tuple | set):
            ahead += thing
        else:
            ahead += [*getattr(thing, "__dict__", {}).values()]
            slots = getattr(type(thing), "__slots__", ())
            ahead += [getattr(thing, name, None) for name in slots]
    return found
