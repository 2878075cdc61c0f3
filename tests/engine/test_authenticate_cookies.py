"""What cookies come to once sessions are alive: C-01 to C-31, C-153 to C-155.

These cases need the engine, or the middleware, but no database: the store is the
reference implementation in memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from handstamp import (
    Client,
    ConfigError,
    Cookies,
    Issued,
    MemoryStore,
    Policy,
    Sessions,
    TrustedProxies,
)
from handstamp._connections import Message, Scope
from handstamp.asgi import Handle, SessionAuthMiddleware
from handstamp.core.cookies import CookieReader
from handstamp.core.models import Answer, Authenticated, Invalid, Reason
from handstamp.events import BindingChanged, DuplicateCookies, Event, TokenSwapped
from tests.support.clock import FakeClock

SECRET = "a secret for tests of thirty-two bytes or more"
NAME = b"__Host-session="
READER = CookieReader(Cookies())
CLIENT = Client()


class World:
    """An engine on a clock of its own, its store, and what happened."""

    def __init__(self, **options: Any) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore(self.clock.now)
        self.sessions = Sessions(self.store, secret=SECRET, clock=self.clock, **options)
        self.events: list[Event] = []
        self.sessions.on(Event, self.events.append)

    async def ask(self, *cookies: bytes, client: Client = CLIENT) -> Answer:
        """The answer to a request with these Cookie headers."""
        credentials = READER.read([(b"cookie", cookie) for cookie in cookies])
        return await self.sessions.authenticate(credentials, client)

    def happened(self, kind: type[Event]) -> list[Event]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A world that is open."""
    world = World()
    async with world.sessions:
        yield world


def cookie(issued: Issued) -> bytes:
    """The session cookie of a login."""
    return NAME + issued.session_token.encode()


def whose(answer: Answer) -> str | None:
    """The session an answer is for, or None for an anonymous request."""
    assert isinstance(answer, Authenticated | Invalid)
    return answer.session.id if isinstance(answer, Authenticated) else None


@pytest.mark.parametrize("is_cached", [True, False])
@pytest.mark.parametrize("place", [0, 1])
async def test_c01_the_one_live_cookie_counts_in_any_place(
    world: World, place: int, is_cached: bool
) -> None:
    """Neither the first nor the last: the live one, and an event says there were two."""
    live, dead = [await world.sessions.create("alice") for _ in range(2)]
    await world.sessions.revoke(dead.session.id)
    if not is_cached:
        world.clock.advance(world.sessions.policy.max_staleness)
    cookies = [cookie(dead)]
    cookies.insert(place, cookie(live))
    assert live.session.id == whose(await world.ask(b"; ".join(cookies)))
    assert [DuplicateCookies(candidates=2, conflict=False)] == world.happened(
        DuplicateCookies
    )


@pytest.mark.parametrize("invented", [b"x", b"x" * 43 + b"." + b"y" * 43])
async def test_c01_an_invented_cookie_cannot_hide_a_live_one(
    world: World, invented: bytes
) -> None:
    """A tossed cookie that we never made costs nothing and changes nothing."""
    issued = await world.sessions.create("alice")
    queries = world.store.queries
    for cookies in ([NAME + invented, cookie(issued)], [cookie(issued), NAME + invented]):
        assert issued.session.id == whose(await world.ask(b"; ".join(cookies)))
    assert queries == world.store.queries


@pytest.mark.parametrize("user", ["alice", "mallory"])
@pytest.mark.parametrize("is_cached", [True, False])
async def test_c02_two_live_cookies_of_two_sessions_are_none(
    world: World, user: str, is_cached: bool
) -> None:
    """A tossed cookie signs nobody into another session: anonymous, with an alarm."""
    mine, other = await world.sessions.create("alice"), await world.sessions.create(user)
    if not is_cached:
        world.clock.advance(world.sessions.policy.max_staleness)
    for pair in ([mine, other], [other, mine]):
        answer = await world.ask(b"; ".join(map(cookie, pair)))
        assert Invalid(Reason.CONFLICT) == answer
    expected = [DuplicateCookies(candidates=2, conflict=True)] * 2
    assert expected == world.happened(DuplicateCookies)


