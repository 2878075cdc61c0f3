"""The plugin: it costs a suite nothing that does not use it, and cleans up after itself."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from werkzeug.test import Client as WerkzeugClient

import handstamp_pytest
from handstamp import Policy, Sessions
from handstamp.events import LoggedIn
from handstamp.testing import FrozenClock, Recorded, call, login_as
from tests.support.apps import over_wsgi

ROOT = Path(__file__).parents[2]
COLD = """
import sys
import pytest
before = set(sys.modules)
import handstamp_pytest
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


def test_importing_it_imports_nothing_else() -> None:
    """Neither handstamp, nor the driver, nor a framework."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", COLD]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
    assert done.stdout.split() == ["handstamp_pytest"]


def test_pytest_finds_it_by_its_entry_point() -> None:
    """Under the name that `-p no:handstamp_pytest` switches off, and it is in the wheel."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (entry,) = project["project"]["entry-points"]["pytest11"].items()
    assert entry == ("handstamp_pytest", "handstamp_pytest")
    assert importlib.import_module(entry[1]) is handstamp_pytest
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert f"src/{entry[1]}.py" in packages


def test_every_fixture_has_the_prefix() -> None:
    """So no fixture of an application is hidden."""
    imported = {"Iterator", "TYPE_CHECKING", "annotations", "pytest"}
    own = {n for n in vars(handstamp_pytest) if not n.startswith("_")} - imported
    assert len(own) == 7
    assert all(name.startswith("handstamp_") for name in own)


def test_the_fixtures_belong_together(
    handstamp_sessions: Sessions,
    handstamp_clock: FrozenClock,
    handstamp_policy: Policy,
    handstamp_events: Recorded,
) -> None:
    """The engine has the policy and the clock, and its events are recorded."""
    assert handstamp_sessions.policy is handstamp_policy
    assert handstamp_sessions.clock is handstamp_clock
    issued = call(handstamp_sessions.create, "alice")
    assert issued.session.created_at == handstamp_clock.now()
    assert [event.user_id for event in handstamp_events.of(LoggedIn)] == ["alice"]


class TestWithAPolicyOfTheirOwn:
    """A suite says which policy it wants."""

    @pytest.fixture
    def handstamp_policy(self) -> Policy:
        """Theirs, which goes before the plugin's."""
        return Policy(max_sessions=1)

    def test_it_is_used(self, handstamp_sessions: Sessions) -> None:
        """By the engine of the plugin."""
        call(handstamp_sessions.create, "alice")
        call(handstamp_sessions.create, "alice")
        assert len(call(handstamp_sessions.list_for_user, "alice")) == 1


@pytest.fixture
def ended(request: pytest.FixtureRequest) -> Iterator[None]:
    """Checks the engine after its own fixture has ended."""
    held: list[Sessions] = []
    request.node.held = held
    yield
    assert [sessions._loop for sessions in held] == [None]


def test_an_engine_in_the_thread_of_wsgi_is_closed_at_the_end(
    ended: None, handstamp_sessions: Sessions, request: pytest.FixtureRequest
) -> None:
    """Otherwise it would listen and flush until the end of the run."""
    client = WerkzeugClient(over_wsgi(handstamp_sessions))
    login_as(client, "alice", sessions=handstamp_sessions)
    handstamp_sessions._state.cache.doubt()
    assert client.get("/me").text == "alice"
    assert handstamp_sessions._loop is not None
    request.node.held.append(handstamp_sessions)
