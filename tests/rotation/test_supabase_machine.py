"""Rotation by GoTrue's rules, checked by the state machine on Supabase Auth's tables."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.rotation.supabase_machine import DEPLOYMENTS, Deployment, SupabaseMachine
from tests.rotation.supabase_mutants import SUPABASE_MUTANTS, SupabaseMutant
from tests.rotation.supabase_worlds import SupabaseBase

pytestmark = pytest.mark.slow

NIGHTLY = os.environ.get("HANDSTAMP_HYPOTHESIS") == "nightly"
SETTINGS = settings(
    max_examples=5_000 if NIGHTLY else 60,
    stateful_step_count=60 if NIGHTLY else 30,
    derandomize=not NIGHTLY,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
SEARCH = settings(
    SETTINGS,
    max_examples=500,
    stateful_step_count=50,
    derandomize=True,
    phases=[Phase.generate],  # to find it is enough: the sequence is not shown
    verbosity=Verbosity.quiet,
    report_multiple_bugs=False,
)
Run = Callable[[settings], None]


@contextmanager
def machine(dsn: str, *deployments: Deployment) -> Iterator[Run]:
    """Runs the machine over this database, on one event loop for all examples."""
    base = SupabaseBase(dsn)
    with asyncio.Runner() as runner:
        runner.run(base.open())

        class OneDatabase(SupabaseMachine):
            pass

        OneDatabase.base, OneDatabase.runner = base, runner
        OneDatabase.deployments = deployments or DEPLOYMENTS
        try:
            yield lambda how: run_state_machine_as_test(OneDatabase, settings=how)
        finally:
            runner.run(base.close())


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """A machine reports thousands of events."""
    caplog.set_level(logging.CRITICAL, "handstamp")


@pytest.mark.timeout(7200 if NIGHTLY else 1800)  # a failure is made small for minutes
def test_supabase_rotates_as_the_rules_of_gotrue_foretell(supabase_dsn: str) -> None:
    """Whatever browsers, thieves, crashes and an upgrade do: every answer, event and row
    is the one predicted, and no honest browser is signed out."""
    with machine(supabase_dsn) as run:
        run(SETTINGS)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mutant", SUPABASE_MUTANTS, ids=lambda mutant: mutant.name)
def test_a_bug_planted_in_the_rules_of_gotrue_is_caught(
    mutant: SupabaseMutant, supabase_dsn: str
) -> None:
    """The machine fails over rules, statements or events with this bug."""
    planted, where = mutant.patch(), mutant.deployment
    with planted, machine(supabase_dsn, where) as run, pytest.raises(AssertionError):
        run(SEARCH)