async def test_c02_a_conflict_is_not_settled_by_a_refresh_token(world: World) -> None:
    """Where two sessions contradict, no third token decides between them."""
    mine, other = [await world.sessions.create("alice") for _ in range(2)]
    refresh = b"; __Host-refresh=" + mine.refresh_token.encode()
    answer = await world.ask(cookie(mine) + b"; " + cookie(other) + refresh)
    assert Invalid(Reason.CONFLICT) == answer


async def test_c03_identical_cookies_are_one_lookup(world: World) -> None:
    """The same token twice is one session, one query and no event."""
    issued = await world.sessions.create("alice")
    world.clock.advance(world.sessions.policy.max_staleness)
    queries = world.store.queries
    answer = await world.ask(cookie(issued) + b"; " + cookie(issued))
    assert issued.session.id == whose(answer)
    assert queries + 1 == world.store.queries
    assert world.happened(DuplicateCookies) == []


async def test_c04_five_hundred_cookies_cost_no_lookup(world: World) -> None:
    """Beyond four candidates the request is anonymous, though one of them is live."""
    issued = await world.sessions.create("alice")
    world.clock.advance(world.sessions.policy.max_staleness)
    queries = world.store.queries
    tossed = [NAME + b"%d" % n for n in range(499)]
    assert whose(await world.ask(b"; ".join([cookie(issued), *tossed]))) is None
    assert queries == world.store.queries


async def test_c04_four_live_candidates_cost_one_query(world: World) -> None:
    """All candidates of a request are looked up together."""
    four = [await world.sessions.create("alice") for _ in range(4)]
    world.clock.advance(world.sessions.policy.max_staleness)
    queries = world.store.queries
    await world.ask(b"; ".join(map(cookie, four)))
    assert queries + 1 == world.store.queries


@pytest.mark.parametrize(
    "mangle",
    [
        lambda token: b'"' + token + b'"',
        lambda token: token + b"=",
        lambda token: token[:-1],
        lambda token: b"%" + token[:1].hex().encode() + token[1:],
        lambda token: token.swapcase(),
        lambda token: token + b"\x00",
        lambda token: token * 20,
    ],
)
async def test_c13_to_c23_a_mangled_token_costs_no_query(world: World, mangle: Any) -> None:
    """Quoted, padded, cut, encoded or repeated: refused before anything is asked."""
    issued = await world.sessions.create("alice")
    queries = world.store.queries
    assert whose(await world.ask(NAME + mangle(issued.session_token.encode()))) is None
    assert queries == world.store.queries


async def test_c28_swapped_tokens_open_nothing(world: World) -> None:
    """Each token in the other one's cookie: anonymous, no query, and an event."""
    issued = await world.sessions.create("alice")
    queries = world.store.queries
    swapped = NAME + issued.refresh_token.encode()
    swapped += b"; __Host-refresh=" + issued.session_token.encode()
    assert whose(await world.ask(swapped)) is None
    assert queries == world.store.queries
    assert [TokenSwapped()] == world.happened(TokenSwapped)


@pytest.mark.parametrize("name", [b"__Host-session=", b"__Host-refresh="])
async def test_c28_one_swapped_token_is_told_too(world: World, name: bytes) -> None:
    """Either half of a swap is enough for the event."""
    issued = await world.sessions.create("alice")
    is_session = name == NAME
    text = issued.refresh_token if is_session else issued.session_token
    assert whose(await world.ask(name + text.encode())) is None
    assert [TokenSwapped()] == world.happened(TokenSwapped)


async def test_c48_a_login_without_entropy_fails_closed() -> None:
    """When the system gives no randomness there is an error, and no row."""

    def broken(size: int) -> bytes:
        raise OSError("no entropy")

    for entropy, error in ((broken, OSError), (lambda size: b"", ValueError)):
        world = World(entropy=entropy)
        async with world.sessions:
            with pytest.raises(error):
                await world.sessions.create("alice")
            assert world.store.rows == {}


