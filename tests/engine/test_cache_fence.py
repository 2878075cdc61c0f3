"""The fence between two processes on one PostgreSQL, in every order there is.

A read takes its ticket (T), its query is answered (Q), the answer comes back through the
group lookup (R) and is put into the cache (P). Meanwhile a revocation commits (C) and is
heard of here (N). Each order of the six is forced, by gates; none is hoped for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256
from itertools import permutations
from typing import Any

import asyncpg
import pytest
from ulid import ULID

from handstamp.config import Policy
from handstamp.core.models import Invalid, Issued, Record
from handstamp.engine import cache
from handstamp.engine.sessions import Sessions
from handstamp.stores.base import Channel, Ended, ListenConnection
from handstamp.stores.install import install
from handstamp.stores.table import TableStore
from tests.support.engines import LAPTOP, SECRET, credentials_of, seconds
from tests.support.waiting import until

ORDERS = sorted(
    {
        "".join(order)
        for order in permutations("TQRPCN")
        if [s for s in order if s in "TQRP"] == list("TQRP")
        and order.index("C") < order.index("N")
    }
)
POLICY = Policy(time_budget=seconds(30), max_staleness=seconds(60))


class Gates:
    """Places where a task waits until it is let through; open unless armed."""

    def __init__(self) -> None:
        self._shut: dict[str, asyncio.Event] = {}
        self.waiting: set[str] = set()

    def arm(self, names: str) -> None:
        self._shut = {name: asyncio.Event() for name in names}

    async def wait(self, name: str) -> None:
        if name in self._shut:
            self.waiting.add(name)
            await self._shut[name].wait()
            self.waiting.discard(name)

    async def reached(self, name: str) -> None:
        await until(lambda: name in self.waiting)

    def let(self, name: str) -> None:
        self._shut[name].set()


class Held:
    """A channel whose notices wait until they are released; canaries pass."""

    def __init__(self, inner: Channel) -> None:
        self._inner = inner
        self.kept: list[str] | None = None
        self._heard: Callable[[str], None] = print

    async def listen(
        self, heard: Callable[[str], None], lost: Callable[[], None]
    ) -> ListenConnection:
        self._heard = heard
        return await self._inner.listen(self._hear, lost)

    def _hear(self, payload: str) -> None:
        if self.kept is None or payload.startswith("c:"):
            self._heard(payload)
        else:
            self.kept.append(payload)

    async def notify(self, payload: str) -> None:
        await self._inner.notify(payload)

    def release(self) -> None:
        kept, self.kept = self.kept or [], None
        for payload in kept:
            self._heard(payload)


class GatedStore(TableStore):
    """A real table; its answers pass gates."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self.gates = Gates()
        self.held = Held(super().channel)

    @property
    def channel(self) -> Channel:
        return self.held

    async def find(self, digests: Sequence[str]) -> Sequence[Record]:
        await self.gates.wait("Q")
        records = await super().find(digests)
        await self.gates.wait("R")
        return records

    async def revoke(self, session_id: str, **options: Any) -> Ended | None:
        ended = await super().revoke(session_id, **options)
        await self.gates.wait("N")
        return ended


class Two:
    """This process, whose every step is gated, and another one."""

    def __init__(self, dsn: str, here: Sessions, there: Sessions, user: str) -> None:
        self.dsn = dsn
        self.here = here
        self.there = there
        self.user = user
        self.store: GatedStore = here.store  # type: ignore[assignment]
        self.gates = self.store.gates

    async def is_left_cached(self, order: str, revoke: Revoke) -> bool:
        """Run one order; whether the revoked session is believed here at the end."""
        issued = await self.there.create(self.user, client=LAPTOP)
        token = issued.session_token.encode()
        self.store.held.kept = []
        self.gates.arm("QRPN")
        tasks: dict[str, asyncio.Task[Any]] = {}
        for step in order:
            await self._step(step, issued, revoke, tasks)
        await asyncio.gather(*tasks.values())
        self.gates.arm("")
        cached = self.here._state.cache.get(sha256(token).digest())
        if self.here.hit(token) is not None or cached is not None:
            return True
        answer = await self._ask(issued)
        assert isinstance(answer, Invalid), order
        return False

    async def _step(
        self,
        step: str,
        issued: Issued,
        revoke: Revoke,
        tasks: dict[str, asyncio.Task[Any]],
    ) -> None:
        if step == "T":
            tasks["read"] = asyncio.ensure_future(self._ask(issued))
            await self.gates.reached("Q")
        elif step == "Q":
            self.gates.let("Q")
            await self.gates.reached("R")
        elif step == "R":
            self.gates.let("R")
            await self.gates.reached("P")
        elif step == "P":
            self.gates.let("P")
            await tasks["read"]
        elif step == "C":
            tasks["revoke"] = asyncio.ensure_future(revoke(self, issued))
            await until(lambda: self.store.held.kept)
        else:
            self.gates.let("N")
            self.store.held.release()
            await tasks["revoke"]

    async def _ask(self, issued: Issued) -> object:
        return await self.here.authenticate(credentials_of([issued.session_token]), LAPTOP)


