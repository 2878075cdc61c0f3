"""Group lookup: who leaves together, who waits for whom, and who fails with whom."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable, Sequence

import pytest

from handstamp.core.models import Record
from handstamp.engine.batching import BatchLoader
from handstamp.errors import SessionsUnavailable
from handstamp.stores.memory import MemoryStore
from tests.support.tables import new_session
from tests.support.waiting import turns, until

Found = Awaitable[list[Record]]


class Road(MemoryStore):
    """A store whose queries arrive when a test lets them."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[str]] = []
        self.texts: list[list[str]] = []
        self.free = True
        self.departures: list[asyncio.Future[None]] = []

    async def find(
        self, digests: Sequence[str], texts: Sequence[str] = ()
    ) -> Sequence[Record]:
        self.asked.append(list(digests))
        self.texts.append(list(texts))
        if not self.free:
            departure = asyncio.get_running_loop().create_future()
            self.departures.append(departure)
            await departure
        return await super().find(digests)

    def arrive(self, number: int = 0, fault: Exception | None = None) -> None:
        """Let the oldest query that is on its way, or another one, have its answer."""
        departure = self.departures.pop(number)
        if fault is None:
            departure.set_result(None)
        else:
            departure.set_exception(fault)

    async def add(self, number: int = 1) -> list[str]:
        """New rows; their digests."""
        rows = [new_session("alice") for _ in range(number)]
        for row in rows:
            await self.create(row, None)  # type: ignore[arg-type]
        return [row.token_digest for row in rows]


@pytest.fixture
async def road() -> Road:
    """An empty store, without delays."""
    return Road()


def asking(lookup: BatchLoader, *groups: Sequence[str]) -> list[asyncio.Task[list[Record]]]:
    return [asyncio.ensure_future(lookup.find(list(group))) for group in groups]


def digests_of(records: Sequence[Record]) -> list[str]:
    return [record.token_digest for record in records]


async def full(lookup: BatchLoader, road: Road) -> list[asyncio.Task[list[Record]]]:
    """Send every lane on its way."""
    road.free = False
    away = []
    for n in range(lookup._max_batches):
        away += asking(lookup, [f"away {n}"])
        await until(lambda n=n: len(road.departures) == n + 1)
    return away


# Rule 1: nobody waits for company.


async def test_a_single_lookup_leaves_at_once(road: Road) -> None:
    """With a free lane the query goes out in the next turn of the loop."""
    (digest,) = await road.add()
    lookup = BatchLoader(road)
    (task,) = asking(lookup, [digest])
    await turns(4)
    assert road.asked == [[digest]]
    assert digests_of(await task) == [digest]


async def test_a_free_lane_is_not_kept_waiting(road: Road) -> None:
    """As many lookups as there are lanes leave one after another, each on its own."""
    lookup = BatchLoader(road, pool=3)
    away = await full(lookup, road)
    assert [len(group) for group in road.asked] == [1, 1, 1]
    for _ in range(3):
        road.arrive()
    assert await asyncio.gather(*away) == [[], [], []]


async def test_c64_many_misses_of_one_turn_are_one_query(road: Road) -> None:
    """A thousand at once cost one round trip, and each gets its own row."""
    digests = await road.add(1000)
    lookup = BatchLoader(road)
    found = await asyncio.gather(*asking(lookup, *([digest] for digest in digests)))
    assert [digests_of(records) for records in found] == [[digest] for digest in digests]
    assert (len(road.asked), lookup.groups) == (1, 1)


async def test_whoever_comes_while_all_lanes_are_away_leaves_together(road: Road) -> None:
    """Five hundred lookups gather behind two slow ones, and the next lane takes them."""
    digests = await road.add(500)
    lookup = BatchLoader(road, pool=2)
    away = await full(lookup, road)
    waiting = []
    for digest in digests:
        waiting += asking(lookup, [digest])
        await asyncio.sleep(0)
    await turns()
    assert lookup.groups == 2
    road.free = True
    road.arrive()
    found = await asyncio.gather(*waiting)
    assert [digests_of(records) for records in found] == [[digest] for digest in digests]
    assert lookup.groups == 3
    road.arrive()
    await asyncio.gather(*away)


async def test_c64_ten_thousand_misses_of_one_token_are_one_query(road: Road) -> None:
    """They share one digest in one query, and all get the row."""
    (digest,) = await road.add()
    found = await asyncio.gather(*asking(BatchLoader(road), *([[digest]] * 10_000)))
    assert all(digests_of(records) == [digest] for records in found)
    assert road.asked == [[digest]]


async def test_a_query_on_its_way_is_not_joined(road: Road) -> None:
    """A later lookup of the same digest asks again: the answer must be of its own time."""
    (digest,) = await road.add()
    lookup = BatchLoader(road)
    road.free = False
    first = asking(lookup, [digest])
    await until(lambda: len(road.departures) == 1)
    second = asking(lookup, [digest])
    await until(lambda: len(road.departures) == 2)
    assert road.asked == [[digest], [digest]]
    road.arrive()
    road.arrive()
    await asyncio.gather(*first, *second)


