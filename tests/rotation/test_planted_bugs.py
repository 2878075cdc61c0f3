"""The state machine is tested as well: it must find every planted bug."""

from __future__ import annotations

import asyncio
import logging

import pytest
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.rotation.machine import RotationMachine
from tests.rotation.mutants import MUTANTS, Mutant
from tests.rotation.worlds import MemoryBase

pytestmark = pytest.mark.slow

SEARCH = settings(
    max_examples=4_000,
    stateful_step_count=50,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],  # to find it is enough: the sequence is not shown
    verbosity=Verbosity.quiet,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_caught(mutant: Mutant, caplog: pytest.LogCaptureFixture) -> None:
    """The machine fails over an engine or a store with this bug."""
    caplog.set_level(logging.CRITICAL, "handstamp")

    class OneWorld(RotationMachine):
        bases = (MemoryBase(mutant.store),)

    with asyncio.Runner() as runner, mutant.patch():
        OneWorld.runner = runner
        with pytest.raises(AssertionError):
            run_state_machine_as_test(OneWorld, settings=SEARCH)
