"""BatchLoader: which loaders share a query, and its faults. SingleFlight: its bound."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable, Sequence

import pytest

from handstamp.config import Policy
from handstamp.core.models import Record, Unknown
from handstamp.engine.batching import MAX_KEYS, BatchLoader, SingleFlight
from handstamp.errors import SessionsUnavailable
from handstamp.stores.memory import MemoryStore
from tests.support.engines import LAPTOP, Engine, credentials_of, running
from tests.support.tables import new_session
from tests.support.waiting import turns, until


class HeldStore(MemoryStore):
    """A store whose queries are answered when a test releases them."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[str]] = []
        self.tokens: list[list[str]] = []
        self.holds = False
        self.held: list[asyncio.Future[None]] = []

    async def find(self, digests: Sequence[str]) -> Sequence[Record]:
        return await self.find_plaintext(digests, [])

    async def find_plaintext(
        self, digests: Sequence[str], tokens: Sequence[str]
    ) -> Sequence[Record]:
        self.batches.append(list(digests))
        self.tokens.append(list(tokens))
        if self.holds:
            held = asyncio.get_running_loop().create_future()
            self.held.append(held)
            await held
        return await super().find(digests)

    def release(self, number: int = 0, fault: Exception | None = None) -> None:
        """Answer the oldest held query, or the one with this number."""
        held = self.held.pop(number)
        if fault is None:
            held.set_result(None)
        else:
            held.set_exception(fault)

    async def add(self, number: int = 1) -> list[str]:
        """New rows; their digests."""
        rows = [new_session("alice") for _ in range(number)]
        for row in rows:
            await self.create(row, None)  # type: ignore[arg-type]
        return [row.token_digest for row in rows]


@pytest.fixture
async def store() -> HeldStore:
    """An empty store, without delays."""
    return HeldStore()


def start(loader: BatchLoader, *lookups: Sequence[str]) -> list[asyncio.Task[list[Record]]]:
    return [asyncio.ensure_future(loader.load(list(digests))) for digests in lookups]


def digests_of(records: Sequence[Record]) -> list[str]:
    return [record.token_digest for record in records]


async def fill(loader: BatchLoader, store: HeldStore) -> list[asyncio.Task[list[Record]]]:
    """Start as many queries as the loader may run, and hold them."""
    store.holds = True
    held = []
    for n in range(loader._max_batches):
        held += start(loader, [f"held {n}"])
        await until(lambda n=n: len(store.held) == n + 1)
    return held


# Rule 1: no lookup waits for others to join it.


async def test_a_single_lookup_is_sent_at_once(store: HeldStore) -> None:
    """While fewer queries run than may, it is sent in the next turn of the loop."""
    (digest,) = await store.add()
    loader = BatchLoader(store)
    (task,) = start(loader, [digest])
    await turns(4)
    assert store.batches == [[digest]]
    assert digests_of(await task) == [digest]


async def test_lookups_do_not_collect_while_another_query_may_run(store: HeldStore) -> None:
    """As many lookups as queries may run are sent one after another, each alone."""
    loader = BatchLoader(store, max_batches=3)
    held = await fill(loader, store)
    assert [len(batch) for batch in store.batches] == [1, 1, 1]
    for _ in range(3):
        store.release()
    assert await asyncio.gather(*held) == [[], [], []]


async def test_c64_many_misses_of_one_turn_are_one_query(store: HeldStore) -> None:
    """A thousand at once cost one round trip, and each gets its own row."""
    digests = await store.add(1000)
    loader = BatchLoader(store)
    found = await asyncio.gather(*start(loader, *([digest] for digest in digests)))
    assert [digests_of(records) for records in found] == [[digest] for digest in digests]
    assert (len(store.batches), loader.batches) == (1, 1)


async def test_lookups_collect_while_no_other_query_may_run(store: HeldStore) -> None:
    """Five hundred lookups collect behind two slow queries, and the next one has them."""
    digests = await store.add(500)
    loader = BatchLoader(store, max_batches=2)
    held = await fill(loader, store)
    waiting = []
    for digest in digests:
        waiting += start(loader, [digest])
        await asyncio.sleep(0)
    await turns()
    assert loader.batches == 2
    store.holds = False
    store.release()
    found = await asyncio.gather(*waiting)
    assert [digests_of(records) for records in found] == [[digest] for digest in digests]
    assert loader.batches == 3
    store.release()
    await asyncio.gather(*held)


