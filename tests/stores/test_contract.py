"""The contract of `stores/base.py`, kept by every store on every shape.

A table is added as one more name in `tests/support/tables.py`. A rule that it cannot
have, because it lacks the capability or the column, is not collected for it; what each
can do is pinned in `test_table_foreign.py` and `tests/supabase/test_store.py`.
Rule 6 and everything about several connections is in `test_table.py` and there, since only
a database has them. One database serves all tests of a table: each empties it first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256

import pytest
from _pytest.mark.structures import ParameterSet

from handstamp.config import Policy
from handstamp.core.lifetime import judge_family, sliding_expiry
from handstamp.core.models import Client, Invalid, NewSession, Record, Touch, Valid
from handstamp.core.rotation import rotated_at, was_seen
from handstamp.errors import LoginRefused, SessionsUnavailable
from handstamp.stores.base import (
    ActivityStore,
    Ended,
    ListenConnection,
    ListeningStore,
    PlaintextStore,
    RotatingStore,
    StepUpStore,
    recording,
    rotating,
)
from tests.support.foreign_tables import FOREIGN
from tests.support.tables import (
    DAY,
    DEFINITIONS,
    EPOCH,
    LAPTOP,
    POLICY,
    SECOND,
    STEP,
    PostgresTable,
    Table,
    fresh_id,
    fresh_session,
    has,
    opened,
    some_digest,
    step_up,
    successor,
)

MINUTE = timedelta(minutes=1)
TTL = POLICY.session_ttl
AuthRequest = Callable[[], Awaitable[object]]
ABSURD_IDS = [
    "",
    "x",
    "x" * 27,
    "x" * 10_000,
    "%",
    "'",
    "1e3",
    "-1",
    "9" * 19,
    "\x00",
    "a\x00b",
    "\ud800",
    "é",
]


needs = pytest.mark.needs


def short(value: object) -> str:
    return ascii(value)[:20]


OPTIONAL = [
    "refresh_expires_at",
    "created_at",
    "last_activity_at",
    "address",
    "user_agent",
    "user_agent_hash",
    "fingerprint",
    "level",
]
"""What a record knows only if the table has a column for it."""
TOKYO = "Asia/Tokyo"
"""A time without a time zone is nine hours off there, unless it is read as UTC."""


def on_the_systems_own(name: str) -> ParameterSet:
    return pytest.param(f"system {name}", marks=pytest.mark.postgres15)


KINDS = [*DEFINITIONS, *map(on_the_systems_own, ("ulid", "uuid", "supabase"))]


def words_of(rule: object) -> list[str]:
    """What a rule needs of a table, whatever its parameters."""
    marks = [mark for mark in getattr(rule, "pytestmark", ()) if mark.name == "needs"]
    return [word for mark in marks for word in mark.args]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each rule for every table that can keep it."""
    if "kind" in metafunc.fixturenames:
        words = words_of(metafunc.function)
        kinds = [kind for kind in KINDS if can_keep(words, kind)]
        metafunc.parametrize("kind", kinds, indirect=True)


def can_keep(words: list[str], kind: str | ParameterSet) -> bool:
    name = kind if isinstance(kind, str) else str(kind.values[0])
    return all(has(name.rpartition(" ")[2], word) for word in words)


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Each table by its name and its database."""
    server, _, name = request.param.rpartition(" ")
    if name == "memory":
        return name, ""
    return name, request.getfixturevalue(f"{server}_lasting" if server else "lasting")(name)


@pytest.fixture
async def table(kind: tuple[str, str]) -> AsyncIterator[Table]:
    """An empty table of each kind, whose clock only the test moves."""
    name, dsn = kind
    zone = TOKYO if name in (*FOREIGN, "supabase") else "UTC"
    async with opened(name, dsn, zone) as table:
        yield table


@pytest.fixture
async def user(table: Table) -> str:
    """A user who may sign in; the store has looked at its table."""
    await table.store.ready()
    return await table.add_user()


async def created(table: Table, user: str, **changes: object) -> Record:
    new = await fresh_session(table, user, **changes)
    return (await table.create(new, POLICY)).record


async def found(table: Table, session_id: str) -> Record:
    record = await table.store.find_by_id(session_id)
    assert record is not None
    return record


async def is_over(table: Table, session_id: str) -> bool:
    """Whether a session has ended, however this table says so."""
    record = await table.store.find_by_id(session_id)
    return record is None or not record.is_active


async def rotated(table: Table, record: Record) -> Record:
    after = await table.store.rotate(successor(record.id, record.refresh_digest))
    assert after is not None
    return after


def touch_of(record: Record, at: object) -> Touch:
    return Touch(session_id=record.id, token_digest=record.token_digest, at=at)  # type: ignore[arg-type]


# Which protocols a store has.


FEATURES: dict[str, type] = {
    "new_tokens": StepUpStore,
    "refresh": RotatingStore,
    "touch": ActivityStore,
    "plain": PlaintextStore,
}


async def test_a_store_has_the_protocol_of_all_its_table_can_do(table: Table) -> None:
    """What a table can do can be asked of its store; every store here listens."""
    missing = [
        word
        for word, feature in FEATURES.items()
        if has(table.name, word) and not isinstance(table.store, feature)
    ]
    assert missing == []
    assert isinstance(table.store, ListeningStore)


async def test_the_engine_is_given_a_feature_only_where_the_table_has_it(
    table: Table,
) -> None:
    """By the capabilities of the table, whatever methods the class of its store has."""
    assert (await rotating(table.store) is not None) is has(table.name, "refresh")
    assert (await recording(table.store) is not None) is has(table.name, "touch")


# Rule 1: absence is None or an empty list.


async def test_what_is_absent_is_none_or_empty(table: Table, user: str) -> None:
    """Nothing is found in an empty table, and nothing there can be changed."""
    store, digest = table.store, some_digest()
    assert list(await store.find([digest])) == []
    for absent in await absent_ids(table):
        assert list(await store.find([absent])) == []
        assert await store.find_by_id(absent) is None
        assert await store.revoke(absent, reason="x") is None
    assert list(await store.revoke_user(user, reason="x")) == []
    assert list(await store.list_for_user(user)) == []
    assert await store.prune(POLICY, batch=10) == 0


async def absent_ids(table: Table) -> list[str]:
    return ["01J00000000000000000000000", await fresh_id(table)]


@needs("refresh")
async def test_an_absent_session_is_not_rotated(table: Table) -> None:
    """Neither by its refresh token nor by its id."""
    store, digest = table.store, some_digest()
    assert await store.find_by_refresh(digest) is None
    for absent in await absent_ids(table):
        assert await store.rotate(successor(absent, digest)) is None
        assert await store.redate(successor(absent, digest)) is None


@needs("new_tokens")
async def test_an_absent_session_gets_no_new_tokens(table: Table) -> None:
    """Nor a level, where there are levels."""
    for absent in await absent_ids(table):
        assert await table.store.replace_tokens(step_up(absent, None)) is None
        if has(table.name, "level"):
            assert await table.store.replace_tokens(step_up(absent, 1)) is None


@needs("touch")
async def test_no_touches_change_nothing(table: Table) -> None:
    """An empty batch is no error."""
    assert await table.store.touch([], POLICY) == 0


async def test_an_absurd_id_is_not_found(table: Table, user: str) -> None:
    """No text a client could send as an id is an error."""
    record = await created(table, user)
    store = table.store
    for absurd in ABSURD_IDS:
        shown = short(absurd)
        assert await store.find_by_id(absurd) is None, shown
        assert await store.revoke(absurd, reason="x") is None, shown
        assert await store.revoke(absurd, reason="x", user_id=user) is None, shown
        assert await store.revoke(record.id, reason="x", user_id=absurd) is None, shown
        assert list(await store.revoke_user(absurd, reason="x")) == [], shown
        assert list(await store.list_for_user(absurd)) == [], shown
        assert (await found(table, record.id)).is_active, shown


async def test_an_absurd_id_to_keep_keeps_nothing(table: Table, user: str) -> None:
    """`revoke_user` with a `keep` that is no id of the user's ends all."""
    for absurd in ABSURD_IDS:
        record = await created(table, user)
        ended = await table.store.revoke_user(user, reason="x", keep=absurd)
        assert list(ended) == [Ended(id=record.id, user_id=user)], short(absurd)