async def test_c43_no_stored_string_opens_a_session(world: World) -> None:
    """Whoever has the table replays every text in it and stays outside."""
    issued = await world.sessions.create("alice")
    row = world.store.rows[issued.session.id]
    for stolen in (row.token_digest, row.refresh_digest, row.id, row.user_id):
        assert stolen is not None
        claim = stolen.encode()
        assert whose(await world.ask(NAME + claim + b"; __Host-refresh=" + claim)) is None


async def test_c118_another_network_or_browser_is_an_event_only(world: World) -> None:
    """A session goes on from elsewhere, and whoever listens is told."""
    here = Client(address="203.0.113.9", user_agent_hash="a" * 64)
    there = Client(address="198.51.100.7", user_agent_hash="b" * 64)
    issued = await world.sessions.create("alice", client=here)
    world.sessions._state.cache.doubt()
    assert issued.session.id == whose(await world.ask(cookie(issued), client=there))
    (event,) = world.happened(BindingChanged)
    assert isinstance(event, BindingChanged)
    assert (event.address_changed, event.user_agent_changed) == (True, True)
    assert "203.0.113.9" not in repr(event)


class Visit:
    """One request through the middleware, as the application and the client see it."""

    def __init__(self, world: World, **options: Any) -> None:
        self.middleware = SessionAuthMiddleware(self.app, world.sessions, **options)
        self.login: str | None = None
        self.user: str | None = None
        self.address: str | None = None
        self.headers: list[tuple[bytes, bytes]] = []

    async def app(self, scope: Scope, receive: Any, send: Any) -> None:
        """Log in if told to, note who it is, and answer."""
        handle: Handle = scope["handstamp"]
        self.user, self.address = handle.user_id, handle.client.address
        if self.login:
            await handle.login(self.login)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def get(
        self, path: str, *headers: tuple[bytes, bytes], **scope: Any
    ) -> list[bytes]:
        """The Set-Cookie lines of the answer to one request."""

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.headers = list(message["headers"])

        defaults = {"type": "http", "method": "GET", "scheme": "https", "client": None}
        request: Scope = {**defaults, "path": path, "headers": list(headers), **scope}
        await self.middleware(request, receive, send)
        return [value for name, value in self.headers if name == b"set-cookie"]


@pytest.mark.parametrize("is_cached", [True, False])
async def test_c153_an_excluded_path_is_exact(world: World, is_cached: bool) -> None:
    """No spelling of a path but its own is excluded, by the short way and the long."""
    issued = await world.sessions.create("alice")
    visit = Visit(world, exclude=["/public"])
    await visit.get("/public", (b"cookie", cookie(issued)))
    assert visit.user is None
    for path in ("/public/", "//public", "/./public", "/public;x", "/PUBLIC", "/%70ublic"):
        visit.user = None
        if not is_cached:
            world.clock.advance(world.sessions.policy.max_staleness)
        await visit.get(path, (b"cookie", cookie(issued)))
        assert visit.user == "alice", path


async def test_c153_no_header_excludes_a_path(world: World) -> None:
    """Only `scope["path"]` decides: not the raw path, a host or a proxy's word."""
    issued = await world.sessions.create("alice")
    visit = Visit(world, exclude=["/public"])
    headers = [(b"host", b"a/public?x="), (b"x-forwarded-uri", b"/public")]
    scope = {"raw_path": b"/public", "root_path": "/public", "query_string": b"/public"}
    await visit.get("/me", (b"cookie", cookie(issued)), *headers, **scope)
    assert visit.user == "alice"


@pytest.mark.parametrize("proto", [b"http", b"https", b"garbage"])
async def test_c154_secure_stays_whatever_the_scheme(world: World, proto: bytes) -> None:
    """Behind a TLS proxy the scheme is http, and a header may say anything."""
    visit = Visit(world)
    visit.login = "alice"
    lines = await visit.get("/", (b"x-forwarded-proto", proto), scheme="http")
    assert [line.endswith(b"; Secure") for line in lines] == [True, True]
    assert all(line.startswith(b"__Host-") for line in lines)


