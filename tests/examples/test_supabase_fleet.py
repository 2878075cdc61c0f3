"""One session of Supabase Auth and four real servers that share nothing but its tables."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from uuid import UUID

import asyncpg
import httpx
import pytest

from handstamp.supabase import SupabaseSessions
from handstamp.supabase.cookies import decode_session, encode_session
from handstamp.supabase.rules import SupabaseRules
from handstamp.supabase.tokens import KeyRing, write_v2
from tests.conftest import copied
from tests.examples.servers import SECRET, Example, Server, due, seed, serving
from tests.support.supabase import assert_gotrue_can_read

pytestmark = [pytest.mark.multiprocess, pytest.mark.server]

SERVERS = 4
REQUESTS = 20
NAME = "sb-127-auth-token"
URL = "http://127.0.0.1:54321"
PATIENCE = 30
# On a busy machine a request may not be answered in its second, and that is not the point.
SETTINGS = {"HANDSTAMP_INSECURE_COOKIES": "1", "HANDSTAMP_TIME_BUDGET": str(PATIENCE)}
KINDS = pytest.mark.parametrize("version", [0, 2], ids=["v1", "v2"])
ROLLED_BACK = """
    select pid from pg_stat_activity where datname = current_database()
    and query = 'ROLLBACK;' and query_start > $1"""


@pytest.fixture(scope="module")
def fleet_dsn(supabase_template_dsn: str) -> Iterator[str]:
    """GoTrue's tables, with the users of the examples."""
    with copied(supabase_template_dsn) as dsn:
        seed(dsn, HANDSTAMP_SHAPE="supabase")
        yield dsn


@pytest.fixture(scope="module")
def servers(
    fleet_dsn: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Server]]:
    """The example as five processes, each with an engine of its own."""
    example, logs = Example("starlette", shape="supabase"), tmp_path_factory.mktemp("fleet")
    with ExitStack() as stack, ThreadPoolExecutor(SERVERS + 1) as threads:
        starting = [
            serving(example, fleet_dsn, logs / f"{number}.log", **SETTINGS)
            for number in range(SERVERS + 1)
        ]
        yield list(threads.map(stack.enter_context, starting))


@pytest.fixture
def fleet(servers: list[Server]) -> list[Server]:
    """Four that no test ends."""
    return servers[:SERVERS]


@pytest.fixture
def doomed(servers: list[Server]) -> Server:
    """One for the one test that kills it."""
    return servers[SERVERS]