async def test_a_digest_is_compared_whole(table: Table, user: str) -> None:
    """Neither a part of a digest, nor another spelling, nor a pattern finds a row."""
    digest = (await created(table, user)).token_digest
    others = [digest[:-1], digest.upper(), digest + "0", digest[:-1] + "%", ""]
    assert list(await table.store.find(others)) == []


# Rule 2: times are the store's own clock's.


async def test_a_record_is_what_was_written(table: Table, user: str) -> None:
    """A created session comes back as it was asked for, by id and by both digests."""
    new = await fresh_session(table, user)
    record = (await table.create(new, POLICY)).record
    whole = Record(
        id=new.id,
        user_id=user,
        token_digest=new.token_digest,
        refresh_digest=new.refresh_digest,
        created_at=table.now,
        expires_at=table.now + new.session_ttl,
        refresh_expires_at=table.now + POLICY.refresh_ttl,
        last_activity_at=table.now,
        is_active=True,
        read_at=table.now,
        address=LAPTOP.address,
        user_agent=LAPTOP.user_agent,
        user_agent_hash=LAPTOP.user_agent_hash,
        fingerprint=LAPTOP.fingerprint,
        level=table.lowest_level,
        slides=table.store.capabilities.sliding,
        undated=not table.store.capabilities.absolute,
        unlimited=not has(table.name, "lifetimes"),
    )
    absent = [name for name in OPTIONAL if getattr(table.shape, name) is None]
    expected = replace(whole, **dict.fromkeys(absent))
    if table.shape.id_is_token:
        expected = replace(expected, id=new.token_digest)
    assert record == expected
    assert await table.store.find_by_id(record.id) == record
    assert list(await table.store.find([some_digest(), new.token_digest])) == [record]
    if table.store.capabilities.refresh:
        assert await table.store.find_by_refresh(record.refresh_digest or "") == record
    assert list(await table.store.list_for_user(user)) == [record]


async def test_a_read_carries_the_clock_of_its_own_moment(table: Table, user: str) -> None:
    """`read_at` moves with the table's clock, in every method that reads or writes."""
    record = await created(table, user)
    await table.advance(MINUTE)
    assert (await found(table, record.id)).read_at == table.now
    if table.store.capabilities.refresh:
        assert (await rotated(table, record)).read_at == table.now
    assert [r.read_at for r in await table.store.list_for_user(user)] == [table.now]


@needs("refresh")
async def test_the_refresh_limit_never_passes_the_longest_life(
    table: Table, user: str
) -> None:
    """`longest` caps the refresh token, counted from the creation."""
    record = await created(table, user, longest=DAY)
    assert record.refresh_expires_at == table.now + DAY
    await table.advance(DAY / 2)
    step = successor(record.id, record.refresh_digest, longest=DAY)
    after = await table.store.rotate(step)
    assert after is not None
    assert after.refresh_expires_at == (record.created_at or table.now) + DAY


async def test_a_session_is_valid_until_its_end(table: Table, user: str) -> None:
    """By the rules of the policy that it was created with."""
    record = await created(table, user)
    await table.advance(POLICY.refresh_ttl - MINUTE)
    assert isinstance(judge_family(await found(table, record.id), POLICY), Valid)
    await table.advance(MINUTE + STEP)
    assert isinstance(judge_family(await found(table, record.id), POLICY), Invalid)


# Rule 3: create inserts, and nothing brings the dead to life.


@needs("own_ids")
async def test_create_never_overwrites_a_session(table: Table, user: str) -> None:
    """An id that is taken is refused, and the row stays as it was."""
    record = await created(table, user)
    with pytest.raises(SessionsUnavailable):
        await created(table, await table.add_user(), id=record.id)
    assert await table.store.find_by_id(record.id) == record


async def test_create_never_gives_two_sessions_one_token(table: Table, user: str) -> None:
    """A session token that is taken is refused, and nothing is written."""
    record = await created(table, user)
    with pytest.raises(SessionsUnavailable):
        await created(table, user, token_digest=record.token_digest)
    assert await table.count() == 1


async def test_a_failed_login_ends_nothing(table: Table, user: str) -> None:
    """When the insert is refused, the session it was to replace lives on."""
    record, other = await created(table, user), await created(table, user)
    with pytest.raises(SessionsUnavailable):
        await created(table, user, replaces=(record.id,), token_digest=other.token_digest)
    assert (await found(table, record.id)).is_active


async def test_nothing_changes_an_ended_session(table: Table, user: str) -> None:
    """Nothing changes a revoked row: no rotation, touch, level or second revocation."""
    record = await created(table, user)
    await table.store.revoke(record.id, reason="first")
    dead = await table.store.find_by_id(record.id)
    if has(table.name, "refresh"):
        step = successor(record.id, record.refresh_digest)
        assert await table.store.rotate(step) is None
        assert await table.store.redate(step) is None
    if has(table.name, "touch"):
        touch = touch_of(record, table.now + MINUTE)
        assert await table.store.touch([touch], POLICY) == 0
    if has(table.name, "new_tokens"):
        assert await table.store.replace_tokens(step_up(record.id, None)) is None
    if has(table.name, "step_up"):
        assert await table.store.replace_tokens(step_up(record.id, 2)) is None
    assert await table.store.revoke(record.id, reason="second") is None
    assert list(await table.store.revoke_user(user, reason="third")) == []
    assert await table.store.find_by_id(record.id) == dead


@needs("own_ids")
async def test_the_tokens_of_a_session_can_be_replaced(table: Table, user: str) -> None:
    """In every table, whether it has levels or not: the old ones are found no more, and
    the session is the same."""
    record = await created(table, user)
    await table.advance(MINUTE)
    step = step_up(record.id, None)
    renewed = await table.store.replace_tokens(step)
    assert renewed is not None
    assert renewed.token_digest == step.token_digest
    assert (renewed.user_id, renewed.created_at) == (record.user_id, record.created_at)
    assert renewed.level == record.level
    assert await table.store.find([record.token_digest]) == []
    assert list(await table.store.find([step.token_digest])) == [renewed]


# Create: who may log in, and how many times.


@needs("user_status")
async def test_a_disabled_user_gets_no_session(table: Table, user: str) -> None:
    """The refusal says why, and nothing is written."""
    await table.write_user(user, is_active=False)
    with pytest.raises(LoginRefused) as refusal:
        await created(table, user)
    assert refusal.value.reason == "user_disabled"
    assert await table.count() == 0


