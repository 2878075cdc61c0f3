"""P4 for open connections: a WebSocket ends with its session, in every process and by
every writer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
from websockets.asyncio.client import ClientConnection

from handstamp._connections import SESSION_ENDED
from handstamp.core.models import Issued
from tests.faults.conftest import Launch
from tests.faults.fleet import PATIENCE, Fleet
from tests.faults.test_revoked_everywhere import WAYS

pytestmark = pytest.mark.multiprocess


async def closed_with(opened: ClientConnection) -> int | None:
    """Wait until the server closes; its close code."""
    async with asyncio.timeout(PATIENCE):
        await opened.wait_closed()
    return opened.close_code


@pytest.mark.parametrize("end", WAYS, ids=lambda way: way.__name__)
async def test_C109_sockets_of_an_ended_session_close_in_every_process(
    prompt: Fleet, end: Callable[[Fleet, Issued], Awaitable[None]]
) -> None:
    """The code is 4401 in every process, and sockets of other sessions stay open."""
    ended, other = await prompt.sign_in(), await prompt.sign_in()
    async with AsyncExitStack() as stack:
        doomed, staying = [
            [await stack.enter_async_context(w.socket(s)) for w in prompt.workers]
            for s in (ended, other)
        ]
        await end(prompt, ended)
        codes = await asyncio.gather(*map(closed_with, doomed))
        assert [SESSION_ENDED] * len(prompt.workers) == codes
        for opened in staying:
            await opened.send("still there")
            assert await opened.recv() == "still there"


FORGERIES = [
    "select pg_notify('handstamp', 's:' || $1)",
    "select pg_notify('handstamp', 'd:' || $1)",
    "select pg_notify('handstamp', 'u:' || user_id) from user_sessions where id = $1",
    "select pg_notify('handstamp', 'all') where $1 > ''",
    "select pg_notify('handstamp', rpad($1, 7999, 'x'))",
    "select pg_notify('handstamp', 's:' || g || $1) from generate_series(1, 3000) g",
]


async def test_C68_forged_notices_close_no_socket_and_hide_no_revocation(
    prompt: Fleet,
) -> None:
    """Another role that may connect sends everything that handstamp sends, and a flood.
    Every process asks the table and keeps its sockets; what then ends is closed."""
    session, other = await prompt.sign_in(), await prompt.sign_in()
    async with AsyncExitStack() as stack:
        opened, staying = [
            [await stack.enter_async_context(w.socket(s)) for w in prompt.workers]
            for s in (session, other)
        ]
        for forgery in FORGERIES:
            await prompt.sql(forgery, session.session.id)
        for each in (*opened, *staying):
            await each.send("still there")
            assert await each.recv() == "still there"
        await prompt.revoke_by_sql(session)
        codes = await asyncio.gather(*map(closed_with, opened))
        assert [SESSION_ENDED] * len(prompt.workers) == codes
        for each in staying:
            await each.send("still there")
            assert await each.recv() == "still there"


@pytest.fixture(scope="session")
def short_lived_workers(launch: Launch) -> Fleet:
    """Two workers whose sessions last for three seconds, however active they are."""
    times = {"session_ttl": 2, "grace": 1, "flush_every": 0.5}
    return launch(count=2, max_staleness=1, refresh_ttl=3, **times)


@pytest.fixture
async def short_lived(short_lived_workers: Fleet) -> AsyncIterator[Fleet]:
    """The same, listening."""
    async with short_lived_workers.ready() as fleet:
        yield fleet


async def test_C59_a_socket_closes_when_the_sessions_own_limit_has_passed(
    short_lived: Fleet,
) -> None:
    """No process ends the session or notifies: the socket closes all the same,
    after the limit and not before it."""
    session = await short_lived.sign_in()
    async with AsyncExitStack() as stack:
        all_opened = [
            await stack.enter_async_context(worker.socket(session))
            for worker in short_lived.workers
        ]
        codes = await asyncio.gather(*map(closed_with, all_opened))
    assert codes == [SESSION_ENDED, SESSION_ENDED]
    row = await short_lived.sql(
        "select now() >= refresh_expires_at as over from user_sessions where id = $1",
        session.session.id,
    )
    assert row[0]["over"] is True