async def test_a_query_is_bounded(road: Road) -> None:
    """A group takes at most so many digests; the others are not forgotten."""
    digests = await road.add(10)
    lookup = BatchLoader(road, pool=1, most=4)
    found = await asyncio.gather(*asking(lookup, *([digest] for digest in digests)))
    assert [digests_of(records) for records in found] == [[digest] for digest in digests]
    assert [len(group) for group in road.asked] == [4, 4, 2]


async def test_several_digests_of_one_request_are_one_query(road: Road) -> None:
    """They come back in one list, without those nobody knows and without doubles."""
    one, two = await road.add(2)
    found = await BatchLoader(road).find([one, "unknown", two, one])
    assert digests_of(found) == [one, two]
    assert road.asked == [[one, "unknown", two]]


# Rule 2: a group shares its query's fate, and nobody else's.


async def test_c65_a_slow_group_delays_its_own_members_only(road: Road) -> None:
    """Others leave on the other lanes and are answered meanwhile."""
    slow, quick = await road.add(2)
    lookup = BatchLoader(road)
    road.free = False
    (waits,) = asking(lookup, [slow])
    await until(lambda: road.departures)
    road.free = True
    assert digests_of(await lookup.find([quick])) == [quick]
    assert not waits.done()
    road.arrive()
    assert digests_of(await waits) == [slow]


async def test_a_failing_group_fails_its_own_members_only(road: Road) -> None:
    """Every one of them gets the fault, and nobody of the group beside it."""
    bad, worse, good = await road.add(3)
    lookup = BatchLoader(road)
    road.free = False
    failing = asking(lookup, [bad], [worse])
    await until(lambda: len(road.departures) == 1)
    fine = asking(lookup, [good])
    await until(lambda: len(road.departures) == 2)
    road.arrive(0, SessionsUnavailable("no"))
    road.arrive(0)
    faults = await asyncio.gather(*failing, return_exceptions=True)
    assert [type(fault) for fault in faults] == [SessionsUnavailable] * 2
    assert digests_of(await fine[0]) == [good]
    road.free = True
    assert digests_of(await lookup.find([bad])) == [bad]


async def test_a_group_that_waits_leaves_after_a_failure_too(road: Road) -> None:
    """A lane that comes back empty-handed takes the next group like any other."""
    (digest,) = await road.add()
    lookup = BatchLoader(road, pool=1)
    away = await full(lookup, road)
    (waits,) = asking(lookup, [digest])
    await turns()
    road.free = True
    road.arrive(0, SessionsUnavailable("no"))
    assert digests_of(await waits) == [digest]
    with pytest.raises(SessionsUnavailable):
        await away[0]


# Rule 3: a client that goes away takes nobody along.


@pytest.mark.parametrize("who", ["first", "last"])
@pytest.mark.parametrize("when", ["forming", "away"])
async def test_c64_a_cancelled_waiter_cancels_nobody(
    road: Road, who: str, when: str
) -> None:
    """Whether it asked first or last, before the query left or after."""
    (digest,) = await road.add()
    lookup = BatchLoader(road)
    road.free = False
    tasks = asking(lookup, *([[digest]] * 3))
    if when == "away":
        await until(lambda: road.departures)
    else:
        await asyncio.sleep(0)
        assert road.departures == []
    leaving = tasks.pop(0 if who == "first" else -1)
    leaving.cancel()
    await asyncio.wait([leaving])
    assert leaving.cancelled()
    await until(lambda: road.departures)
    road.arrive()
    found = await asyncio.gather(*tasks)
    assert [digests_of(records) for records in found] == [[digest]] * 2


@pytest.mark.parametrize("fault", [None, SessionsUnavailable("no")])
async def test_whoever_leaves_alone_leaves_nothing_behind(
    road: Road, fault: Exception | None
) -> None:
    """No waiter, no task, and no complaint about a fault that nobody fetched."""
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, c: complaints.append(c))
    lookup = BatchLoader(road)
    road.free = False
    (task,) = asking(lookup, ["digest"])
    await until(lambda: road.departures)
    task.cancel()
    await asyncio.wait([task])
    road.arrive(0, fault)
    await until(lambda: not lookup._away)
    gc.collect()
    await turns()
    assert (lookup._waiting, lookup._away, complaints) == ({}, set(), [])


async def test_a_thousand_waiters_that_gave_up_leave_nothing_behind(road: Road) -> None:
    """They gave up while all lanes were away; the lookup is empty afterwards."""
    lookup = BatchLoader(road, pool=1)
    away = await full(lookup, road)
    waiting = asking(lookup, *([f"{n}"] for n in range(1000)))
    await turns()
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    road.free = True
    road.arrive()
    await asyncio.gather(*away)
    await until(lambda: not lookup._away)
    assert lookup._waiting == {}