@needs("locked_until")
async def test_a_locked_user_gets_no_new_session(table: Table, user: str) -> None:
    """`locked_until` refuses logins until it is reached, and then no more."""
    await table.write_user(user, locked_until=table.now + SECOND)
    with pytest.raises(LoginRefused) as refusal:
        await created(table, user)
    assert refusal.value.reason == "user_locked"
    await table.advance(SECOND)
    assert (await created(table, user)).is_active


@needs("locked_until")
async def test_a_lock_touches_no_session_that_exists(table: Table, user: str) -> None:
    """A locked user's session is found, rotated and touched as before."""
    record = await created(table, user)
    await table.write_user(user, locked_until=table.now + DAY)
    assert (await found(table, record.id)).user_is_active
    after = await rotated(table, record)
    await table.advance(SECOND)
    assert await table.store.touch([touch_of(after, table.now)], POLICY) == 1


async def test_a_login_may_replace_a_session(table: Table, user: str) -> None:
    """`replaces` ends the old session, of any user, in the same transaction."""
    old = await created(table, await table.add_user())
    answer = await table.create(
        await fresh_session(table, user, replaces=(old.id,)), POLICY
    )
    assert answer.ended == (Ended(id=old.id, user_id=old.user_id),)
    assert await is_over(table, old.id)


async def test_a_login_may_replace_several_sessions(table: Table, user: str) -> None:
    """Of several users, in one transaction, and each is returned; an ended one stays."""
    other = await table.add_user()
    old = [await created(table, one) for one in (user, other, user)]
    over = await created(table, user)
    kept = await created(table, user)
    await table.store.revoke(over.id, reason="logout")
    new = await fresh_session(table, user, replaces=(*(r.id for r in old), over.id))
    answer = await table.create(new, POLICY)
    assert set(answer.ended) == {Ended(id=r.id, user_id=r.user_id) for r in old}
    assert [await is_over(table, record.id) for record in (*old, over)] == [True] * 4
    assert not await is_over(table, kept.id)


@pytest.mark.parametrize("gone", ["01J00000000000000000000000", "\x00", ""], ids=short)
async def test_replacing_what_is_not_there_is_a_plain_login(
    table: Table, user: str, gone: str
) -> None:
    """A session to replace that does not exist is no reason to refuse."""
    answer = await table.create(await fresh_session(table, user, replaces=(gone,)), POLICY)
    assert (answer.record.is_active, answer.ended) == (True, ())


@needs("max_sessions")
async def test_the_oldest_session_makes_room(table: Table, user: str) -> None:
    """At the limit, the oldest ends; other users' sessions and dead ones do not count."""
    await created(table, await table.add_user())
    dead = await created(table, user)
    await table.store.revoke(dead.id, reason="x")
    records = []
    for _ in range(3):
        await table.advance(SECOND)
        records.append(await created(table, user))
    answer = await table.create(await fresh_session(table, user, limit=2), POLICY)
    assert {e.id for e in answer.ended} == {records[0].id, records[1].id}
    live = {r.id for r in await table.store.list_for_user(user)}
    assert live == {records[2].id, answer.record.id}


@needs("max_sessions")
async def test_the_new_session_may_be_the_one_too_many(table: Table, user: str) -> None:
    """With `evict` off the login is refused, and nothing is written or ended."""
    record = await created(table, user)
    with pytest.raises(LoginRefused) as refusal:
        await created(table, user, limit=1, evict=False)
    assert refusal.value.reason == "too_many"
    assert [r.id for r in await table.store.list_for_user(user)] == [record.id]
    assert await table.count() == 1


@needs("max_sessions")
async def test_a_replaced_session_leaves_its_place(table: Table, user: str) -> None:
    """The session that a login replaces does not count towards the limit."""
    record = await created(table, user)
    await created(table, user, limit=1, evict=False, replaces=(record.id,))
    assert await is_over(table, record.id)


@pytest.mark.parametrize(
    "dead",
    [
        pytest.param({"refresh_expires_at": "past"}, marks=needs("refresh")),
        pytest.param(
            {"refresh_digest": None, "expires_at": "past"}, marks=needs("refresh")
        ),
        {"expires_at": "past"},
        pytest.param({"created_at": None}, marks=needs("created_at")),
        pytest.param({"is_active": None}, marks=needs("is_active")),
        pytest.param({"revoked_at": "past"}, marks=needs("revoked_at")),
    ],
    ids=str,
)
@needs("max_sessions")
async def test_a_session_that_is_over_takes_no_place(
    table: Table, user: str, dead: dict[str, object]
) -> None:
    """Only sessions that still stand count towards the limit."""
    if dead == {"expires_at": "past"} and table.store.capabilities.refresh:
        dead = {**dead, "refresh_expires_at": "past"}
    await table.advance(DAY)
    record = await created(table, user)
    past = table.now + SECOND
    values = {k: past if v == "past" else v for k, v in dead.items()}
    await table.write(record.id, **values)
    await table.advance(MINUTE)
    assert (await created(table, user, limit=1, evict=False)).is_active


@needs("password_change", "max_sessions")
async def test_a_session_ended_by_a_new_password_takes_no_place(
    table: Table, user: str
) -> None:
    """With `end_on_password_change`, who changed it may log in again at the limit."""
    policy = Policy(end_on_password_change=True)
    await created(table, user)
    await table.advance(SECOND)
    await table.write_user(user, password_changed_at=table.now)
    await table.advance(SECOND)
    new = await fresh_session(table, user, limit=1, evict=False)
    assert (await table.create(new, policy)).record.is_active


@needs("absolute", "max_sessions")
async def test_a_short_login_counts_long_sessions_too(table: Table, user: str) -> None:
    """A sign-in for the day does not overlook sessions that are remembered for weeks."""
    old = await created(table, user)
    await table.advance(2 * DAY)
    new = await fresh_session(table, user, limit=1, longest=DAY)
    answer = await table.create(new, POLICY)
    assert [ended.id for ended in answer.ended] == [old.id]


@needs("activity", "max_sessions")
async def test_an_idle_session_takes_no_place(table: Table, user: str) -> None:
    """With an idle limit, a session that passed it does not count."""
    policy = Policy(idle_ttl=MINUTE)
    await created(table, user)
    await table.advance(MINUTE)
    new = await fresh_session(table, user, limit=1, evict=False)
    assert (await table.create(new, policy)).record.is_active


ABSURD_CLIENTS = {
    "nothing": Client(),
    "name": Client(address="testclient"),
    "port": Client(address="198.51.100.7:5678"),
    "zone": Client(address="fe80::1%eth0"),
    "empty": Client(address=""),
    "nul": Client(fingerprint="a\x00b"),
    "long": Client(fingerprint="f" * 65),
    "surrogate": Client(fingerprint="\ud800"),
    "agent": Client(user_agent="\x00"),
}


async def test_c115_nothing_about_a_client_stops_a_login(table: Table, user: str) -> None:
    """An address or a fingerprint that no column takes is no error."""
    for what, client in ABSURD_CLIENTS.items():
        record = await created(table, user, client=client)
        assert (await found(table, record.id)).is_active, what


@pytest.mark.parametrize("address", ["203.0.113.9", "2001:db8::1", None])
@needs("address")
async def test_an_address_is_returned_as_it_was_written(
    table: Table, user: str, address: str | None
) -> None:
    """IPv4 and IPv6, and None for an unknown address."""
    record = await created(table, user, client=Client(address=address))
    assert (await found(table, record.id)).address == address


# Rules 4 and 5: a rotation is one conditional write that leaves its mark.


