"""Who makes a request: hits, misses, staleness, limits, and several cookies at once.

By number where the catalogue of attacks has one. Not applicable to the engine: C-33 (there
are no anonymous sessions to promote) and C-36 to C-38 (there is no negative cache yet).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest

from handstamp.config import Policy
from handstamp.core.cookies import Credentials
from handstamp.core.models import Authenticated, Client, Invalid, Reason, Record, Unknown
from handstamp.core.tokens import ENTROPY
from handstamp.engine import clocks as engine_clock
from handstamp.events import BindingChanged, DuplicateCookies, TokenSwapped
from handstamp.stores.base import Capabilities
from handstamp.stores.memory import MemoryStore, MemoryUser
from tests.support.clock import FakeClock
from tests.support.engines import (
    ALICE,
    LAPTOP,
    PHONE,
    Engine,
    credentials_of,
    listening,
    running,
    seconds,
    session_of,
)

STALE = Policy().max_staleness
DAY = timedelta(days=1)


def two_processes(policy: Policy | None = None) -> tuple[Engine, Engine]:
    one = Engine(policy=policy)
    return one, Engine(policy=policy, clock=one.clock, store=one.store)


async def test_p1_a_cached_session_asks_nothing() -> None:
    """From the login on, requests inside the staleness bound cost no query."""
    async with running() as engine:
        issued = await engine.login()
        before = engine.store.queries
        for _ in range(100):
            assert session_of(await engine.ask(issued)).id == issued.session.id
        assert engine.store.queries == before
        assert engine.sessions.stats().hits == 100


async def test_a_miss_is_one_query() -> None:
    """Another process asks once, and then no more."""
    one, two = two_processes()
    async with one.sessions, two.sessions:
        await listening(two)
        issued = await one.login()
        before = two.store.queries
        await two.ask(issued)
        await two.ask(issued)
        assert two.store.queries == before + 1
        assert (two.sessions.stats().hits, two.sessions.stats().misses) == (1, 1)


async def test_p4_an_entry_is_read_again_when_it_is_stale() -> None:
    """Not before `max_staleness`, and then once."""
    async with running() as engine:
        issued = await engine.login()
        before = engine.store.queries
        engine.clock.advance(STALE - seconds(0.001))
        await engine.ask(issued)
        assert engine.store.queries == before
        engine.clock.advance(0.001)
        await engine.ask(issued)
        assert engine.store.queries == before + 1


async def test_p4_a_session_revoked_elsewhere_is_out_after_the_bound() -> None:
    """Another process revoked it: never later than `max_staleness`."""
    one, two = two_processes()
    async with one.sessions, two.sessions:
        issued = await one.login()
        await two.ask(issued)
        await one.sessions.revoke(issued.session.id)
        engine_answer = await one.ask(issued)
        assert engine_answer == Invalid(Reason.REVOKED)
        one.clock.advance(STALE)
        assert await two.ask(issued) == Invalid(Reason.REVOKED)


@pytest.mark.parametrize(
    ("change", "policy", "reason"),
    [
        (MemoryUser(is_active=False), Policy(), Reason.USER_DISABLED),
        (
            MemoryUser(password_changed_at=datetime(2027, 1, 1, tzinfo=UTC)),
            Policy(end_on_password_change=True),
            Reason.PASSWORD_CHANGED,
        ),
        (MemoryUser(password_changed_at=datetime(2027, 1, 1, tzinfo=UTC)), Policy(), None),
        (MemoryUser(locked_until=datetime(2027, 1, 1, tzinfo=UTC)), Policy(), None),
    ],
    ids=["disabled", "password", "password, option off", "locked"],
)
async def test_what_becomes_of_the_user_is_known_after_the_bound(
    change: MemoryUser, policy: Policy, reason: Reason | None
) -> None:
    """The user's state is read with every row; a lock and, by default, a new password
    end nothing."""
    async with running(policy=policy) as engine:
        issued = await engine.login()
        engine.store.users[ALICE] = change
        engine.clock.advance(STALE)
        answer = await engine.ask(issued, refresh=False)
        if reason is None:
            assert session_of(answer).id == issued.session.id
        else:
            assert answer == Invalid(reason)


async def test_c59_an_entry_ends_with_its_session() -> None:
    """A cached session token is out at its expiry to the millisecond, without a read."""
    async with running(policy=Policy(max_staleness=DAY, longest_trust=DAY)) as engine:
        issued = await engine.login()
        engine.clock.advance(engine.policy.session_ttl - seconds(0.001))
        assert session_of(await engine.ask(issued, refresh=False))
        engine.clock.advance(0.001)
        assert await engine.ask(issued, refresh=False) == Invalid(Reason.EXPIRED)


async def test_c59_reading_again_extends_nothing() -> None:
    """An expiry that is recomputed on every load never comes."""
    async with running() as engine:
        issued = await engine.login()
        for _ in range(15 * 60 - 1):
            engine.clock.advance(1)
            assert session_of(await engine.ask(issued, refresh=False))
        engine.clock.advance(1)
        assert isinstance(await engine.ask(issued, refresh=False), Invalid)


async def test_an_idle_session_is_out() -> None:
    """At the limit after its last active request, and not before."""
    async with running(policy=Policy(idle_ttl=timedelta(minutes=5))) as engine:
        issued = await engine.login()
        engine.clock.advance(timedelta(minutes=5) - seconds(1))
        assert session_of(await engine.ask(issued))
        engine.clock.advance(timedelta(minutes=5) - seconds(1))
        assert session_of(await engine.ask(issued))
        engine.clock.advance(timedelta(minutes=5))
        assert await engine.ask(issued, refresh=False) == Invalid(Reason.IDLE)


async def test_an_idle_session_is_out_by_its_refresh_token_too() -> None:
    """An idle limit that a refresh could pass would be none."""
    async with running(policy=Policy(idle_ttl=timedelta(minutes=5))) as engine:
        issued = await engine.login()
        engine.clock.advance(timedelta(minutes=5))
        assert await engine.ask(issued) == Invalid(Reason.IDLE)


async def test_an_idle_limit_denies_on_fresh_data_only() -> None:
    """Activity in another process counts, though this one has an old entry."""
    one, two = two_processes(
        Policy(idle_ttl=timedelta(minutes=5), max_staleness=DAY, longest_trust=DAY)
    )
    async with one.sessions, two.sessions:
        issued = await one.login()
        await two.ask(issued)
        one.clock.advance(timedelta(minutes=4))
        await one.ask(issued)
        await one.sessions.flush()
        one.clock.advance(timedelta(minutes=2))
        assert session_of(await two.ask(issued, refresh=False)).id == issued.session.id


async def test_activity_that_is_not_written_yet_counts() -> None:
    """An outage of the flush signs no active user out."""
    async with running(policy=Policy(idle_ttl=timedelta(minutes=5))) as engine:
        issued = await engine.login()
        for _ in range(10):
            engine.clock.advance(60)
            assert session_of(await engine.ask(issued, refresh=False))
        last = engine.row(issued.session.id).last_activity_at
        assert last == issued.session.created_at  # indeed nothing was written


async def test_passive_requests_extend_no_idle_limit() -> None:
    """A page that polls all night does not keep its user signed in."""
    async with running(policy=Policy(idle_ttl=timedelta(minutes=5))) as engine:
        issued = await engine.login()
        for _ in range(4):
            engine.clock.advance(60)
            assert session_of(await engine.ask(issued, passive=True, refresh=False))
            await engine.sessions.flush()
        engine.clock.advance(60.001)
        answer = await engine.ask(issued, passive=True)
        assert answer == Invalid(Reason.IDLE)


async def test_a_passive_first_use_is_recorded_by_the_smallest_step() -> None:
    """Seen, and as good as no activity; later passive requests record nothing."""
    async with running() as engine:
        issued = await engine.login()
        engine.clock.advance(200)
        await engine.ask(issued, passive=True)
        assert await engine.sessions.flush() == 1
        step = timedelta(microseconds=1)
        row = engine.row(issued.session.id)
        assert row.last_activity_at == issued.session.created_at + step
        engine.clock.advance(200)
        await engine.ask(issued, passive=True)
        assert engine.sessions.stats().pending_touches == 0


async def test_a_passive_request_is_no_activity_from_the_cache_either() -> None:
    """However often it polls: only that its token was seen."""
    async with running() as engine:
        issued = await engine.login()
        for _ in range(3):
            engine.clock.advance(1)
            await engine.ask(issued, passive=True)
        (touch,) = engine.sessions._state.activity._pending.values()
        assert touch.at is None


# Clocks.


@pytest.mark.parametrize(
    "jump", [timedelta(hours=-1), timedelta(hours=1), 400 * DAY], ids=str
)
async def test_p15_c61_c62_a_jump_of_the_system_clock_changes_nothing(
    jump: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that is judged or counted down reads it."""

    class Jumped(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime.now(UTC) + jump

    async with running() as engine:
        issued = await engine.login()
        monkeypatch.setattr(engine_clock, "datetime", Jumped)
        assert session_of(await engine.ask(issued))
        assert engine.sessions.database_now() == engine.clock.now()
        engine.clock.advance(engine.policy.session_ttl - seconds(1))
        assert session_of(await engine.ask(issued, refresh=False))
        engine.clock.advance(1)
        assert isinstance(await engine.ask(issued, refresh=False), Invalid)


async def test_p15_lifetimes_are_the_databases() -> None:
    """A database whose clock is an hour ahead of its past decides at the next read."""
    async with running() as engine:
        issued = await engine.login()
        engine.clock.database += timedelta(hours=1)
        assert session_of(await engine.ask(issued, refresh=False))  # still inside the bound
        engine.clock.advance(STALE)
        assert await engine.ask(issued, refresh=False) == Invalid(Reason.EXPIRED)


async def test_c60_a_machine_that_slept_believes_nothing_cached() -> None:
    """The clock counted on: the first request reads."""
    one, two = two_processes()
    async with one.sessions, two.sessions:
        issued = await one.login()
        await two.ask(issued)
        await one.sessions.revoke(issued.session.id)
        one.clock.advance(3600)
        assert isinstance(await two.ask(issued, refresh=False), Invalid)


async def test_a_slow_query_shortens_the_life_it_reports() -> None:
    """What is left is counted from before the query, so an entry never ends late."""

    class Slow(MemoryStore):
        async def find(self, digests: Sequence[str]) -> Sequence[Record]:
            found = await super().find(digests)
            clock.uptime += 3  # on the way back
            return found

    clock = FakeClock()
    async with running(clock=clock, store=Slow(clock.now)) as engine:
        issued = await engine.login()
        engine.sessions._state.cache.doubt()
        await engine.ask(issued)
        before = engine.store.queries
        clock.uptime += 2
        await engine.ask(issued)
        assert engine.store.queries == before + 1


# Nothing known, nothing genuine, nothing at all.


async def test_p3_an_anonymous_request_asks_nothing() -> None:
    """Neither the store nor the events hear of it."""
    async with running() as engine:
        answer = await engine.sessions.authenticate(Credentials(), LAPTOP)
        assert answer == Invalid(Reason.ABSENT)
        assert (engine.store.queries, engine.events) == (0, [])


def forgeries(token: str) -> list[str]:
    value, _, signature = token.rpartition(".")
    return [
        "A" * 43 + "." + "A" * 43,
        value,
        signature,
        f"{signature}.{value}",
        token[:-1] + ("A" if token[-1] != "A" else "E"),
        ("A" if token[0] != "A" else "B") + token[1:],
        token + "=",
        token + ".",
        token.swapcase(),
        "x",
    ]


async def test_p2_c35_forged_session_tokens_cost_nothing() -> None:
    """Zero queries for a flood of them, and no cached session is evicted."""
    async with running(cache_size=1) as engine:
        issued = await engine.login()
        before = engine.store.queries
        for n in range(200):
            for text in forgeries(issued.session_token):
                forged = [text, f"{n}{text}"[: len(text)]]
                answer = await engine.sessions.authenticate(
                    credentials_of(forged[:1]), PHONE
                )
                assert answer == Invalid(Reason.FORGED)
        assert engine.store.queries == before
        assert session_of(await engine.ask(issued)).id == issued.session.id
        assert engine.store.queries == before


async def test_c32_an_invented_token_never_becomes_valid() -> None:
    """Whatever a client presented before or at a login has no part in the session."""
    invented = "A" * 43 + "." + "A" * 43
    async with running(policy=Policy(accept_unsigned=True)) as engine:
        await engine.sessions.authenticate(credentials_of([invented], [invented]), PHONE)
        issued = await engine.login()
        answer = await engine.sessions.authenticate(
            credentials_of([invented], [invented]), PHONE
        )
        assert isinstance(answer, Invalid)
        assert invented not in (issued.session_token, issued.refresh_token)


async def test_no_request_creates_a_session() -> None:
    """Ten thousand anonymous, forged and expired ones leave no row behind."""
    async with running() as engine:
        for n in range(10_000):
            credentials = credentials_of(
                [f"{n}"] if n % 2 else [], [f"{n}"] if n % 3 else []
            )
            await engine.sessions.authenticate(credentials, PHONE)
        assert engine.store.rows == {}


@pytest.mark.parametrize("unsigned", [False, True])
async def test_c43_p11_a_stolen_table_opens_no_session(unsigned: bool) -> None:
    """Every string of the dump, replayed as either cookie, is worth nothing."""
    async with running(policy=Policy(accept_unsigned=unsigned)) as engine:
        issued = await engine.login()
        row = engine.row(issued.session.id)
        stored = [
            text
            for name in row.__dataclass_fields__
            if isinstance(text := getattr(row, name), str)
        ]
        assert row.token_digest in stored
        for text in stored:
            for credentials in (credentials_of([text]), credentials_of([], [text])):
                answer = await engine.sessions.authenticate(credentials, PHONE)
                assert isinstance(answer, Invalid)
        assert engine.row(issued.session.id).is_active


async def test_p11_the_key_alone_opens_no_session() -> None:
    """Tokens that are genuine but of no row are not found."""
    async with running() as engine:
        issued = await engine.login()
        other = Engine(clock=engine.clock)  # the same key, an empty table
        async with other.sessions:
            elsewhere = await other.login()
        assert await engine.ask(elsewhere) == Invalid(Reason.NOT_FOUND)
        assert session_of(await engine.ask(issued))


async def test_p5_an_outage_is_no_verdict() -> None:
    """Unknown where fresh data is needed; cached sessions go on inside the bound."""
    one, two = two_processes()
    async with one.sessions, two.sessions:
        issued = await one.login()
        one.store.down = True
        assert session_of(await one.ask(issued)).id == issued.session.id
        assert isinstance(await two.ask(issued), Unknown)
        one.clock.advance(STALE)
        assert isinstance(await one.ask(issued), Unknown)
        one.store.down = False


async def test_c39_an_outage_is_not_remembered() -> None:
    """The first answer afterwards is the right one."""
    one, two = two_processes()
    async with one.sessions, two.sessions:
        issued = await one.login()
        two.store.down = True
        await two.ask(issued)
        two.store.down = False
        assert session_of(await two.ask(issued)).id == issued.session.id


async def test_p3_an_outage_means_nothing_to_anonymous_requests() -> None:
    """Who shows nothing, or nothing genuine, is nobody, whatever the database does."""
    async with running() as engine:
        engine.store.down = True
        for credentials in (Credentials(), credentials_of(["x"], ["y"])):
            answer = await engine.sessions.authenticate(credentials, LAPTOP)
            assert isinstance(answer, Invalid)
        engine.store.down = False


# Races with a read.


class Racing(MemoryStore):
    """Runs something between the read of the rows and the arrival of the answer."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock.now)
        self.meanwhile: Callable[[], Awaitable[object]] | None = None

    async def find(self, digests: Sequence[str]) -> Sequence[Record]:
        found = await super().find(digests)
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        return found


@pytest.mark.parametrize("by_user", [True, False])
async def test_c51_a_revoked_session_is_not_cached_by_the_read_it_raced(
    by_user: bool,
) -> None:
    """The read found it alive; the revocation came before the answer."""
    clock = FakeClock()
    store = Racing(clock)
    async with running(clock=clock, store=store) as engine:
        issued = await engine.login()
        sessions = engine.sessions
        sessions._state.cache.drop(sha256(issued.session_token.encode()).digest())
        store.meanwhile = (
            (lambda: sessions.revoke_user(ALICE))
            if by_user
            else (lambda: sessions.revoke(issued.session.id))
        )
        await engine.ask(issued)
        assert sessions.stats().cached == 0
        assert await engine.ask(issued) == Invalid(Reason.REVOKED)


async def test_c124_a_row_nobody_asked_for_is_nobodys() -> None:
    """If answers got mixed up below us, no one is given another's identity."""

    class Confused(MemoryStore):
        async def find(self, digests: Sequence[str]) -> Sequence[Record]:
            return await super().find([r.token_digest for r in self.rows.values()])

    clock = FakeClock()
    async with running(clock=clock, store=Confused(clock.now)) as engine:
        one, two = await engine.login(), await engine.login("bob")
        engine.sessions._state.cache.doubt()
        assert session_of(await engine.ask(one)).user_id == ALICE
        del engine.store.rows[one.session.id]
        engine.sessions._state.cache.doubt()
        assert await engine.ask(one, refresh=False) == Invalid(Reason.NOT_FOUND)
        assert session_of(await engine.ask(two)).user_id == "bob"


async def test_many_users_at_once_are_never_mixed_up() -> None:
    """Each request is given the identity its own token names, cancelled ones or not."""

    class Yielding(MemoryStore):
        async def find(self, digests: Sequence[str]) -> Sequence[Record]:
            await asyncio.sleep(0)
            found = await super().find(digests)
            await asyncio.sleep(0)
            return found

    clock = FakeClock()
    async with running(clock=clock, store=Yielding(clock.now), cache_size=3) as engine:
        issued = {f"user{n}": await engine.login(f"user{n}") for n in range(20)}

        async def ask(user: str) -> None:
            assert session_of(await engine.ask(issued[user], refresh=False)).user_id == user

        tasks = [asyncio.create_task(ask(user)) for user in issued for _ in range(10)]
        await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        errors = [r for r in results if isinstance(r, Exception)]
        assert errors == []


# Several cookies.


FAKE = ["planted", "A" * 43 + "." + "A" * 43, "B" * 43 + "." + "Q" * 43]


@pytest.mark.parametrize("cached", [True, False])
async def test_one_valid_cookie_among_forged_ones_counts(cached: bool) -> None:
    """Wherever it stands; what anybody can make up is no event and no line in the log."""
    async with running() as engine:
        issued = await engine.login()
        for place in range(3):
            if not cached:
                engine.sessions._state.cache.doubt()
            texts = [*FAKE[:place], issued.session_token, *FAKE[place:]]
            answer = await engine.sessions.authenticate(credentials_of(texts), LAPTOP)
            assert session_of(answer).id == issued.session.id
        assert engine.of(DuplicateCookies) == []


@pytest.mark.parametrize("cached", [True, False])
async def test_a_dead_cookie_of_ours_beside_a_live_one_is_an_event(cached: bool) -> None:
    """Both are genuine, and those alone are counted."""
    async with running() as engine:
        dead, live = await engine.login(), await engine.login()
        await engine.sessions.revoke(dead.session.id)
        if not cached:
            engine.sessions._state.cache.doubt()
        texts = [FAKE[0], dead.session_token, FAKE[1], live.session_token]
        answer = await engine.sessions.authenticate(credentials_of(texts), LAPTOP)
        assert session_of(answer).id == live.session.id
        events = engine.of(DuplicateCookies)
        assert [(e.candidates, e.conflict) for e in events] == [(2, False)]


async def test_two_cached_tokens_of_one_session_cost_no_query() -> None:
    """Before and after a rotation, within grace: one session, and both are known."""
    async with running() as engine:
        issued = await engine.login()
        later = await engine.refreshed(issued)
        before = engine.store.queries
        answer = await engine.ask(issued, later, refresh=False)
        assert session_of(answer).id == issued.session.id
        assert engine.store.queries == before


@pytest.mark.parametrize("refresh", [[], FAKE[1:], [r + ".x" for r in FAKE]])
async def test_several_forged_cookies_are_no_event(
    refresh: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A flood of them fills no log, whatever their number; and costs no query."""
    async with running() as engine:
        before = engine.store.queries
        caplog.clear()
        answer = await engine.sessions.authenticate(credentials_of(FAKE, refresh), LAPTOP)
        assert answer == Invalid(Reason.FORGED)
        assert (engine.events, caplog.records) == ([], [])
        assert engine.store.queries == before


async def test_several_unsigned_cookies_that_no_row_has_are_no_event() -> None:
    """Where unsigned tokens are accepted, only the table can say which are genuine."""
    async with running(policy=Policy(accept_unsigned=True)) as engine:
        for refresh in ([], FAKE):
            answer = await engine.sessions.authenticate(
                credentials_of(FAKE, refresh), LAPTOP
            )
            assert answer == Invalid(Reason.NOT_FOUND)
        assert engine.events == []


# What needs no answer from the event loop, so that a WSGI server never asks.


def signed(engine: Engine) -> tuple[str, str]:
    """A pair with our signatures, of no session."""
    pair = engine.sessions._state.tokens.mint("01J", bytes(2 * ENTROPY), remember=True)
    return pair.session, pair.refresh


STORED = "sha256:" + "0" * 64
ONLY_SIGNED = [
    ([], [], True),
    (FAKE[:1], [], True),
    ([], FAKE[:1], True),
    (FAKE, FAKE, True),
    ([*FAKE, "S"], [], False),
    (["S", *FAKE], FAKE, False),
    (FAKE, [*FAKE, "R"], False),
    (FAKE, ["R"], False),
    # In each other's place: nothing is opened, but it is an event.
    (["R", *FAKE], [], False),
    ([], [*FAKE, "S"], False),
]
"""Session cookies, refresh cookies, whether all is forged; S and R are signed by us."""
UNSIGNED = [
    ([], [], True),
    # A digest as it is stored is never a token, nor is the other token of ours.
    ([STORED], [], True),
    ([STORED, STORED[:-1] + "1"], [], True),
    ([STORED, FAKE[0]], [], False),
    (FAKE[:1], [], False),
    (FAKE, [], False),
    (["S"], [], False),
    (["R"], [], False),
    ([], ["S"], False),
]


def told(engine: Engine, session: list[str], refresh: list[str]) -> bool:
    """What the engine says of these cookies."""
    one, other = signed(engine)
    names = {"S": one, "R": other}
    texts = [[names.get(text, text) for text in each] for each in (session, refresh)]
    return engine.sessions.is_forged(credentials_of(*texts))


@pytest.mark.parametrize(("session", "refresh", "forged"), ONLY_SIGNED)
def test_a_request_is_forged_if_nothing_of_it_is_signed(
    session: list[str], refresh: list[str], forged: bool
) -> None:
    """However many cookies it has; one that is genuine is enough."""
    assert told(Engine(), session, refresh) is forged


@pytest.mark.parametrize(("session", "refresh", "forged"), UNSIGNED)
def test_an_unsigned_session_token_is_not_forged_where_it_may_be_in_the_table(
    session: list[str], refresh: list[str], forged: bool
) -> None:
    """Under ``accept_unsigned``, and where the table holds plaintext tokens."""
    accepting = Engine(policy=Policy(accept_unsigned=True))
    plain = Engine(store=Plain(FakeClock().now))
    assert told(accepting, session, refresh) is forged
    assert told(plain, session, refresh) is forged


def test_an_unsigned_refresh_token_is_asked_for_only_under_accept_unsigned() -> None:
    """A table that holds plaintext session tokens has no refresh tokens."""
    assert not told(Engine(policy=Policy(accept_unsigned=True)), [], FAKE)
    assert told(Engine(store=Plain(FakeClock().now)), [], FAKE)


class Plain(MemoryStore):
    """A table whose rows may hold plaintext tokens."""

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, plain=True)


@pytest.mark.parametrize("cached", [True, False])
async def test_two_valid_cookies_of_two_sessions_count_for_none(cached: bool) -> None:
    """Anonymous, with an event, and no refresh token is looked at."""
    async with running() as engine:
        one, two = await engine.login(), await engine.login("bob")
        if not cached:
            engine.sessions._state.cache.doubt()
        credentials = credentials_of(
            [one.session_token, two.session_token], [one.refresh_token]
        )
        answer = await engine.sessions.authenticate(credentials, LAPTOP)
        assert answer == Invalid(Reason.CONFLICT)
        assert [e.conflict for e in engine.of(DuplicateCookies)] == [True]


async def test_a_live_cookie_beside_a_revoked_one_counts() -> None:
    """The dead one of another session is no conflict."""
    async with running() as engine:
        one, two = await engine.login(), await engine.login("bob")
        await engine.sessions.revoke(two.session.id)
        answer = await engine.ask(two, one, refresh=False)
        assert session_of(answer).id == one.session.id


async def test_swapped_tokens_are_refused_and_reported() -> None:
    """A refresh token is no session token, nor the reverse, genuine or not."""
    async with running() as engine:
        issued = await engine.login()
        for credentials in (
            credentials_of([issued.refresh_token]),
            credentials_of([], [issued.session_token]),
        ):
            answer = await engine.sessions.authenticate(credentials, PHONE)
            assert isinstance(answer, Invalid)
        assert len(engine.of(TokenSwapped)) == 2


async def test_swapped_tokens_are_refused_where_unsigned_ones_are_accepted() -> None:
    """Accepting what the application issued accepts no token of ours in a wrong place."""
    async with running(policy=Policy(accept_unsigned=True)) as engine:
        issued = await engine.login()
        before = engine.store.queries
        answer = await engine.sessions.authenticate(
            credentials_of([issued.refresh_token]), PHONE
        )
        assert answer == Invalid(Reason.FORGED)
        assert engine.store.queries == before


# Who it is from where.


async def test_c118_another_network_is_an_event_and_no_verdict() -> None:
    """Once per read of a new entry, and naming both clients."""
    one, two = two_processes()
    async with one.sessions, two.sessions:
        issued = await one.login(client=LAPTOP)
        assert session_of(await two.ask(issued, client=PHONE))
        (event,) = two.of(BindingChanged)
        assert (event.was.address, event.now) == (LAPTOP.address, PHONE)
        assert (event.address_changed, event.user_agent_changed) == (True, True)


async def test_another_address_of_the_same_network_is_no_event() -> None:
    """Networks are compared, as logs show them."""
    one, two = two_processes()
    near = Client(address="198.51.3.4", user_agent_hash=LAPTOP.user_agent_hash)
    async with one.sessions, two.sessions:
        issued = await one.login(client=LAPTOP)
        assert isinstance(await two.ask(issued, client=near), Authenticated)
        assert two.of(BindingChanged) == []


async def test_c118_a_change_of_networks_shows_in_the_process_that_knows_the_session() -> (
    None
):
    """At the next read of the row, and once for every network it is used from."""
    async with running() as engine:
        issued = await engine.login(client=LAPTOP)
        for client in (LAPTOP, PHONE, PHONE, PHONE, LAPTOP, PHONE):
            engine.clock.advance(STALE)
            await engine.ask(issued, client=client)
        assert [e.now for e in engine.of(BindingChanged)] == [PHONE, PHONE]