Revoke = Callable[[Two, Issued], Awaitable[object]]


async def by_api_elsewhere(two: Two, issued: Issued) -> None:
    """The other process revokes the session."""
    assert await two.there.revoke(issued.session.id)


async def by_api_here(two: Two, issued: Issued) -> None:
    """This process revokes it itself."""
    assert await two.here.revoke(issued.session.id)


async def with_its_user(two: Two, issued: Issued) -> None:
    """The other process ends every session of the user."""
    assert await two.there.revoke_user(issued.session.user_id) == 1


async def by_sql(two: Two, issued: Issued) -> None:
    """An administrator writes to the table, and the trigger notifies."""
    connection = await asyncpg.connect(two.dsn)
    await connection.execute(
        "update user_sessions set is_active = false where id = $1", issued.session.id
    )
    await connection.close()


async def by_deletion(two: Two, issued: Issued) -> None:
    """The row is deleted."""
    connection = await asyncpg.connect(two.dsn)
    await connection.execute("delete from user_sessions where id = $1", issued.session.id)
    await connection.close()


WAYS: list[Revoke] = [by_api_elsewhere, by_api_here, with_its_user, by_sql, by_deletion]


@asynccontextmanager
async def two_processes(dsn: str) -> AsyncIterator[Two]:
    connection = await asyncpg.connect(dsn)
    await install(connection, "ulid", trigger=True)
    user = str(ULID())
    await connection.execute(
        "insert into users (id, username, password_hash, email_hash, last_password_change)"
        " values ($1, 'alice', 'x', 'x', null)",
        user,
    )
    await connection.close()
    async with AsyncExitStack() as stack:
        here, there = [
            await stack.enter_async_context(Sessions(store, secret=SECRET, policy=POLICY))
            for store in (GatedStore(dsn), TableStore(dsn))
        ]
        two = Two(dsn, here, there, user)
        gate_the_lookup(two)
        await until(lambda: here.clock() < here._listener.trusted_until)
        yield two


def gate_the_lookup(two: Two) -> None:
    loader = two.here._authenticator._loader
    inner = loader.load

    async def load(digests: Sequence[str]) -> list[Record]:
        records = await inner(digests)
        await two.gates.wait("P")
        return records

    loader.load = load  # type: ignore[method-assign]


@pytest.fixture
def no_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deliberately broken variant: every read may be put."""
    monkeypatch.setattr(cache._Fence, "allows", lambda *_: True)


def test_there_are_fifteen_orders() -> None:
    """Six steps, of which four and two are in order."""
    assert len(ORDERS) == 15


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_c51_no_order_leaves_a_revoked_session_cached(dsn: str, way: Revoke) -> None:
    """Whoever revokes it, in whatever moment of a read, it is refused here afterwards."""
    async with two_processes(dsn) as two:
        left = [order for order in ORDERS if await two.is_left_cached(order, way)]
    assert left == []


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_c51_without_the_fence_some_orders_do(
    dsn: str, way: Revoke, no_fence: None
) -> None:
    """Those in which the query was answered before the commit and put after the notice."""
    async with two_processes(dsn) as two:
        left = [order for order in ORDERS if await two.is_left_cached(order, way)]
    assert left == ["TQCNRP", "TQCRNP", "TQRCNP"]