@needs("refresh")
async def test_a_rotation_replaces_both_tokens_and_leaves_its_mark(
    table: Table, user: str
) -> None:
    """It dates itself, extends both lives, and keeps everything else."""
    record = await created(table, user)
    await table.advance(MINUTE)
    step = successor(record.id, record.refresh_digest)
    after = await table.store.rotate(step)
    assert after is not None
    assert after == await table.store.find_by_id(record.id)
    assert (after.token_digest, after.refresh_digest) == (
        step.token_digest,
        step.refresh_digest,
    )
    assert (after.last_activity_at, after.expires_at) == (table.now, table.now + TTL)
    assert after.refresh_expires_at == table.now + POLICY.refresh_ttl
    assert after.created_at == record.created_at
    assert not was_seen(after, TTL)
    assert list(await table.store.find([record.token_digest])) == []


@needs("refresh")
async def test_a_rotation_needs_the_current_digest(table: Table, user: str) -> None:
    """Another digest, or the same one twice, returns None."""
    record = await created(table, user)
    assert await table.store.rotate(successor(record.id, some_digest())) is None
    after = await rotated(table, record)
    assert await table.store.rotate(successor(record.id, record.refresh_digest)) is None
    assert await table.store.find_by_id(record.id) == after


@pytest.mark.parametrize("method", ["rotate", "redate"])
@needs("refresh", "user_status")
async def test_c85_a_disabled_user_gets_no_new_tokens(
    table: Table, user: str, method: str
) -> None:
    """The user's state is in the condition of the write itself."""
    record = await created(table, user)
    await table.write_user(user, is_active=False)
    step = successor(record.id, record.refresh_digest)
    assert await getattr(table.store, method)(step) is None
    assert not (await found(table, record.id)).user_is_active


@pytest.mark.parametrize("method", ["rotate", "redate"])
@needs("refresh")
async def test_no_write_after_the_refresh_limit(
    table: Table, user: str, method: str
) -> None:
    """At `refresh_expires_at` it is over."""
    record = await created(table, user, refresh_ttl=timedelta(hours=1))
    await table.advance(timedelta(hours=1))
    step = successor(record.id, record.refresh_digest)
    assert await getattr(table.store, method)(step) is None


@needs("refresh")
async def test_c86_no_rotation_at_the_absolute_limit(table: Table, user: str) -> None:
    """Even a row whose refresh limit lies beyond it is not rotated."""
    record = await created(table, user)
    await table.write(record.id, refresh_expires_at=table.now + 900 * DAY)
    await table.advance(POLICY.absolute_ttl)
    step = successor(record.id, record.refresh_digest)
    assert await table.store.rotate(step) is None


@needs("refresh")
async def test_a_rotation_follows_recorded_activity(table: Table, user: str) -> None:
    """Activity a moment ahead of the clock does not make a new token look used."""
    record = await created(table, user)
    ahead = table.now + timedelta(seconds=30)
    await table.write(record.id, last_activity_at=ahead)
    after = await rotated(table, record)
    assert (after.last_activity_at, after.expires_at) == (ahead, ahead + TTL)
    assert not was_seen(after, TTL)


@needs("refresh")
async def test_a_rotation_does_not_follow_a_date_far_ahead(table: Table, user: str) -> None:
    """A row somebody dated into next year is rotated a minute ahead at most."""
    record = await created(table, user)
    await table.write(record.id, last_activity_at=table.now + 365 * DAY)
    after = await rotated(table, record)
    assert after.expires_at == table.now + MINUTE + TTL


@needs("refresh")
async def test_a_row_without_activity_is_rotated_now(table: Table, user: str) -> None:
    """A NULL in `last_activity_at` dates the rotation neither back nor ahead."""
    record = await created(table, user)
    await table.write(record.id, last_activity_at=None)
    await table.advance(MINUTE)
    after = await rotated(table, record)
    assert (after.last_activity_at, after.expires_at) == (table.now, table.now + TTL)


@needs("refresh")
async def test_redating_moves_the_rotation_and_no_token(table: Table, user: str) -> None:
    """An unseen rotation is dated to now; the tokens and the refresh limit stay."""
    record = await rotated(table, await created(table, user))
    await table.advance(DAY)
    after = await table.store.redate(successor(record.id, record.refresh_digest))
    assert after is not None
    assert (after.last_activity_at, after.expires_at) == (table.now, table.now + TTL)
    assert after.token_digest == record.token_digest
    assert after.refresh_digest == record.refresh_digest
    assert after.refresh_expires_at == record.refresh_expires_at


@needs("refresh")
async def test_what_was_seen_is_not_redated(table: Table, user: str) -> None:
    """Once activity is recorded after the rotation, redating gives None."""
    record = await rotated(table, await created(table, user))
    await table.store.touch([touch_of(record, None)], POLICY)
    seen = await found(table, record.id)
    assert await table.store.redate(successor(record.id, record.refresh_digest)) is None
    assert await table.store.find_by_id(record.id) == seen


@needs("refresh")
async def test_redating_needs_the_current_digest(table: Table, user: str) -> None:
    """A digest that was replaced meanwhile gives None."""
    record = await created(table, user)
    after = await rotated(table, record)
    assert await table.store.redate(successor(record.id, record.refresh_digest)) is None
    assert await table.store.find_by_id(record.id) == after


@needs("refresh")
async def test_a_row_without_activity_is_redated(table: Table, user: str) -> None:
    """A NULL in `last_activity_at` means that the tokens were not used yet."""
    record = await created(table, user)
    await table.write(record.id, last_activity_at=None)
    await table.advance(MINUTE)
    after = await table.store.redate(successor(record.id, record.refresh_digest))
    assert after is not None
    assert after.last_activity_at == table.now


# Rule 5: touches.


@needs("activity")
async def test_a_touch_is_recorded(table: Table, user: str) -> None:
    """The time given is the time written, off the whole seconds of a rotation's mark."""
    record = await created(table, user)
    at = table.now + timedelta(seconds=90, milliseconds=5)
    await table.advance(2 * MINUTE)
    assert await table.store.touch([touch_of(record, at)], POLICY) == 1
    assert (await found(table, record.id)).last_activity_at == at


@needs("activity")
async def test_a_touch_never_moves_back(table: Table, user: str) -> None:
    """Whatever order the flushes of several processes arrive in."""
    record = await created(table, user)
    late, early = (table.now + timedelta(seconds=s, milliseconds=1) for s in (90, 30))
    await table.advance(2 * MINUTE)
    await table.store.touch([touch_of(record, late)], POLICY)
    assert await table.store.touch([touch_of(record, early)], POLICY) == 0
    assert await table.store.touch([touch_of(record, late)], POLICY) == 0
    assert await table.store.touch([touch_of(record, None)], POLICY) == 0
    assert (await found(table, record.id)).last_activity_at == late


@needs("refresh")
async def test_a_touch_by_an_old_token_does_nothing(table: Table, user: str) -> None:
    """Use of a replaced token must not make its successor look used."""
    old = await created(table, user)
    record = await rotated(table, old)
    assert await table.store.touch([touch_of(old, table.now + DAY)], POLICY) == 0
    assert await table.store.find_by_id(record.id) == record


@pytest.mark.parametrize("seconds", [0, 1, 60, 899, 900, 901, 86400])
@needs("refresh")
async def test_a_touch_never_leaves_the_mark_of_a_rotation(
    table: Table, user: str, seconds: int
) -> None:
    """A whole number of seconds before `expires_at` is passed by one step."""
    record = await created(table, user)
    at = table.now + timedelta(seconds=seconds)
    assert await table.store.touch([touch_of(record, at)], POLICY) == 1
    after = await found(table, record.id)
    assert after.last_activity_at == at + STEP
    assert was_seen(after, TTL)


