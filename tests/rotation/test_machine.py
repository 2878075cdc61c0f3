"""Rotation, checked by a state machine of browsers, thieves and dying processes."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.conftest import execute
from tests.rotation.machine import RotationMachine
from tests.rotation.worlds import INTEGERS, IntegersBase, MemoryBase, PostgresBase
from tests.support.foreign_tables import ddl

NIGHTLY = os.environ.get("HANDSTAMP_HYPOTHESIS") == "nightly"
SETTINGS = settings(
    stateful_step_count=60 if NIGHTLY else 40,
    derandomize=not NIGHTLY,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


MOST = pytest.param(20_000 if NIGHTLY else 400, marks=pytest.mark.slow)


@pytest.fixture
def runner(caplog: pytest.LogCaptureFixture) -> Iterator[asyncio.Runner]:
    """One event loop for all examples, and for the connections they share."""
    caplog.set_level(logging.CRITICAL, "handstamp")
    with asyncio.Runner() as runner:
        yield runner


@pytest.mark.timeout(7200 if NIGHTLY else 1800)
@pytest.mark.parametrize("examples", [50, MOST])
def test_memory_and_postgres_agree_and_keep_every_promise_of_rotation(
    dsn: str, runner: asyncio.Runner, examples: int
) -> None:
    """Whatever browsers, thieves and crashes do, both stores end in the same rows and
    answers, one successor exists, and no honest client is signed out."""
    how = settings(SETTINGS, max_examples=examples)
    agree(runner, MemoryBase(), PostgresBase(dsn), how)


@pytest.mark.timeout(7200 if NIGHTLY else 1800)
@pytest.mark.parametrize("examples", [50, MOST])
def test_a_table_of_integers_rotates_like_ours(
    empty_dsn: str, runner: asyncio.Runner, examples: int
) -> None:
    """The same over ids that are numbers, sessions that end at a time, and a client of
    whom less is kept."""
    runner.run(execute(empty_dsn, ddl("integers")))
    memory, postgres = MemoryBase(names=INTEGERS), IntegersBase(empty_dsn)
    fewer = settings(SETTINGS, max_examples=examples // 4)
    agree(runner, memory, postgres, fewer)


def agree(
    runner: asyncio.Runner, memory: MemoryBase, postgres: PostgresBase, how: settings
) -> None:
    """Let the machine run over both."""
    runner.run(postgres.open())

    class TwoWorlds(RotationMachine):
        bases = (memory, postgres)

    TwoWorlds.runner = runner
    try:
        run_state_machine_as_test(TwoWorlds, settings=how)
    finally:
        runner.run(postgres.close())