@pytest.fixture
async def psql(fleet_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """What an administrator has; in the end GoTrue must be able to read everything."""
    connection = await asyncpg.connect(fleet_dsn)
    try:
        yield connection
        await assert_gotrue_can_read(connection)
    finally:
        await connection.close()


@dataclass(frozen=True)
class Held:
    """A session, and the cookie of a browser that is due to renew it."""

    id: str
    value: str


async def signed_in(psql: asyncpg.Connection, dsn: str, version: int) -> Held:
    """A new session whose access token has a minute left."""
    user = await psql.fetchval("select id::text from users where username = 'alice'")
    rules = SupabaseRules(algorithm_version=version)
    async with SupabaseSessions(dsn, url=URL, jwt_secret=SECRET, rules=rules) as sessions:
        issued = await sessions.create(user)
    assert issued.body is not None
    return Held(issued.session.id, due({NAME: encode_session(issued.body)})[NAME])


def ask(server: Server, value: str) -> asyncio.Task[httpx.Response]:
    """One request with this cookie, under way, by a client of its own."""

    async def get() -> httpx.Response:
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
            return await client.get("/me", headers={"cookie": f"{NAME}={value}"})

    return asyncio.create_task(get())


def cookie(response: httpx.Response) -> str | None:
    """The cookie that a response sets, if it sets one."""
    assert response.status_code == 200, response.text
    return response.cookies.get(NAME)


def refresh_token(value: str | None) -> str:
    """The one in a cookie, which there must be."""
    found = None if value is None else decode_session(value)
    assert found is not None
    return found.refresh_token


async def steps(psql: asyncpg.Connection, held: Held) -> tuple[list[bool], int | None]:
    """What the tables tell of its refreshes: which rows are revoked, and the counter."""
    rows = await psql.fetch(
        "select revoked from auth.refresh_tokens where session_id = $1 order by id",
        UUID(held.id),
    )
    sql = "select refresh_token_counter from auth.sessions where id = $1"
    counter = await psql.fetchval(sql, UUID(held.id))
    return [row["revoked"] for row in rows], counter


async def newest(psql: asyncpg.Connection, held: Held) -> str:
    """The refresh token that is current by the tables."""
    row = await psql.fetchrow(
        "select refresh_token_hmac_key as key, refresh_token_counter as counter,"
        " (select token from auth.refresh_tokens where session_id = s.id and not revoked)"
        " from auth.sessions s where id = $1",
        UUID(held.id),
    )
    if row["key"] is None:
        return row["token"]
    return write_v2(held.id, row["counter"], KeyRing().open(row["key"], held.id))


ONE_STEP: dict[int, tuple[list[bool], int | None]] = {0: ([True, False], None), 2: ([], 1)}


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    """Ask the database again and again, until it holds."""
    async with asyncio.timeout(PATIENCE):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@KINDS
async def test_twenty_refreshes_on_four_servers_are_one_successor(
    fleet: list[Server], fleet_dsn: str, psql: asyncpg.Connection, version: int
) -> None:
    """Each server has found the session held and tries again when it is let go: one
    steps, the others hand out the same, and every server goes on with it."""
    held = await signed_in(psql, fleet_dsn, version)
    begun, waiting = await psql.fetchval("select clock_timestamp()"), set()

    async def all_wait() -> bool:
        waiting.update(row["pid"] for row in await psql.fetch(ROLLED_BACK, begun))
        return len(waiting) >= SERVERS

    holder = await asyncpg.connect(fleet_dsn)
    async with holder.transaction():
        await holder.execute("select from auth.sessions for update")
        asked = [ask(fleet[n % SERVERS], held.value) for n in range(REQUESTS)]
        await until(all_wait)
    await holder.close()
    renewed = [cookie(response) for response in await asyncio.gather(*asked)]
    assert len(set(map(refresh_token, renewed))) == 1
    assert await steps(psql, held) == ONE_STEP[version]
    value = renewed[-1]
    assert value is not None
    onward = await asyncio.gather(*(ask(server, value) for server in fleet))
    assert [cookie(response) for response in onward] == [None] * SERVERS
    assert [server.leaks() for server in fleet] == [[]] * SERVERS


async def test_an_answer_that_died_with_its_server_is_given_by_another(
    fleet: list[Server], doomed: Server, fleet_dsn: str, psql: asyncpg.Connection
) -> None:
    """A server is killed between the commit of two refreshes and their answers: the
    next one hands out the successors that are in the tables, and makes no step."""
    kinds = {version: await signed_in(psql, fleet_dsn, version) for version in ONE_STEP}

    async def have_stepped() -> bool:
        return {v: await steps(psql, held) for v, held in kinds.items()} == ONE_STEP

    holder = await asyncpg.connect(fleet_dsn)
    async with holder.transaction():
        # The page reads the name of its user, which is after the session was renewed.
        await holder.execute("lock table public.users in access exclusive mode")
        lost = [ask(doomed, held.value) for held in kinds.values()]
        await until(have_stepped)
        doomed.process.kill()
        for outcome in await asyncio.gather(*lost, return_exceptions=True):
            assert isinstance(outcome, httpx.TransportError)
    await holder.close()
    for held in kinds.values():
        answers = await asyncio.gather(*(ask(server, held.value) for server in fleet))
        found = [refresh_token(cookie(response)) for response in answers]
        assert found == [await newest(psql, held)] * SERVERS
    assert await have_stepped()