@pytest.mark.parametrize(
    "host", [b"localhost", b"LOCALHOST:8000", b"127.0.0.1:80", b"[::1]", b"[::1]:8000"]
)
async def test_c155_insecure_cookies_work_on_a_loopback_host(
    world: World, host: bytes
) -> None:
    """With and without a port, in either version of IP and in any case."""
    visit = Visit(world, cookies=Cookies.insecure())
    visit.login = "alice"
    lines = await visit.get("/", (b"host", host))
    assert [line.partition(b"=")[0] for line in lines] == [b"session", b"refresh"]


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        [b""],
        [b"app.example"],
        [b"localhost.evil.example"],
        [b"evil.example:80"],
        [b"localhost:x.example"],
        [b"localhost", b"app.example"],
        [b"::1"],
    ],
)
async def test_c155_insecure_cookies_are_refused_elsewhere(
    world: World, hosts: list[bytes]
) -> None:
    """A login on any other host is a mistake of the configuration, and opens nothing."""
    visit = Visit(world, cookies=Cookies.insecure())
    visit.login = "alice"
    handle = Handle(visit.middleware._options, [(b"host", host) for host in hosts], None)
    with pytest.raises(ConfigError, match="insecure_hosts"):
        await handle.login("alice")
    assert world.store.rows == {}


async def test_c07_a_cookie_beyond_the_cap_is_not_found_in_the_cache_either(
    world: World,
) -> None:
    """Whether a session is cached makes no difference to which cookies count."""
    issued = await world.sessions.create("alice")
    visit = Visit(world)
    filler = b"a=" + b"x" * 65_536 + b"; "
    await visit.get("/", (b"cookie", cookie(issued)))
    assert visit.user == "alice"
    for header in (filler + cookie(issued), cookie(issued) + b"; " + filler[:-2]):
        await visit.get("/", (b"cookie", header))
        assert visit.user is None


async def test_a_flood_of_cookies_pushes_nobody_s_out_of_sight(world: World) -> None:
    """Somebody else's session before the flood and the user's behind it: none counts, and
    the user's own is found where the header is as long as servers take."""
    mine, other = [await world.sessions.create(user) for user in ("alice", "mallory")]
    visit = Visit(world, cookies=Cookies())
    flood = b"; ".join(b"a%d=" % n + b"x" * 4000 for n in range(16))
    for pair in ([other, mine], [mine, other]):
        first, second = map(cookie, pair)
        await visit.get("/", (b"cookie", b"; ".join([first, flood[:60_000], second])))
        assert visit.user is None
        await visit.get("/", (b"cookie", b"; ".join([first, flood, flood, second])))
        assert visit.user is None
    await visit.get("/", (b"cookie", flood[:60_000] + b"; " + cookie(mine)))
    assert visit.user == "alice"


async def test_c27_odd_servers_are_understood(world: World) -> None:
    """Text, views and an iterator in place of a list of bytes: the session is found."""
    issued = await world.sessions.create("alice")
    text = cookie(issued).decode()
    for headers in (
        [("cookie", text)],
        [(memoryview(b"cookie"), memoryview(text.encode()))],
        iter([(b"Cookie", text.encode())]),
    ):
        visit = Visit(world)
        await visit.get("/", headers=headers)
        assert visit.user == "alice"


async def test_c113_a_forwarded_address_needs_a_trusted_peer(world: World) -> None:
    """The peer decides whether its header counts."""
    forwarded = (b"x-forwarded-for", b"1.2.3.4")
    proxies = TrustedProxies("10.0.0.0/8")
    for peer, address in (("10.0.0.1", "1.2.3.4"), ("203.0.113.9", "203.0.113.9")):
        visit = Visit(world, trusted_proxies=proxies)
        await visit.get("/", forwarded, client=(peer, 1))
        assert address == visit.address


async def test_c31_a_login_starts_a_session_of_its_own(world: World) -> None:
    """Whatever was presented has no part in the new tokens, and the old session ends."""
    planted = await world.sessions.create("mallory")
    visit = Visit(world)
    visit.login = "alice"
    lines = await visit.get("/", (b"cookie", cookie(planted)))
    assert planted.session_token.encode() not in b"".join(lines)
    assert whose(await world.ask(cookie(planted))) is None
    assert {r.user_id for r in world.store.rows.values() if r.is_active}.pop() == "alice"


def test_policy_is_the_default_one() -> None:
    """The cases above run under the defaults of the documentation."""
    assert Policy() == World().sessions.policy