@pytest.mark.parametrize("seed", range(5))
async def test_no_wake_up_is_lost(road: Road, seed: int) -> None:
    """Thousands of lookups come, go away and fail at random: whoever stays is answered."""
    chance = random.Random(seed)
    digests = await road.add(20)
    lookup = BatchLoader(road, pool=2, most=5)

    class Slippery(Exception):
        """A query that failed."""

    inner = road.find

    async def find(asked: Sequence[str]) -> Sequence[Record]:
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(0)
        if chance.random() < 0.1:
            raise Slippery
        return await inner(asked)

    road.find = find  # type: ignore[method-assign]

    async def ask() -> str:
        digest = chance.choice(digests)
        try:
            assert digests_of(await lookup.find([digest])) == [digest]
        except Slippery:
            return "failed"
        return "answered"

    tasks = []
    for _ in range(2000):
        tasks.append(asyncio.ensure_future(ask()))
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
        if chance.random() < 0.5:
            await asyncio.sleep(0)
    async with asyncio.timeout(15):
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    kinds = {end if isinstance(end, str) else type(end) for end in ends}
    assert kinds == {"answered", "failed", asyncio.CancelledError}
    await until(lambda: not lookup._away)
    assert lookup._waiting == {}


# A text lives with the question that it belongs to.


async def test_a_text_that_nobody_asks_about_is_not_kept(road: Road) -> None:
    """A text without a digest in this lookup goes nowhere and stays nowhere."""
    lookup = BatchLoader(road)
    await lookup.find(["one"], {"one": "text of one", "two": "text of two"})
    assert road.texts == [["text of one"]]
    assert lookup._waiting == {}
    assert "text of two" not in everything_in(lookup)


async def test_a_question_that_was_asked_a_turn_later_has_its_text_too(road: Road) -> None:
    """The first query has left and not begun yet; the second one asks for its own text."""
    lookup = BatchLoader(road)
    text = {"one": "text of one"}

    async def ask_a_turn_later() -> list[Record]:
        return await asyncio.ensure_future(lookup.find(["one"], text))

    await asyncio.gather(lookup.find(["one"], text), ask_a_turn_later())
    assert road.texts == [["text of one"], ["text of one"]]


async def test_p2_lookups_that_were_given_up_are_not_kept(road: Road) -> None:
    """While every lane is away, ten thousand clients ask and go: nothing of them stays."""
    lookup = BatchLoader(road, pool=1)
    away = await full(lookup, road)
    kept = asking(lookup, ["kept"])
    for start in range(0, 10_000, 1000):
        names = [str(n) for n in range(start, start + 1000)]
        waiting = [
            asyncio.ensure_future(lookup.find([n, n, "kept"], {n: f"text {n}"}))
            for n in names
        ]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
    assert list(lookup._waiting) == ["kept"]
    assert "text " not in everything_in(lookup)
    road.free = True
    road.arrive()
    assert await asyncio.gather(*away, *kept) == [[], []]


def everything_in(lookup: BatchLoader) -> str:
    """Every string in the dictionaries of a lookup and in what they hold."""
    dicts = [value for value in vars(lookup).values() if isinstance(value, dict)]
    values = [value for each in dicts for value in (*each, *each.values())]
    return repr([getattr(value, "text", value) for value in values])


# Loops change.


def on_a_new_loop(work: Callable[[], Found]) -> list[Record] | None:
    """Run on a loop of its own; None if it did not end in time. Nothing is tidied up."""

    async def bounded() -> list[Record] | None:
        try:
            async with asyncio.timeout(0.2):
                return await work()
        except TimeoutError:
            return None

    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(bounded())
    finally:
        loop.close()


def test_c141_a_loop_that_ended_holds_up_nobody() -> None:
    """Its lanes never come back and its waiters never leave: the next loop starts anew."""
    road = Road()
    (digest,) = asyncio.run(road.add())
    lookup = BatchLoader(road, pool=1)
    road.free = False
    assert on_a_new_loop(lambda: lookup.find([digest])) is None

    async def ask_beside() -> list[Record]:
        asking(lookup, ["beside"])
        return await lookup.find([digest])

    assert on_a_new_loop(ask_beside) is None
    road.free = True
    found = on_a_new_loop(lambda: lookup.find([digest]))
    assert found is not None
    assert digests_of(found) == [digest]
    road.departures.clear()
    gc.collect()  # what the dead loops leave is silent too


def test_c141_a_lookup_serves_one_loop_after_another() -> None:
    """Each of them as if it were the only one."""
    road = Road()
    (digest,) = asyncio.run(road.add())
    lookup = BatchLoader(road)
    for _ in range(6):
        assert digests_of(asyncio.run(lookup.find([digest]))) == [digest]