async def test_c64_ten_thousand_misses_of_one_token_are_one_query(store: HeldStore) -> None:
    """They share one digest in one query, and all get the row."""
    (digest,) = await store.add()
    found = await asyncio.gather(*start(BatchLoader(store), *([[digest]] * 10_000)))
    assert all(digests_of(records) == [digest] for records in found)
    assert store.batches == [[digest]]


async def test_a_running_query_is_not_joined(store: HeldStore) -> None:
    """A later lookup of the same digest is a new query: its result must not be older."""
    (digest,) = await store.add()
    loader = BatchLoader(store)
    store.holds = True
    first = start(loader, [digest])
    await until(lambda: len(store.held) == 1)
    second = start(loader, [digest])
    await until(lambda: len(store.held) == 2)
    assert store.batches == [[digest], [digest]]
    store.release()
    store.release()
    await asyncio.gather(*first, *second)


async def test_a_query_is_bounded(store: HeldStore) -> None:
    """A batch has at most so many digests; the others are in the next ones."""
    digests = await store.add(10)
    loader = BatchLoader(store, max_batches=1, max_digests=4)
    found = await asyncio.gather(*start(loader, *([digest] for digest in digests)))
    assert [digests_of(records) for records in found] == [[digest] for digest in digests]
    assert [len(batch) for batch in store.batches] == [4, 4, 2]


async def test_several_digests_of_one_request_are_one_query(store: HeldStore) -> None:
    """They come back in one list, without unknown digests and without duplicates."""
    one, two = await store.add(2)
    found = await BatchLoader(store).load([one, "unknown", two, one])
    assert digests_of(found) == [one, two]
    assert store.batches == [[one, "unknown", two]]


# Rule 2: a batch shares the result of its own query only.


async def test_c65_a_slow_query_delays_its_own_batch_only(store: HeldStore) -> None:
    """Other queries are sent and answered meanwhile."""
    slow, quick = await store.add(2)
    loader = BatchLoader(store)
    store.holds = True
    (waits,) = start(loader, [slow])
    await until(lambda: store.held)
    store.holds = False
    assert digests_of(await loader.load([quick])) == [quick]
    assert not waits.done()
    store.release()
    assert digests_of(await waits) == [slow]


async def test_a_failed_query_fails_its_own_batch_only(store: HeldStore) -> None:
    """Each of its lookups raises the fault, and none of the other batch."""
    bad, worse, good = await store.add(3)
    loader = BatchLoader(store)
    store.holds = True
    failing = start(loader, [bad], [worse])
    await until(lambda: len(store.held) == 1)
    fine = start(loader, [good])
    await until(lambda: len(store.held) == 2)
    store.release(0, SessionsUnavailable("no"))
    store.release(0)
    faults = await asyncio.gather(*failing, return_exceptions=True)
    assert [type(fault) for fault in faults] == [SessionsUnavailable] * 2
    assert digests_of(await fine[0]) == [good]
    store.holds = False
    assert digests_of(await loader.load([bad])) == [bad]


async def test_a_pending_batch_is_sent_after_a_failed_query_too(store: HeldStore) -> None:
    """A failed query makes room for the next batch, as any other does."""
    (digest,) = await store.add()
    loader = BatchLoader(store, max_batches=1)
    held = await fill(loader, store)
    (waits,) = start(loader, [digest])
    await turns()
    store.holds = False
    store.release(0, SessionsUnavailable("no"))
    assert digests_of(await waits) == [digest]
    with pytest.raises(SessionsUnavailable):
        await held[0]


# Rules 3 and 4: a cancelled caller cancels no other one, and leaves nothing behind.


@pytest.mark.parametrize("who", ["first", "last"])
@pytest.mark.parametrize("when", ["pending", "sent"])
async def test_c64_a_cancelled_caller_cancels_no_other(
    store: HeldStore, who: str, when: str
) -> None:
    """Whether it came first or last, before the query was sent or after."""
    (digest,) = await store.add()
    loader = BatchLoader(store)
    store.holds = True
    tasks = start(loader, *([[digest]] * 3))
    if when == "sent":
        await until(lambda: store.held)
    else:
        await asyncio.sleep(0)
        assert store.held == []
    cancelled = tasks.pop(0 if who == "first" else -1)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    assert cancelled.cancelled()
    await until(lambda: store.held)
    store.release()
    found = await asyncio.gather(*tasks)
    assert [digests_of(records) for records in found] == [[digest]] * 2