@pytest.mark.parametrize("behind", [STEP, MINUTE, 30 * DAY], ids=str)
@needs("refresh")
async def test_seen_is_never_dated_before_the_rotation(
    table: Table, user: str, behind: timedelta
) -> None:
    """A process whose clock is behind says no less than that the token was seen."""
    record = await created(table, user)
    assert await table.store.touch([touch_of(record, table.now - behind)], POLICY) == 1
    after = await found(table, record.id)
    assert after.last_activity_at == table.now + STEP
    assert was_seen(after, TTL)


@needs("refresh")
async def test_a_passive_first_use_is_the_smallest_step(table: Table, user: str) -> None:
    """Seen, and no more activity than that; the second time does nothing."""
    record = await created(table, user)
    await table.advance(MINUTE)
    assert await table.store.touch([touch_of(record, None)], POLICY) == 1
    after = await found(table, record.id)
    assert after.last_activity_at == (record.created_at or table.now) + STEP
    assert was_seen(after, TTL)
    assert rotated_at(after, TTL) == record.created_at
    assert await table.store.touch([touch_of(record, None)], POLICY) == 0


@needs("refresh")
async def test_a_first_use_is_recorded_after_the_session_token_expired(
    table: Table, user: str
) -> None:
    """A refresh token proves its answer at any time while the session stands, and a poll
    with it is no activity."""
    record = await rotated(table, await created(table, user))
    await table.advance(2 * TTL)
    assert await table.store.touch([touch_of(record, None)], POLICY) == 1
    after = await found(table, record.id)
    assert record.last_activity_at is not None
    assert after.last_activity_at == record.last_activity_at + STEP
    assert after.expires_at < table.now
    assert was_seen(after, TTL)


@pytest.mark.parametrize("ttl", [TTL / 3, 4 * TTL], ids=str)
@needs("refresh")
async def test_a_passive_first_use_is_seen_under_another_session_ttl(
    table: Table, user: str, ttl: timedelta
) -> None:
    """The setting was changed since the rotation: what is recorded still says seen."""
    record = await rotated(table, await created(table, user))
    await table.advance(2 * TTL)
    policy = replace(POLICY, session_ttl=ttl)
    assert await table.store.touch([touch_of(record, None)], policy) == 1
    assert was_seen(await found(table, record.id), ttl)


@needs("activity")
async def test_a_touch_counts_for_a_row_without_activity(table: Table, user: str) -> None:
    """A NULL in `last_activity_at` is older than anything."""
    record = await created(table, user)
    await table.write(record.id, last_activity_at=None)
    at = table.now + MINUTE + STEP
    await table.advance(2 * MINUTE)
    assert await table.store.touch([touch_of(record, at)], POLICY) == 1
    assert (await found(table, record.id)).last_activity_at == at


@needs("activity")
async def test_a_thousand_touches_are_one_statement(table: Table, user: str) -> None:
    """Whatever the batch holds, and also when some of its sessions are gone."""
    records = [await created(table, user) for _ in range(20)]
    at = table.now + MINUTE + STEP
    batch = [touch_of(record, at) for record in records]
    ghosts = [
        Touch(session_id=f"ghost{n}", token_digest=some_digest(), at=at) for n in range(980)
    ]
    before = table.store.queries
    assert await table.store.touch(ghosts + batch, POLICY) == 20
    assert table.store.queries == before + 1


@pytest.mark.parametrize("poison", ["a\x00b", "\ud800", "x" * 100_000, ""], ids=short)
@needs("activity")
async def test_c117b_one_poisoned_touch_loses_no_other(
    table: Table, user: str, poison: str
) -> None:
    """A value no column takes does not stop the rest of the batch."""
    record = await created(table, user)
    at = table.now + MINUTE + STEP
    await table.advance(2 * MINUTE)
    bad = [
        Touch(session_id=poison, token_digest=some_digest(), at=at),
        Touch(session_id=record.id, token_digest=poison, at=at),
    ]
    assert await table.store.touch([*bad, touch_of(record, at)], POLICY) == 1
    assert (await found(table, record.id)).last_activity_at == at


# Rule 6 of core/lifetime.py: where nothing rotates, activity moves the expiry ahead.


async def used(table: Table, record: Record) -> Record:
    """The session after activity of this moment was written."""
    await table.store.touch([touch_of(record, table.now)], POLICY)
    return await found(table, record.id)


@needs("sliding")
async def test_activity_moves_the_expiry_ahead(table: Table, user: str) -> None:
    """By `refresh_ttl` from the activity, as the judge of the cached session foretells."""
    record = await created(table, user)
    await table.advance(DAY)
    at = table.now
    after = await used(table, record)
    assert after.expires_at == at + POLICY.refresh_ttl
    assert after.expires_at == sliding_expiry(record, POLICY, at)


@needs("sliding")
async def test_no_activity_moves_the_expiry_past_the_absolute_limit(
    table: Table, user: str
) -> None:
    """However long it goes on."""
    record = await created(table, user)
    for _ in range(4):
        await table.advance(25 * DAY)
        await used(table, record)
    after = await found(table, record.id)
    assert after.expires_at == (record.created_at or EPOCH) + POLICY.absolute_ttl
    await table.advance(DAY)
    assert (await used(table, record)).expires_at == after.expires_at


@needs("sliding")
async def test_a_session_for_the_day_stays_one(table: Table, user: str) -> None:
    """Its first expiry says that it is not remembered, and activity never moves it."""
    record = await created(table, user, longest=POLICY.browser_ttl)
    await table.advance(POLICY.browser_ttl - MINUTE)
    assert (await used(table, record)).expires_at == record.expires_at


@needs("sliding")
async def test_an_expiry_never_moves_back(table: Table, user: str) -> None:
    """Neither by late news, nor because settings became shorter."""
    record = await created(table, user)
    brief = Policy(refresh_ttl=7 * DAY, absolute_ttl=8 * DAY)
    await table.advance(MINUTE)
    await table.store.touch([touch_of(record, table.now)], brief)
    assert (await found(table, record.id)).expires_at == record.expires_at


@needs("sliding")
async def test_activity_after_the_end_is_no_resurrection(table: Table, user: str) -> None:
    """At the expiry it is over, whatever a touch says."""
    record = await created(table, user, refresh_ttl=2 * DAY)
    await table.advance(2 * DAY)
    assert await table.store.touch([touch_of(record, table.now)], POLICY) == 0
    assert (await found(table, record.id)).expires_at == record.expires_at


@needs("sliding")
async def test_passive_use_moves_nothing(table: Table, user: str) -> None:
    """Seen and no more: that is nothing where no token is replaced."""
    record = await created(table, user)
    await table.advance(DAY)
    assert await table.store.touch([touch_of(record, None)], POLICY) == 0
    assert replace(await found(table, record.id), read_at=record.read_at) == record


@needs("sliding")
async def test_a_row_without_created_at_does_not_slide(table: Table, user: str) -> None:
    """There is no limit to keep to."""
    record = await created(table, user)
    await table.write(record.id, created_at=None)
    await table.advance(DAY)
    assert (await used(table, record)).expires_at == record.expires_at


