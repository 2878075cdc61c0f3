"""Flights: one answer for all who ask one thing, and a bound for how many are under way."""

from __future__ import annotations

import asyncio

import pytest

from handstamp.config import Policy
from handstamp.core.models import Unknown
from handstamp.engine.batching import MAX_KEYS, SingleFlight
from handstamp.errors import SessionsUnavailable
from tests.support.engines import LAPTOP, Engine, running, shown
from tests.support.waiting import until


async def test_p2_flights_are_bounded() -> None:
    """One too many is refused at once, a passenger is not; whoever lands makes room."""
    flights: SingleFlight[int, int] = SingleFlight(most=3)
    free = asyncio.Event()

    async def fly() -> int:
        await free.wait()
        return 1

    under_way = [asyncio.ensure_future(flights.share(number, fly)) for number in range(3)]
    await until(lambda: len(flights) == 3)
    with pytest.raises(SessionsUnavailable, match="too many"):
        await flights.share(3, fly)
    passenger = asyncio.ensure_future(flights.share(0, fly))
    free.set()
    assert await asyncio.gather(*under_way, passenger) == [1] * 4
    assert await flights.share(3, fly) == 1
    assert flights == {}


def test_c141_flights_that_a_loop_took_along_take_nobodys_place() -> None:
    """They never land; the next loop has its own bound."""
    flights: SingleFlight[int, int] = SingleFlight(most=3)
    tasks: list[asyncio.Future[int]] = []

    async def stuck() -> int:
        return await asyncio.Future()

    async def begin() -> None:
        tasks.extend(asyncio.ensure_future(flights.share(n, stuck)) for n in range(3))
        await until(lambda: len(flights) == 3)

    async def fly() -> int:
        return 1

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.close()
    assert asyncio.run(flights.share(3, fly)) == 1
    assert flights == {}


async def test_p2_made_up_refresh_tokens_wait_in_a_bounded_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where unsigned ones are accepted each of them is a question. While the table does not
    answer, and their clients have gone, no more than so many are under way."""
    async with running(policy=Policy(accept_unsigned=True)) as engine:
        monkeypatch.setattr(engine.sessions._refresher._single_flight, "_most", 50)
        answers = asyncio.Event()

        async def find_by_refresh(digest: str) -> None:
            await answers.wait()

        monkeypatch.setattr(engine.store, "find_by_refresh", find_by_refresh)
        clients = [asyncio.ensure_future(ask(engine, number)) for number in range(50)]
        await until(lambda: len(engine.sessions._refresher._single_flight) == 50)
        for client in clients:
            client.cancel()
        await asyncio.wait(clients)
        for number in range(50, 150):
            assert isinstance(await ask(engine, number), Unknown)
        assert len(engine.sessions._refresher._single_flight) == 50
        answers.set()
        await until(lambda: not engine.sessions._refresher._single_flight)
    assert MAX_KEYS == 10_000


async def ask(engine: Engine, number: int) -> object:
    """A request with a refresh token that nobody issued."""
    made_up = shown([], [f"made up {number}"])
    return await engine.sessions.authenticate(made_up, LAPTOP)
