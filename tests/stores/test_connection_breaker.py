"""The breaker: after a fault every query fails at once, until a probe gets an answer."""

from __future__ import annotations

import asyncio

import pytest

from handstamp.errors import SessionsUnavailable
from handstamp.stores import connection as connection_module
from handstamp.stores.connection import CircuitBreaker
from tests.support.waiting import turns, until


class Probe:
    """A probe whose answer a test decides."""

    def __init__(self) -> None:
        self.fault: Exception | None = SessionsUnavailable("down")
        self.calls = 0

    async def __call__(self) -> None:
        self.calls += 1
        await asyncio.sleep(0)
        if self.fault is not None:
            raise self.fault


@pytest.fixture
def probe() -> Probe:
    """A probe without an answer."""
    return Probe()


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause between two probes."""
    monkeypatch.setattr(connection_module, "FIRST_PAUSE", 0.0)


async def test_a_closed_breaker_refuses_nothing(probe: Probe) -> None:
    """And sends no probe."""
    breaker = CircuitBreaker(probe)
    for _ in range(3):
        breaker.check()
    await turns()
    assert (breaker.is_open, breaker.trips, probe.calls) == (False, 0, 0)


async def test_p16_an_open_breaker_refuses_at_once(probe: Probe) -> None:
    """The very next query after a fault is refused, without a turn of the loop."""
    breaker = CircuitBreaker(probe)
    breaker.trip()
    with pytest.raises(SessionsUnavailable):
        breaker.check()
    assert breaker.is_open
    await breaker.close()


async def test_only_a_probe_closes_it(probe: Probe, no_pause: None) -> None:
    """It stays open for as long as probes fail, and closes with the first that does not."""
    breaker = CircuitBreaker(probe)
    breaker.trip()
    await until(lambda: probe.calls > 10)
    assert breaker.is_open
    probe.fault = None
    await until(lambda: not breaker.is_open)
    breaker.check()


async def test_many_faults_at_once_are_one_trip(probe: Probe, no_pause: None) -> None:
    """A hundred requests that fail together start one task, and count once."""
    breaker = CircuitBreaker(probe)
    before = len(asyncio.all_tasks())
    for _ in range(100):
        breaker.trip()
    assert len(asyncio.all_tasks()) == before + 1
    assert breaker.trips == 1
    probe.fault = None
    await until(lambda: not breaker.is_open)
    breaker.trip()
    assert breaker.trips == 2
    await breaker.close()


async def test_a_bug_in_a_probe_does_not_keep_the_breaker_open(
    probe: Probe, no_pause: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a probe raises, another one follows."""
    probe.fault = RuntimeError("a bug")
    breaker = CircuitBreaker(probe)
    breaker.trip()
    await until(lambda: probe.calls > 2)
    probe.fault = None
    await until(lambda: not breaker.is_open)
    assert "a bug" in caplog.text


async def test_probes_do_not_spin(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pause is twice the one before, up to half a second."""
    pauses: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        if seconds:
            pauses.append(seconds)
        await real(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    breaker = CircuitBreaker(probe)
    breaker.trip()
    while len(pauses) < 7:
        await real(0)
    await breaker.close()
    assert pauses[:7] == [0.05, 0.1, 0.2, 0.4, 0.5, 0.5, 0.5]


async def test_closing_ends_the_probes(probe: Probe) -> None:
    """No task is left, and the breaker is closed."""
    breaker = CircuitBreaker(probe)
    before = asyncio.all_tasks()
    breaker.trip()
    await breaker.close()
    await breaker.close()
    assert asyncio.all_tasks() == before
    breaker.check()