@needs("sliding")
async def test_a_clock_that_is_ahead_moves_the_expiry_by_a_minute_at_most(
    table: Table, user: str
) -> None:
    """What it says of next year is taken for the next minute."""
    record = await created(table, user)
    await table.store.touch([touch_of(record, table.now + 20 * DAY)], POLICY)
    after = await found(table, record.id)
    assert after.expires_at <= table.now + MINUTE + POLICY.refresh_ttl


# Plaintext tokens, from before.


async def planted(table: Table, user: str) -> tuple[Record, str]:
    """A session whose row holds the token itself, and the token."""
    record, token = await created(table, user), f"token-{some_digest()[:32]}"
    assert isinstance(table, PostgresTable)
    await table.plant(record.id, token)
    return record, token


def digest_of(token: str) -> str:
    return sha256(token.encode()).hexdigest()


@needs("plain")
async def test_a_token_in_plaintext_is_found_and_replaced(table: Table, user: str) -> None:
    """By the token as it was presented; from then on by its digest alone."""
    record, token = await planted(table, user)
    (seen,) = await table.store.find_plaintext([digest_of(token)], [token])
    assert (seen.id, seen.token_digest) == (record.id, digest_of(token))

    async def is_replaced() -> bool:
        return bool(await table.store.find([digest_of(token)]))

    async with asyncio.timeout(15):
        while not await is_replaced():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert (await found(table, record.id)).token_digest == digest_of(token)


@needs("plain")
async def test_the_text_in_a_row_is_no_token(table: Table, user: str) -> None:
    """Neither the digest with its prefix, nor the digest alone, asked for as a token."""
    record = await created(table, user)
    for stolen in (record.token_digest, f"sha256:{record.token_digest}"):
        found = await table.store.find_plaintext([digest_of(stolen)], [stolen])
        assert list(found) == []


@needs("plain")
async def test_the_digest_of_a_token_in_plaintext_does_not_find_it(
    table: Table, user: str
) -> None:
    """The row holds the token, and only the token finds it."""
    _, token = await planted(table, user)
    assert list(await table.store.find([digest_of(token)])) == []


# Revoking.


@needs("revoked_at", "revoked_reason")
async def test_a_revocation_says_when_and_why(table: Table, user: str) -> None:
    """The row is inactive, dated by the table's clock, with the reason."""
    record = await created(table, user)
    await table.advance(MINUTE)
    ended = await table.store.revoke(record.id, reason="logout")
    assert ended == Ended(id=record.id, user_id=user)
    after = await found(table, record.id)
    assert (after.is_active, after.revoked_at, after.revoked_reason) == (
        False,
        table.now,
        "logout",
    )


async def test_c49_a_user_ends_only_their_own(table: Table, user: str) -> None:
    """Another user's id makes the call find nothing."""
    record = await created(table, user)
    stranger = await table.add_user()
    assert await table.store.revoke(record.id, reason="x", user_id=stranger) is None
    assert (await found(table, record.id)).is_active
    ended = await table.store.revoke(record.id, reason="x", user_id=user)
    assert ended == Ended(id=record.id, user_id=user)


async def test_all_sessions_of_one_user_end_but_one(table: Table, user: str) -> None:
    """Others keep theirs, and so does the session to keep."""
    kept, *others = [await created(table, user) for _ in range(4)]
    stranger = await created(table, await table.add_user())
    ended = await table.store.revoke_user(user, reason="x", keep=kept.id)
    assert {e.id for e in ended} == {r.id for r in others}
    assert [r.id for r in await table.store.list_for_user(user)] == [kept.id]
    assert (await found(table, stranger.id)).is_active


async def test_no_reason_stops_a_revocation(table: Table, user: str) -> None:
    """A text that no column takes is made to fit."""
    for reason in ("r" * 5000, "a\x00b", "\ud800", "", "grüße"):
        one, two = await created(table, user), await created(table, user)
        assert await table.store.revoke(one.id, reason=reason) is not None, short(reason)
        assert len(await table.store.revoke_user(user, reason=reason)) == 1, short(reason)
        assert await is_over(table, two.id)


@needs("refresh")
async def test_c84_revoked_during_a_refresh_means_revoked(table: Table, user: str) -> None:
    """In either order, no token of the family works once both returned."""
    one, two = await created(table, user), await created(table, user)
    await table.store.revoke(one.id, reason="x")
    assert await table.store.rotate(successor(one.id, one.refresh_digest)) is None
    after = await rotated(table, two)
    await table.store.revoke(two.id, reason="x")
    dead = await table.store.find([after.token_digest, two.token_digest, one.token_digest])
    assert {record.is_active for record in dead} == {False}


# Rows as foreign code leaves them.


@needs("is_active")
async def test_a_row_that_is_neither_active_nor_not_is_dead(
    table: Table, user: str
) -> None:
    """NULL in `is_active` is not active, to every method."""
    record = await created(table, user)
    await table.write(record.id, is_active=None)
    assert await is_over(table, record.id)
    if has(table.name, "refresh"):
        assert await table.store.rotate(successor(record.id, record.refresh_digest)) is None
    if has(table.name, "touch"):
        touch = touch_of(record, table.now + MINUTE)
        assert await table.store.touch([touch], POLICY) == 0
    assert list(await table.store.list_for_user(user)) == []


@needs("created_at")
async def test_a_row_without_created_at_is_read_and_not_rotated(
    table: Table, user: str
) -> None:
    """NULL in `created_at` gives no error and no new tokens."""
    record = await created(table, user)
    await table.write(record.id, created_at=None)
    assert (await found(table, record.id)).created_at is None
    if has(table.name, "refresh"):
        assert await table.store.rotate(successor(record.id, record.refresh_digest)) is None
    assert (await table.store.revoke(record.id, reason="x")) is not None


@needs("refresh")
async def test_a_row_without_a_refresh_token_is_found(table: Table, user: str) -> None:
    """NULL in both refresh columns is a session that cannot be refreshed."""
    record = await created(table, user, refresh_digest=None)
    await table.write(record.id, refresh_expires_at=None)
    after = await found(table, record.id)
    assert (after.refresh_digest, after.refresh_expires_at) == (None, None)
    assert await table.store.rotate(successor(record.id, "")) is None


async def read_every_way(table: Table, record: Record) -> list[Record]:
    """One session by its id, by its token and in its user's list."""
    by_token = await table.store.find([record.token_digest])
    listed = await table.store.list_for_user(record.user_id)
    reads = [await found(table, record.id), *by_token, *listed]
    assert [read.id for read in reads] == 3 * [record.id]
    return reads


@needs("user_status")
async def test_a_disabled_user_shows_in_every_read(table: Table, user: str) -> None:
    """The user's state comes with the row, and the row stays."""
    record = await created(table, user)
    for allowed in (False, True):
        await table.write_user(user, is_active=allowed)
        reads = await read_every_way(table, record)
        assert {read.user_is_active for read in reads} == {allowed}


@needs("password_change")
async def test_a_new_password_shows_in_every_read(table: Table, user: str) -> None:
    """Its date comes with the row."""
    record = await created(table, user)
    await table.write_user(user, password_changed_at=table.now)
    reads = await read_every_way(table, record)
    assert {read.password_changed_at for read in reads} == {table.now}


@needs("user_table")
async def test_a_deleted_user_leaves_no_session(table: Table, user: str) -> None:
    """The sessions go with the user."""
    record = await created(table, user)
    await table.delete_user(user)
    assert list(await table.store.find([record.token_digest])) == []
    if has(table.name, "touch"):
        assert await table.store.touch([touch_of(record, table.now)], POLICY) == 0