@pytest.mark.parametrize("fault", [None, SessionsUnavailable("no")])
async def test_a_cancelled_caller_leaves_nothing_behind(
    store: HeldStore, fault: Exception | None
) -> None:
    """No lookup, no task, and no warning about an exception that was not retrieved."""
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, c: complaints.append(c))
    loader = BatchLoader(store)
    store.holds = True
    (task,) = start(loader, ["digest"])
    await until(lambda: store.held)
    task.cancel()
    await asyncio.wait([task])
    store.release(0, fault)
    await until(lambda: not loader._running)
    gc.collect()
    await turns()
    assert (loader._pending, loader._running, complaints) == ({}, set(), [])


async def test_a_thousand_cancelled_callers_leave_nothing_behind(store: HeldStore) -> None:
    """They are cancelled while no query may be sent; the loader is empty afterwards."""
    loader = BatchLoader(store, max_batches=1)
    held = await fill(loader, store)
    waiting = start(loader, *([f"{n}"] for n in range(1000)))
    await turns()
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    store.holds = False
    store.release()
    await asyncio.gather(*held)
    await until(lambda: not loader._running)
    assert loader._pending == {}


@pytest.mark.parametrize("seed", range(5))
async def test_no_wake_up_is_lost(store: HeldStore, seed: int) -> None:
    """Thousands of lookups come, end and fail at random: each that stays has a result."""
    chance = random.Random(seed)
    digests = await store.add(20)
    loader = BatchLoader(store, max_batches=2, max_digests=5)

    class QueryFailed(Exception):
        """A query that failed."""

    inner = store.find

    async def find(digests: Sequence[str]) -> Sequence[Record]:
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(0)
        if chance.random() < 0.1:
            raise QueryFailed
        return await inner(digests)

    store.find = find  # type: ignore[method-assign]

    async def ask() -> str:
        digest = chance.choice(digests)
        try:
            assert digests_of(await loader.load([digest])) == [digest]
        except QueryFailed:
            return "failed"
        return "answered"

    tasks = []
    for _ in range(2000):
        tasks.append(asyncio.ensure_future(ask()))
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
        if chance.random() < 0.5:
            await asyncio.sleep(0)
    async with asyncio.timeout(120):
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    kinds = {end if isinstance(end, str) else type(end) for end in ends}
    assert kinds == {"answered", "failed", asyncio.CancelledError}
    await until(lambda: not loader._running)
    assert loader._pending == {}


# A token is kept as long as the lookup that it belongs to.


async def test_a_token_without_a_digest_is_not_kept(store: HeldStore) -> None:
    """A token whose digest is not looked up is neither sent nor kept."""
    loader = BatchLoader(store)
    await loader.load(["one"], {"one": "token of one", "two": "token of two"})
    assert store.tokens == [["token of one"]]
    assert loader._pending == {}
    assert "token of two" not in everything_in(loader)


async def test_a_lookup_of_the_next_turn_has_its_token_too(store: HeldStore) -> None:
    """The first query is a task that has not started; the second one has its own token."""
    loader = BatchLoader(store)
    tokens = {"one": "token of one"}

    async def load_a_turn_later() -> list[Record]:
        return await asyncio.ensure_future(loader.load(["one"], tokens))

    await asyncio.gather(loader.load(["one"], tokens), load_a_turn_later())
    assert store.tokens == [["token of one"], ["token of one"]]


async def test_p2_cancelled_lookups_are_not_kept(store: HeldStore) -> None:
    """While no query may be sent, ten thousand callers come and are cancelled."""
    loader = BatchLoader(store, max_batches=1)
    held = await fill(loader, store)
    kept = start(loader, ["kept"])
    for first in range(0, 10_000, 1000):
        names = [str(n) for n in range(first, first + 1000)]
        waiting = [
            asyncio.ensure_future(loader.load([n, n, "kept"], {n: f"token {n}"}))
            for n in names
        ]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
    assert list(loader._pending) == ["kept"]
    assert "token " not in everything_in(loader)
    store.holds = False
    store.release()
    assert await asyncio.gather(*held, *kept) == [[], []]


