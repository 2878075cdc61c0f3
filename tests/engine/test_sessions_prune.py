"""Pruning: batch by batch, until a batch is not full."""

from __future__ import annotations

from datetime import timedelta

import pytest

from handstamp.config import Policy
from handstamp.engine import sessions
from handstamp.errors import SessionsUnavailable
from handstamp.stores.memory import MemoryStore
from tests.support.clock import FakeClock
from tests.support.engines import running
from tests.support.tables import POLICY, new_session


class Batches(MemoryStore):
    """Notes how many rows each batch took."""

    taken: list[int]

    async def prune(self, policy: Policy, *, batch: int) -> int:
        self.taken.append(await super().prune(policy, batch=batch))
        return self.taken[-1]


@pytest.mark.parametrize(
    ("rows", "taken"), [(0, [0]), (4, [4]), (5, [5, 0]), (12, [5, 5, 2])]
)
async def test_every_batch_is_small(
    rows: int, taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one is the first that is not full."""
    monkeypatch.setattr(sessions, "PRUNE_BATCH", 5)
    clock = FakeClock()
    store = Batches(clock.now)
    store.taken = []
    for _ in range(rows):
        await store.create(new_session("alice"), POLICY)
    clock.advance(timedelta(days=400))
    async with running(store=store, clock=clock) as engine:
        assert await engine.sessions.prune() == rows
    assert store.taken == taken


async def test_an_outage_ends_the_pruning() -> None:
    """What was deleted is deleted; the rest is for the next time."""
    async with running() as engine:
        engine.store.down = True
        with pytest.raises(SessionsUnavailable):
            await engine.sessions.prune()