@needs("last_activity_at")
async def test_the_list_is_by_activity(table: Table, user: str) -> None:
    """Most recently active first; a row that knows no activity comes last."""
    one, two, three = [await created(table, user) for _ in range(3)]
    await table.write(one.id, last_activity_at=table.now + SECOND)
    await table.write(two.id, last_activity_at=None)
    await table.write(three.id, last_activity_at=table.now + MINUTE)
    listed = await table.store.list_for_user(user)
    assert [r.id for r in listed] == [three.id, one.id, two.id]
    times = [r.last_activity_at for r in listed[:2]]
    assert times == [table.now + MINUTE, table.now + SECOND]


# Trust levels.


@needs("level")
async def test_a_level_is_read_and_none_is_the_lowest(table: Table, user: str) -> None:
    """A number, however the table spells it."""
    record = await created(table, user)
    await table.write(record.id, level=2)
    assert {read.level for read in await read_every_way(table, record)} == {2}
    await table.write(record.id, level=None)
    levels = {read.level or 0 for read in await read_every_way(table, record)}
    assert levels == {table.lowest_level}


# Pruning.


@needs("refresh")
async def test_a_session_whose_owner_is_away_survives(table: Table, user: str) -> None:
    """A dead session token with a live refresh token is a live session."""
    record = await created(table, user, refresh_ttl=80 * DAY)
    await table.advance(79 * DAY)
    assert await table.store.prune(POLICY, batch=10) == 0
    assert (await rotated(table, record)).is_active


@needs("prune")
@pytest.mark.parametrize(
    ("policy", "died"),
    [
        (POLICY, POLICY.refresh_ttl),
        pytest.param(
            Policy(absolute_ttl=7 * DAY),
            7 * DAY,
            marks=needs("absolute", "lifetimes"),
            id="absolute",
        ),
        pytest.param(
            Policy(idle_ttl=DAY), DAY, marks=needs("activity", "lifetimes"), id="idle"
        ),
    ],
)
async def test_a_row_goes_when_it_was_dead_for_long_enough(
    table: Table, user: str, policy: Policy, died: timedelta
) -> None:
    """Not at the end of the retention, but right after it, whichever limit ended it."""
    await created(table, user)
    await table.advance(died + table.retention)
    assert await table.store.prune(policy, batch=10) == 0
    await table.advance(STEP)
    assert await table.store.prune(policy, batch=10) == 1
    assert await table.count() == 0


@needs("kept")
async def test_a_revoked_row_is_kept_for_the_audit(table: Table, user: str) -> None:
    """Its retention counts from the revocation, or else from its last activity."""
    record = await created(table, user)
    if table.shape.revoked_at is not None:
        await table.advance(DAY)
    await table.store.revoke(record.id, reason="x")
    await table.advance(POLICY.retention)
    assert await table.store.prune(POLICY, batch=10) == 0
    await table.advance(STEP)
    assert await table.store.prune(POLICY, batch=10) == 1


@needs("is_active")
async def test_a_revoked_row_without_a_date_is_pruned_by_its_last_activity(
    table: Table, user: str
) -> None:
    """Foreign code that only clears `is_active` leaves no row behind for ever."""
    record = await created(table, user)
    await table.write(record.id, is_active=False)
    await table.advance(POLICY.retention)
    assert await table.store.prune(POLICY, batch=10) == 0
    await table.advance(STEP)
    assert await table.store.prune(POLICY, batch=10) == 1


@needs("refresh")
async def test_a_row_without_created_at_is_pruned_by_its_refresh_limit(
    table: Table, user: str
) -> None:
    """NULL in `created_at` leaves the limits that are known."""
    record = await created(table, user)
    await table.write(record.id, created_at=None)
    await table.advance(POLICY.refresh_ttl + POLICY.retention)
    assert await table.store.prune(POLICY, batch=10) == 0
    await table.advance(STEP)
    assert await table.store.prune(POLICY, batch=10) == 1


@needs("prune")
async def test_pruning_takes_a_batch_at_a_time(table: Table, user: str) -> None:
    """Never more rows than asked for, until none is left."""
    for _ in range(5):
        await created(table, user)
    await table.advance(POLICY.refresh_ttl + table.retention + STEP)
    taken = [await table.store.prune(POLICY, batch=2) for _ in range(4)]
    assert taken == [2, 2, 1, 0]


@needs("prune")
async def test_an_active_sibling_survives_the_pruning(table: Table, user: str) -> None:
    """Exactly the dead go."""
    dead = await created(table, user)
    await table.advance(POLICY.refresh_ttl + table.retention)
    alive = await created(table, user)
    await table.advance(STEP)
    assert await table.store.prune(POLICY, batch=10) == 1
    assert await table.store.find_by_id(dead.id) is None
    assert await table.store.find_by_id(alive.id) is not None


# Everything else.


async def test_a_store_counts_its_queries(table: Table, user: str) -> None:
    """One query each for a find, a list, a rotation and a ping."""
    record = await created(table, user)
    before = table.store.queries
    await table.store.find([record.token_digest])
    await table.store.list_for_user(user)
    await table.store.ping()
    assert table.store.queries == before + 3
    if table.store.capabilities.refresh:
        await rotated(table, record)
        assert table.store.queries == before + 4


async def test_a_closed_store_opens_again(table: Table, user: str) -> None:
    """Closing twice is one closing, and the rows are there afterwards."""
    record = await created(table, user)
    await table.store.close()
    await table.store.close()
    await table.store.open()
    await table.store.open()
    assert await table.store.find_by_id(record.id) == record


async def test_no_digest_shows_in_a_repr(table: Table, user: str) -> None:
    """Neither what goes into a store nor what comes out shows one."""
    new = await fresh_session(table, user)
    record = (await table.create(new, POLICY)).record
    assert new.token_digest not in repr(new)
    step = successor(record.id, record.refresh_digest)
    touch = touch_of(record, table.now)
    shown = repr([new, record, step, touch, table.store])
    secrets = {new.token_digest, new.refresh_digest, step.token_digest} - {None, record.id}
    assert not any(str(digest) in shown for digest in secrets)
    assert str(LAPTOP.address) not in shown


async def test_sessions_are_found_by_their_ids(table: Table, user: str) -> None:
    """All of them in one call, in any order, without unknown ones."""
    records = [await created(table, user) for _ in range(3)]
    wanted = [records[2].id, "01J00000000000000000000000", records[0].id, *ABSURD_IDS]
    many = await table.store.find_many(wanted)
    assert sorted(r.id for r in many) == sorted([records[0].id, records[2].id])
    assert list(await table.store.find_many([])) == []
    one = await table.store.find_by_id(records[0].id)
    assert one in many


@needs("kept")
async def test_a_dead_session_is_found_by_its_id_too(table: Table, user: str) -> None:
    """A store decides nothing: whether it is over is for the caller to judge."""
    record = await created(table, user)
    await table.store.revoke(record.id, reason="x")
    (found,) = await table.store.find_many([record.id])
    assert not found.is_active