def everything_in(loader: BatchLoader) -> str:
    """Every string in the dictionaries of a loader and in their values."""
    dicts = [value for value in vars(loader).values() if isinstance(value, dict)]
    values = [value for each in dicts for value in (*each, *each.values())]
    return repr([getattr(value, "token", value) for value in values])


# Event loops change.


def abandoned(work: Callable[[], Awaitable[object]], held: Callable[[], bool]) -> None:
    """Run on a loop of its own, which is closed once ``held()``; nothing is awaited."""

    async def begin() -> asyncio.Future[object]:
        task = asyncio.ensure_future(work())
        await until(held)
        assert not task.done()
        return task

    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(begin())
    loop.close()
    del task


def test_c141_a_closed_loop_delays_no_other() -> None:
    """Its queries and callers never end: the next loop starts without them."""
    store = HeldStore()
    (digest,) = asyncio.run(store.add())
    loader = BatchLoader(store, max_batches=1)
    store.holds = True
    abandoned(lambda: loader.load([digest]), lambda: len(store.held) == 1)

    async def load_two() -> list[Record]:
        start(loader, ["another"])
        return await loader.load([digest])

    abandoned(load_two, lambda: len(store.held) == 2)
    store.holds = False
    assert digests_of(asyncio.run(loader.load([digest]))) == [digest]
    store.held.clear()
    gc.collect()  # what the closed loops leave causes no warning


def test_c141_a_loader_works_on_one_loop_after_another() -> None:
    """Each of them as if it were the only one."""
    store = HeldStore()
    (digest,) = asyncio.run(store.add())
    loader = BatchLoader(store)
    for _ in range(6):
        assert digests_of(asyncio.run(loader.load([digest]))) == [digest]


# SingleFlight, rule 5: the number of calls is bounded.


async def test_p2_calls_of_single_flight_are_bounded() -> None:
    """A new key above the bound is refused at once, a known key is not; a call that ends
    makes room."""
    calls: SingleFlight[int, int] = SingleFlight(max_keys=3)
    released = asyncio.Event()

    async def call() -> int:
        await released.wait()
        return 1

    running_calls = [asyncio.ensure_future(calls.do(key, call)) for key in range(3)]
    await until(lambda: len(calls) == 3)
    with pytest.raises(SessionsUnavailable, match="too many"):
        await calls.do(3, call)
    joined = asyncio.ensure_future(calls.do(0, call))
    released.set()
    assert await asyncio.gather(*running_calls, joined) == [1] * 4
    assert await calls.do(3, call) == 1
    assert calls == {}


def test_c141_calls_of_a_closed_loop_do_not_count() -> None:
    """They never end; the next loop has the whole bound."""
    calls: SingleFlight[int, int] = SingleFlight(max_keys=3)
    tasks: list[asyncio.Future[int]] = []

    async def stuck() -> int:
        return await asyncio.Future()

    async def begin() -> None:
        tasks.extend(asyncio.ensure_future(calls.do(key, stuck)) for key in range(3))
        await until(lambda: len(calls) == 3)

    async def call() -> int:
        return 1

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.close()
    assert asyncio.run(calls.do(3, call)) == 1
    assert calls == {}


async def test_p2_refreshes_with_unsigned_tokens_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where unsigned tokens are accepted, each of them is a query. While the table does
    not answer, and the clients are cancelled, only so many run."""
    async with running(policy=Policy(accept_unsigned=True)) as engine:
        calls = engine.sessions._refresher._single_flight
        monkeypatch.setattr(calls, "_max_keys", 50)
        released = asyncio.Event()

        async def find_by_refresh(digest: str) -> None:
            await released.wait()

        monkeypatch.setattr(engine.store, "find_by_refresh", find_by_refresh)
        clients = [asyncio.ensure_future(present(engine, number)) for number in range(50)]
        await until(lambda: len(calls) == 50)
        for client in clients:
            client.cancel()
        await asyncio.wait(clients)
        for number in range(50, 150):
            assert isinstance(await present(engine, number), Unknown)
        assert len(calls) == 50
        released.set()
        await until(lambda: not calls)
    assert MAX_KEYS == 10_000


async def present(engine: Engine, number: int) -> object:
    """A request with a refresh token that was never issued."""
    made_up = credentials_of([], [f"made up {number}"])
    return await engine.sessions.authenticate(made_up, LAPTOP)
