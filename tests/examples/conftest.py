"""Each example under uvicorn, on a database of its own: started once, and shared by all
tests that want it with the same settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.examples.serving import EXAMPLES, Example, Server, database, seed, serving

Start = Callable[..., Server]


@pytest.fixture(scope="session")
def seeded_dsn(postgres: Any) -> Iterator[str]:
    """A database as `python -m examples.seed` leaves it; connect to copies only."""
    with database(postgres.dsn()) as dsn:
        seed(dsn)
        yield dsn


@pytest.fixture
def seeded_copy(postgres: Any, seeded_dsn: str) -> Iterator[str]:
    """A seeded database for one test."""
    with database(postgres.dsn(), urlsplit(seeded_dsn).path[1:]) as dsn:
        yield dsn


@pytest.fixture(scope="session")
def start(
    postgres: Any, seeded_dsn: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Start]:
    """Start an example with these settings, or give the one that runs already."""
    running: dict[tuple[Any, ...], Server] = {}
    with ExitStack() as stack:

        def start(example: Example, **settings: str) -> Server:
            key = (example, *sorted(settings.items()))
            if key not in running:
                copy = database(postgres.dsn(), urlsplit(seeded_dsn).path[1:])
                log = tmp_path_factory.mktemp("server") / "log"
                server = serving(example, stack.enter_context(copy), log, **settings)
                running[key] = stack.enter_context(server)
            return running[key]

        yield start


@pytest.fixture(params=EXAMPLES, ids=str)
def example(request: pytest.FixtureRequest) -> Example:
    """Each example in turn."""
    return request.param


@pytest.fixture
def server(start: Start, example: Example) -> Iterator[Server]:
    """The example on plain http; its log must stay clean through every test."""
    server = start(example, HANDSTAMP_INSECURE_COOKIES="1")
    yield server
    assert server.leaks() == []


@pytest.fixture
def secure_server(start: Start, example: Example) -> Iterator[Server]:
    """The example with the cookies of production."""
    server = start(example)
    yield server
    assert server.leaks() == []


@pytest.fixture
def hasty_server(start: Start, example: Example) -> Iterator[Server]:
    """The example with session tokens that live for two seconds."""
    short = {"HANDSTAMP_INSECURE_COOKIES": "1", "HANDSTAMP_SESSION_TTL": "2"}
    server = start(example, **short)
    yield server
    assert server.leaks() == []
