"""Each example under uvicorn, on a database of its own: started once, and shared by all
tests that want it with the same settings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

from tests.conftest import created
from tests.examples.servers import (
    EXAMPLES,
    PASSWORDS,
    Example,
    Server,
    each,
    execute,
    seed,
    serving,
)

PREFIX = "handstamp_example"
Start = Callable[..., Server]
Copy = Callable[[str], AbstractContextManager[str]]


@pytest.fixture(scope="session")
def copy_of(postgres: Any) -> Iterator[Copy]:
    """A copy of the database as `python -m examples.seed` leaves it in this shape."""
    seeded: dict[str, str] = {}
    with ExitStack() as stack:

        def copy_of(shape: str) -> AbstractContextManager[str]:
            if shape not in seeded:
                seeded[shape] = stack.enter_context(created(postgres.dsn(), PREFIX))
                seed(seeded[shape], HANDSTAMP_SHAPE=shape)
                asyncio.run(_hash_cheaply(seeded[shape]))
            return created(postgres.dsn(), PREFIX, urlsplit(seeded[shape]).path[1:])

        yield copy_of


async def _hash_cheaply(dsn: str) -> None:
    """Store hashes that take a thousandth of the time to compare a password with: there
    are thousands of sign-ins here, and what a hash costs is said in the hash."""
    hasher = PasswordHash([Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1)])
    for username, password in PASSWORDS.items():
        cheap = hasher.hash(password)
        sql = "update users set password_hash = $2 where username = $1"
        await execute(dsn, sql, username, cheap)


@pytest.fixture
def shape(request: pytest.FixtureRequest) -> str:
    """The shape of the tables: the example's, if the test has one."""
    if "example" not in request.fixturenames:
        return "ulid"
    example: Example = request.getfixturevalue("example")
    return example.shape


@pytest.fixture
def seeded_copy(copy_of: Copy, shape: str) -> Iterator[str]:
    """A seeded database for one test."""
    with copy_of(shape) as dsn:
        yield dsn


@pytest.fixture(scope="session")
def start(copy_of: Copy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start an example with these settings, or give the one that runs already."""
    running: dict[tuple[Any, ...], Server] = {}
    with ExitStack() as stack:

        def start(example: Example, **settings: str) -> Server:
            key = (example, *sorted(settings.items()))
            if key not in running:
                copy = stack.enter_context(copy_of(example.shape))
                log = tmp_path_factory.mktemp("server") / "log"
                server = serving(example, copy, log, **settings)
                running[key] = stack.enter_context(server)
            return running[key]

        yield start
        for server in running.values():  # all at once; then each is waited for
            server.process.terminate()


@pytest.fixture(params=each(EXAMPLES))
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
    """The example with session tokens that live for two seconds, or, where they are
    replaced when 90 seconds are left, for 92."""
    short = {"HANDSTAMP_INSECURE_COOKIES": "1", "HANDSTAMP_SESSION_TTL": "2"}
    server = start(example, **short, HANDSTAMP_ACCESS_TOKEN_TTL="92")
    yield server
    assert server.leaks() == []
