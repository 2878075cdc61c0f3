"""The pytest plugin of handstamp: fixtures, and nothing else.

pytest imports this module at every start, in every project where handstamp is installed.
So it is outside of the package, and imports nothing of it before a fixture is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from handstamp import Policy, Sessions
    from handstamp.testing import FrozenClock, Recorded


@pytest.fixture
def handstamp_clock() -> FrozenClock:
    """A clock that does not move by itself; ``handstamp_sessions`` uses it."""
    from handstamp.testing import FrozenClock

    return FrozenClock()


@pytest.fixture
def handstamp_policy() -> Policy:
    """The policy of ``handstamp_sessions``. Define a fixture of this name to use yours."""
    from handstamp import Policy

    return Policy()


@pytest.fixture
def handstamp_sessions(
    handstamp_clock: FrozenClock, handstamp_policy: Policy
) -> Iterator[Sessions]:
    """An engine on a store in memory, for one test; build your application with it."""
    from handstamp.testing import memory_sessions
    from handstamp.testing.engines import close

    sessions = memory_sessions(clock=handstamp_clock, policy=handstamp_policy)
    yield sessions
    close(sessions)


@pytest.fixture
def handstamp_events(handstamp_sessions: Sessions) -> Recorded:
    """The events that ``handstamp_sessions`` publishes during the test."""
    from handstamp.testing import Recorded

    return Recorded(handstamp_sessions)


@pytest.fixture(scope="session")
def handstamp_postgres() -> Iterator[str]:
    """The address of a PostgreSQL server for the whole run: an embedded one, or the one in
    ``HANDSTAMP_TEST_DATABASE_URL``."""
    from handstamp.testing.databases import postgres_server

    with postgres_server() as dsn:
        yield dsn


@pytest.fixture(scope="session")
def handstamp_template_dsn(handstamp_postgres: str) -> Iterator[str]:
    """The address of a database with empty tables, which is copied for each test. Define a
    fixture of this name to use your own tables."""
    from handstamp.testing.databases import template_database

    with template_database(handstamp_postgres) as dsn:
        yield dsn


@pytest.fixture
def handstamp_dsn(handstamp_template_dsn: str) -> Iterator[str]:
    """The address of a database with empty tables, for one test."""
    from handstamp.testing.databases import database_like

    with database_like(handstamp_template_dsn) as dsn:
        yield dsn
