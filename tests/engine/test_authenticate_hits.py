"""What hits of one cached entry note while it stays in the cache, however long that is."""

from __future__ import annotations

from datetime import timedelta

from handstamp.config import Policy
from tests.support.engines import ALICE, Engine

STAYS = Policy(
    max_staleness=timedelta(minutes=10),
    longest_trust=timedelta(minutes=10),
    touch_every=timedelta(seconds=60),
)


async def test_a_cached_entry_is_touched_again_every_interval() -> None:
    """Hits note activity once an interval and never between, without a new read."""
    engine = Engine(policy=STAYS)
    issued = await engine.sessions.create(ALICE)
    token, written = issued.session_token.encode(), []
    for _ in range(13):
        assert engine.sessions.hit(token) is not None
        written.append(await engine.sessions.flush())
        engine.clock.advance(20)
    assert written == [1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1]
    assert engine.sessions.stats().misses == 0
    await engine.sessions.close()


async def test_a_cached_entry_in_use_outlives_one_that_is_not() -> None:
    """Hits keep their entry young between two touches, so another one is evicted."""
    engine = Engine(policy=STAYS, cache_size=2)
    used = (await engine.sessions.create(ALICE)).session_token.encode()
    engine.sessions.hit(used)
    idle = (await engine.sessions.create(ALICE)).session_token.encode()
    engine.clock.advance(2)
    engine.sessions.hit(used)
    await engine.sessions.create(ALICE)
    assert engine.sessions.hit(used) is not None
    assert engine.sessions.hit(idle) is None
    await engine.sessions.close()