def questions(table: Table, record: Record, new: NewSession) -> list[AuthRequest]:
    """One call of every method that this table has an answer to."""
    store, id, user = table.store, record.id, record.user_id
    step = successor(id, record.refresh_digest)
    asked: list[AuthRequest] = [
        lambda: store.find([record.token_digest]),
        lambda: store.find_by_id(id),
        lambda: store.find_many([id]),
        lambda: table.create(new, POLICY),
        lambda: store.revoke(id, reason="x"),
        lambda: store.revoke(id, reason="x", user_id=user),
        lambda: store.revoke_user(user, reason="x"),
        lambda: store.list_for_user(user),
        lambda: store.ping(),
    ]
    if has(table.name, "prune"):
        asked.append(lambda: store.prune(POLICY, batch=10))
    if has(table.name, "refresh"):
        asked += [
            lambda: store.find_by_refresh(step.presented),
            lambda: store.rotate(step),
            lambda: store.redate(step),
        ]
    if has(table.name, "activity"):
        asked.append(lambda: store.touch([touch_of(record, table.now + MINUTE)], POLICY))
    if has(table.name, "step_up"):
        asked.append(lambda: store.replace_tokens(step_up(id, 2)))
    return asked


async def test_an_outage_is_no_answer(table: Table, user: str) -> None:
    """To any method, in words of ours and none of the driver's; then it goes on."""
    record = await created(table, user)
    asked = questions(table, record, await fresh_session(table, user))
    async with table.outage():
        for ask in asked:
            with pytest.raises(SessionsUnavailable) as failure:
                await ask()
            assert "accepting connections" not in str(failure.value)
            assert "handstamp_" not in str(failure.value)
    assert await table.store.find_by_id(record.id) == record


async def test_a_store_is_reset_after_a_fork(table: Table, user: str) -> None:
    """As in a forked child: it uses no connection from before, and closes none."""
    record = await created(table, user)
    before = await table.others()
    table.store.reset_after_fork()
    assert await table.store.find_by_id(record.id) == record
    after = await table.others()
    assert after >= before
    assert bool(after - before) == bool(before)
    async with table.outage():
        pass  # this ends the connections from before


# Rule 10: the end of a session is notified once, and nothing else is notified.


class Listener:
    """The payloads that arrived, in order, after a round trip."""

    def __init__(self) -> None:
        self._payloads: list[str] = []
        self.connection: ListenConnection | None = None

    async def received(self) -> list[str]:
        """The payloads since the last call."""
        assert self.connection is not None
        await self.connection.prove()
        payloads = list(self._payloads)
        self._payloads.clear()
        return payloads

    def receive(self, payload: str) -> None:
        self._payloads.append(payload)


@pytest.fixture
async def listener(table: Table) -> AsyncIterator[Listener]:
    """Another process that listens to the table."""
    listener = Listener()
    assert table.store.channel is not None
    listener.connection = await table.store.channel.listen(listener.receive, lambda: None)
    yield listener
    listener.connection.drop()


def notified(ended: list[str], user: str) -> list[list[str]]:
    """The ways to notify the end of these sessions of a user: one by one, or the user."""
    return [sorted(f"s:{id}" for id in ended), [f"u:{user}"]]


async def test_a_revocation_is_notified_once(
    table: Table, user: str, listener: Listener
) -> None:
    """When it happens, and not if there was nothing to end."""
    record = await created(table, user)
    await table.store.revoke(record.id, reason="x", user_id="somebody else")
    assert await listener.received() == []
    await table.store.revoke(record.id, reason="x", user_id=user)
    assert await listener.received() == [f"s:{record.id}"]
    await table.store.revoke(record.id, reason="x")
    await table.store.revoke("01J00000000000000000000000", reason="x")
    assert await listener.received() == []


async def test_the_revocation_of_a_user_is_notified_once(
    table: Table, user: str, listener: Listener
) -> None:
    """For all that ended, not for the one that was kept, and not for nothing."""
    ids = [(await created(table, user)).id for _ in range(4)]
    await table.store.revoke_user(user, reason="x", keep=ids[0])
    assert sorted(await listener.received()) in notified(ids[1:], user)
    await table.store.revoke_user(user, reason="x", keep=ids[0])
    await table.store.revoke_user("01J00000000000000000000000", reason="x")
    assert await listener.received() == []


async def test_a_replaced_session_is_notified_once(
    table: Table, user: str, listener: Listener
) -> None:
    """By the login that replaces it."""
    old = await created(table, user)
    assert await listener.received() == []
    await created(table, user, replaces=(old.id,))
    assert await listener.received() in notified([old.id], user)


@needs("max_sessions")
async def test_an_evicted_session_is_notified_once(
    table: Table, user: str, listener: Listener
) -> None:
    """A login that replaces one session and evicts another notifies both."""
    ids = []
    for _ in range(3):
        ids.append((await created(table, user)).id)
        await table.advance(SECOND)
    new = await fresh_session(table, user, replaces=(ids[2],), limit=2)
    ended = (await table.create(new, POLICY)).ended
    assert sorted(e.id for e in ended) == sorted([ids[0], ids[2]])
    assert sorted(await listener.received()) in notified([ids[0], ids[2]], user)


@needs("user_status")
async def test_a_failed_login_notifies_nothing(
    table: Table, user: str, listener: Listener
) -> None:
    """Nothing is notified that was not written."""
    record = await created(table, user)
    await table.write_user(user, is_active=False)
    with pytest.raises(LoginRefused):
        await table.create(await fresh_session(table, user, replaces=(record.id,)), POLICY)
    assert await listener.received() == []


async def test_c129_a_live_session_is_never_notified(
    table: Table, user: str, listener: Listener
) -> None:
    """Login, rotation, re-dating, activity and every read notify nothing."""
    store = table.store
    record = await created(table, user)
    await table.advance(MINUTE)
    if has(table.name, "touch"):
        assert await store.touch([touch_of(record, table.now)], POLICY) == 1
    await store.find([record.token_digest])
    await store.find_many([record.id])
    await store.list_for_user(user)
    await store.ping()
    if not store.capabilities.refresh:
        assert await listener.received() == []
        return
    await table.advance(TTL)
    record = await rotated(table, record)
    await table.advance(MINUTE)
    assert await store.redate(successor(record.id, record.refresh_digest)) is not None
    assert await listener.received() == []


@needs("prune")
async def test_pruning_notifies_nothing(
    table: Table, user: str, listener: Listener
) -> None:
    """A session that ended so long ago is in no cache."""
    await created(table, user)
    revoked = await created(table, user)
    await table.store.revoke(revoked.id, reason="x")
    await listener.received()
    await table.advance(POLICY.absolute_ttl + POLICY.retention + DAY)
    assert await table.store.prune(POLICY, batch=10) == 1 + has(table.name, "kept")
    assert await listener.received() == []


async def test_a_notification_is_received_as_it_was_sent(
    table: Table, listener: Listener
) -> None:
    """The payload of a probe."""
    assert table.store.channel is not None
    await table.store.channel.notify("c:0123")
    assert await listener.received() == ["c:0123"]


async def test_a_dropped_listener_receives_nothing(
    table: Table, user: str, listener: Listener
) -> None:
    """Dropping it twice is harmless; other listeners go on."""
    assert table.store.channel is not None
    payloads: list[str] = []
    other = await table.store.channel.listen(payloads.append, lambda: None)
    other.drop()
    other.drop()
    await table.store.channel.notify("c:0123")
    assert await listener.received() == ["c:0123"]
    assert payloads == []


RULES = {name: words_of(rule) for name, rule in globals().items() if name[:5] == "test_"}


def test_every_rule_is_kept_by_some_table() -> None:
    """One that no table can have would not be collected at all."""
    lost = [n for n, w in RULES.items() if not any(can_keep(w, k) for k in KINDS)]
    assert lost == []
    assert any(RULES.values())
