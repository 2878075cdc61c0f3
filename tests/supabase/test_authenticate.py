"""Requests with Supabase's tokens: when they are refreshed, and what nothing can do."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt import PyJWK

from handstamp import Policy
from handstamp.engine.cache import MAX_COPIES
from handstamp.errors import SessionsUnavailable
from handstamp.events import (
    DuplicateCookies,
    LateRefresh,
    Refreshed,
    Reissued,
    Replayed,
    Revoked,
)
from handstamp.supabase import SupabaseSessions
from handstamp.supabase import authenticate as engine_module
from handstamp.supabase.cookies import CookieSession, decode_session
from handstamp.supabase.schema import install_supabase_trigger
from handstamp.supabase.tokens import read_v2
from handstamp.testing import outage
from tests.support.clock import FakeClock
from tests.support.supabase_keys import private_key, public_key
from tests.support.supabase_site import (
    JWT_SECRET,
    NAME,
    Held,
    World,
    as_header,
    living,
)
from tests.support.waiting import until

NEAR, LIVE, DEAD = 60.0, 3600.0, -5.0


@pytest.fixture
async def world(supabase_dsn: str) -> AsyncIterator[World]:
    """Empty tables."""
    async with living(supabase_dsn) as world:
        yield world


def written(answer: httpx.Response) -> CookieSession | None:
    """The session that this response puts into the cookie."""
    lines = answer.headers.get_list("set-cookie")
    values = [line.partition(";")[0].removeprefix(f"{NAME}=") for line in lines]
    return decode_session(values[0]) if len(values) == 1 else None


def counter(claim: CookieSession | None) -> int:
    assert claim is not None
    token = read_v2(claim.refresh_token)
    assert token is not None
    return token.counter


async def queries(sessions: SupabaseSessions, request: Any) -> tuple[httpx.Response, int]:
    """The answer, and how many statements it cost."""
    before = sessions.stats().queries
    answer = await request
    return answer, sessions.stats().queries - before


async def steps(sessions: SupabaseSessions, held: Held, number: int) -> str:
    """The refresh token of a session after so many refreshes."""
    token: str = held.refresh_token
    for _ in range(number):
        issued = await sessions.refresh(token)
        assert issued is not None
        assert issued.refresh_token is not None
        token = issued.refresh_token
    return token


@pytest.mark.parametrize("path", ["/me", "/broken", "/nowhere"])
@pytest.mark.parametrize("lasts", [NEAR, DEAD])
async def test_a_token_that_runs_out_is_replaced_on_this_very_response(
    world: World, path: str, lasts: float
) -> None:
    """Also on an error, uncacheable, and what it hands out is good."""
    sessions = await world.process()
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    answer = await client.get(path, headers=held.cookie(lasts))
    new = written(answer)
    assert counter(new) == 1
    assert "no-store" in answer.headers["cache-control"]
    assert "Cookie" in answer.headers["vary"]
    assert new is not None
    headers = as_header({**vars_of(new)})
    again = await client.get("/me", headers=headers)
    assert (again.status_code, again.json()["id"]) == (200, held.id)
    assert "set-cookie" not in again.headers


def vars_of(claim: CookieSession) -> dict[str, Any]:
    return {
        "access_token": claim.access_token,
        "refresh_token": claim.refresh_token,
        "expires_at": 1,
    }


@pytest.mark.parametrize(("lasts", "asked"), [(85.0, 1), (100.0, 0)])
async def test_ninety_seconds_are_the_margin(
    world: World, lasts: float, asked: int
) -> None:
    """Fewer than that, and the token is replaced."""
    sessions = await world.process()
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    await client.get("/me", headers=held.cookie(lasts))
    assert len(world.of(Refreshed)) == asked


async def test_a_cached_session_is_refreshed_in_time_all_the_same(world: World) -> None:
    """The cache believes it no longer than until its token wants to be replaced."""
    clock, policy = (
        FakeClock(),
        Policy(max_staleness=timedelta(hours=1), longest_trust=timedelta(hours=1)),
    )
    sessions = await world.process(clock=clock, policy=policy)
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    cookie = held.cookie(200)
    for _ in range(2):
        assert "set-cookie" not in (await client.get("/me", headers=cookie)).headers
    assert sessions.stats().hits == 1
    clock.advance(120)
    assert counter(written(await client.get("/me", headers=cookie))) == 1


@pytest.mark.parametrize(
    "headers", [{"x-passive-request": "1"}, {"sec-purpose": "prefetch"}]
)
async def test_a_passive_request_never_refreshes(
    world: World, headers: dict[str, str]
) -> None:
    """It is known as long as its access token lives, and anonymous after that."""
    sessions = await world.process()
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    near = await client.get("/me", headers={**held.cookie(NEAR), **headers})
    dead = await client.get("/maybe", headers={**held.cookie(DEAD), **headers})
    assert (near.status_code, dead.json()) == (200, {"user_id": None})
    assert "set-cookie" not in {*near.headers, *dead.headers}
    row = await world.row(held)
    assert row is not None
    assert (row["refresh_token_counter"], row["refreshed_at"]) == (0, None)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("lasts", [NEAR, DEAD])
async def test_twenty_parallel_requests_have_one_successor(
    world: World, version: int, lasts: float
) -> None:
    """In two processes, all are known and nobody is told another token."""
    policy = Policy(time_budget=timedelta(seconds=20))  # a slow machine is no conflict
    one, two = [await world.process(version=version, policy=policy) for _ in "12"]
    held = await world.sign_in(one)
    clients = [await world.browser(one), await world.browser(two)]
    header = held.cookie(lasts)
    answers = await asyncio.gather(
        *(clients[n % 2].get("/me", headers=header) for n in range(20))
    )
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["id"] for answer in answers} == {held.id}
    tokens = {new.refresh_token for a in answers if (new := written(a)) is not None}
    assert all("set-cookie" in answer.headers for answer in answers)
    assert len(tokens) == 1
    assert tokens != {held.refresh_token}
    assert world.of(Replayed) == []
    if version == 1:
        rows = await world.psql.fetch("select revoked from auth.refresh_tokens")
        assert sorted(row["revoked"] for row in rows) == [False, True]


@pytest.mark.parametrize("version", [1, 2])
async def test_a_browser_never_gets_a_409(world: World, version: int) -> None:
    """Who can do without is served; others get 503, and keep the cookie."""
    policy = Policy(time_budget=timedelta(seconds=3))
    sessions = await world.process(version=version, policy=policy)
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    gotrue = await world.connect()
    async with gotrue.transaction():
        sql = "select 1 from auth.sessions where id = $1 for update"
        await gotrue.execute(sql, UUID(held.id))
        near = await client.get("/me", headers=held.cookie(NEAR))
        dead = await client.get("/me", headers=held.cookie(DEAD))
    assert (near.status_code, near.json()["id"]) == (200, held.id)
    assert (dead.status_code, "retry-after" in dead.headers) == (503, True)
    assert "set-cookie" not in {*near.headers, *dead.headers}
    await until(lambda: not sessions._supabase._single_flight)
    after = await client.get("/me", headers=held.cookie(DEAD))
    assert (after.status_code, written(after) is not None) == (200, True)


async def test_an_outage_takes_nothing_from_whoever_was_seen_just_now(world: World) -> None:
    """A live token is served from what was read, near its end too; others get 503."""
    policy = Policy(max_staleness=timedelta(minutes=5), longest_trust=timedelta(minutes=5))
    sessions = await world.process(policy=policy)
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    headers = {"x-passive-request": "1"}
    cookie = held.cookie(NEAR)
    assert (await client.get("/me", headers={**cookie, **headers})).status_code == 200
    with outage(sessions, just_begun=True):
        near = await client.get("/me", headers=cookie)
        dead = await client.get("/me", headers=held.cookie(DEAD))
        out = await client.post("/logout", headers=held.cookie(DEAD))
    assert near.status_code == 200
    for answer in (dead, out):
        assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
        assert "set-cookie" not in answer.headers
    assert await world.row(held) is not None


async def test_what_was_doubted_is_not_believed_in_an_outage(world: World) -> None:
    """Not even by the margin kept for refreshing."""
    policy = Policy(max_staleness=timedelta(minutes=5), longest_trust=timedelta(minutes=5))
    sessions = await world.process(policy=policy)
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    cookie = held.cookie()
    assert (await client.get("/me", headers=cookie)).status_code == 200
    sessions._state.cache.doubt()
    with outage(sessions, just_begun=True):
        assert (await client.get("/me", headers=cookie)).status_code == 503


async def test_p4_what_the_trigger_misses_is_noticed_within_longest_trust(
    world: World,
) -> None:
    """A ban that no trigger heard, though the listener is trusted all the time."""
    clock = FakeClock()
    await install_supabase_trigger(world.psql)
    sessions = await world.process(clock=clock)
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    await until(lambda: sessions._listener.trusted_until > clock())
    cookie = held.cookie(LIVE)
    assert (await client.get("/me", headers=cookie)).status_code == 200
    await world.psql.execute("set session_replication_role = replica")
    await world.psql.execute("update auth.users set banned_until = now() + '1 day'")
    clock.advance(29)
    await until(lambda: sessions._listener.trusted_until > clock())
    _, asked = await queries(sessions, client.get("/me", headers=cookie))
    assert asked == 0  # the margin for refreshing takes nothing from it
    clock.advance(31)
    await until(lambda: sessions._listener.trusted_until > clock())
    assert (await client.get("/maybe", headers=cookie)).json() == {"user_id": None}


@pytest.mark.parametrize("version", [1, 2])
async def test_a_refused_refresh_takes_nothing_from_a_live_token(
    world: World, version: int
) -> None:
    """The session goes on until the access token ends; then the visitor is nobody."""
    sessions = await world.process(version=version)
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    made_up = "a2b3c4d5e6f7" if version == 1 else f"{held.refresh_token[:-4]}AAAA"
    near = await client.get("/me", headers=held.cookie(NEAR, refresh_token=made_up))
    assert near.status_code == 200
    dead = await client.get("/maybe", headers=held.cookie(DEAD, refresh_token=made_up))
    assert dead.json() == {"user_id": None}
    assert "set-cookie" not in {*near.headers, *dead.headers}
    assert world.of(Refreshed) == []


async def test_a_refusal_is_remembered_for_a_moment(world: World) -> None:
    """A browser that keeps a dead cookie does not ask the table with each request."""
    clock = FakeClock()
    sessions = await world.process(clock=clock)
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    header = held.cookie(-3600, refresh_token="a2b3c4d5e6f7")
    _, first = await queries(sessions, client.get("/maybe", headers=header))
    _, second = await queries(sessions, client.get("/maybe", headers=header))
    clock.advance(3)
    _, third = await queries(sessions, client.get("/maybe", headers=header))
    assert (first > 0, second, third > 0) == (True, 0, True)


async def test_a_replay_is_published_and_ends_what_hangs_on_the_session(
    world: World,
) -> None:
    """v2: the row goes, and every process knows at once."""
    sessions = await world.process()
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    cut_off: list[str] = []
    session = (await sessions.list_for_user(held.user_id))[0]
    sessions.connections.add(session, lambda: cut_off.append("socket"))
    token = await steps(sessions, held, 3)
    live = Held(held.id, held.user_id, token).cookie()
    assert (await client.get("/me", headers=live)).status_code == 200
    answer = await client.get("/maybe", headers=held.cookie(DEAD))
    assert answer.json() == {"user_id": None}
    (replayed,) = world.of(Replayed)
    assert (replayed.session_id, replayed.user_id) == (held.id, held.user_id)
    assert [event.session_id for event in world.of(Revoked)] == [held.id]
    assert cut_off == ["socket"]
    assert (await client.get("/me", headers=live)).status_code == 401


async def test_a_replay_of_a_v1_token_cuts_its_sockets(world: World) -> None:
    """The row stays, as GoTrue has it, but nobody can refresh it any more."""
    sessions = await world.process(version=1)
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    cut_off: list[str] = []
    session = (await sessions.list_for_user(held.user_id))[0]
    sessions.connections.add(session, lambda: cut_off.append("socket"))
    token = await steps(sessions, held, 2)
    answer = await client.get("/maybe", headers=held.cookie(DEAD))
    assert (answer.json(), cut_off) == ({"user_id": None}, ["socket"])
    assert len(world.of(Replayed)) == 1
    assert await sessions.refresh(token) is None


@pytest.mark.parametrize("version", [1, 2])
async def test_without_rotation_an_old_token_is_no_theft(
    world: World, version: int
) -> None:
    """It is refused and reported as late, and the session goes on."""
    sessions = await world.process(version=version, rules={"rotation_enabled": False})
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    token = await steps(sessions, held, 3)
    answer = await client.get("/maybe", headers=held.cookie(DEAD))
    assert answer.json() == {"user_id": None}
    assert (len(world.of(LateRefresh)), world.of(Replayed)) == (1, [])
    assert await sessions.refresh(token) is not None


async def test_the_user_of_the_row_must_be_the_token_s(world: World) -> None:
    """A token that names another's session is nobody's, near its end and before."""
    sessions = await world.process()
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    other = await world.add_user()
    for lasts in (LIVE, NEAR):
        header = replace(held, user_id=other).cookie(lasts, refresh_token="a2b3c4d5e6f7")
        assert (await client.get("/me", headers=header)).status_code == 401


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("lasts", [NEAR, DEAD])
async def test_tokens_of_two_sessions_are_no_session(
    world: World, version: int, lasts: float
) -> None:
    """The access token counts as long as it lives, and the other session is not touched."""
    sessions = await world.process(version=version)
    client = await world.browser(sessions)
    one, two = await world.sign_in(sessions), await world.sign_in(sessions)
    before = await world.row(two)
    header = one.cookie(lasts, refresh_token=two.refresh_token)
    answer = await client.get("/maybe", headers=header)
    assert answer.json()["user_id"] == (one.user_id if lasts == NEAR else None)
    assert "set-cookie" not in answer.headers
    assert (await world.row(two), world.of(Refreshed)) == (before, [])
    own = await client.get("/me", headers=two.cookie(DEAD))  # no refusal to remember
    assert (own.json()["id"], len(world.of(Refreshed))) == (two.id, 1)


@pytest.mark.parametrize(
    ("sql", "rules"),
    [
        ("delete from auth.sessions", {}),
        ("update auth.users set banned_until = now() + interval '1 day'", {}),
        ("update auth.users set deleted_at = now()", {}),
        ("update auth.sessions set not_after = now() - interval '1 second'", {}),
        (
            "update auth.sessions set created_at = now() - interval '2 hours'",
            {"timebox": timedelta(hours=1)},
        ),
        (
            "update auth.sessions set created_at = now() - interval '2 hours'",
            {"inactivity": timedelta(hours=1)},
        ),
        (
            "with f as (insert into auth.mfa_factors (id, user_id, factor_type, status,"
            " created_at, updated_at) select gen_random_uuid(), id, 'totp', 'verified',"
            " now(), now() from auth.users returning 1)"
            " update auth.sessions set created_at = now() - interval '2 hours'",
            {"allow_low_aal": timedelta(hours=1)},
        ),
    ],
    ids=["deleted", "banned", "user", "not_after", "timebox", "inactivity", "low aal"],
)
@pytest.mark.parametrize("lasts", [LIVE, NEAR, DEAD])
async def test_whatever_ends_a_session_ends_it_here(
    world: World, sql: str, rules: dict[str, Any], lasts: float
) -> None:
    """A correct token is worth nothing, and the cookie is left alone."""
    sessions = await world.process(rules=rules)
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    await world.psql.execute(sql)
    answer = await client.get("/me", headers=held.cookie(lasts))
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers


async def test_one_session_per_user_and_tag_can_refresh(world: World) -> None:
    """The older one serves until its access token ends, and one of another tag goes on."""
    rules = {"single_per_user": True, "tags": ("web", "phone")}
    sessions = await world.process(rules=rules)
    client, user = await world.browser(sessions), await world.add_user()
    old, phone, new = [await world.sign_in(sessions, user) for _ in range(3)]
    sql = "update auth.sessions set tag = 'phone' where id = $1"
    await world.psql.execute(sql, UUID(phone.id))
    for held, status in ((new, 200), (old, 401), (phone, 200)):
        answer = await client.get("/me", headers=held.cookie(DEAD))
        assert answer.status_code == status
    assert (await client.get("/me", headers=old.cookie(NEAR))).status_code == 200


@pytest.mark.parametrize(
    ("token", "row", "level"),
    [
        ("aal1", "aal1", 1),
        ("aal1", "aal2", 1),
        ("aal2", "aal1", 1),
        ("aal2", "aal2", 2),
        ("aal2", None, 1),
        ("aal9", "aal2", 1),
    ],
)
async def test_a_level_counts_as_far_as_token_and_row_have_it(
    world: World, token: str, row: str | None, level: int
) -> None:
    """A token from before the second factor is never more than the first one."""
    sessions = await world.process()
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    await world.psql.execute("update auth.sessions set aal = $1", row)
    header = held.cookie(aal=token)
    assert (await client.get("/me", headers=header)).json()["level"] == level
    status = (await client.get("/secure", headers=header)).status_code
    assert status == (204 if level == 2 else 403)


async def test_a_level_taken_back_is_gone_with_the_next_look(world: World) -> None:
    """Unenrolling the factor lowers the row, whatever the token says."""
    sessions = await world.process()
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    await world.psql.execute("update auth.sessions set aal = 'aal2'")
    header = held.cookie(aal="aal2")
    assert (await client.get("/secure", headers=header)).status_code == 204
    await world.psql.execute("update auth.sessions set aal = 'aal1'")
    sessions._state.cache.doubt_session(held.id)
    assert (await client.get("/secure", headers=header)).status_code == 403


async def test_a_refresh_after_the_second_factor_has_its_level(world: World) -> None:
    """What the AMR rows amount to is in the new token, as far as the row has it too."""
    sessions = await world.process()
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    await world.psql.execute("update auth.sessions set aal = 'aal2'")
    await world.psql.execute(
        "insert into auth.mfa_amr_claims (id, session_id, created_at, updated_at,"
        " authentication_method) values ($1, $2, now(), now(), 'totp')",
        uuid4(),
        UUID(held.id),
    )
    answer = await client.get("/me", headers=held.cookie(DEAD))
    assert answer.json()["level"] == 2


def segment(value: object) -> str:
    raw = json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def forgeries(held: Held) -> dict[str, str]:
    good = held.token()
    head, payload, signature = good.split(".")
    return {
        "another secret": held.token(secret="another project's secret, as long as ours"),
        "none": f"{segment({'alg': 'none', 'typ': 'JWT'})}.{payload}.",
        "none, signed": f"{segment({'alg': 'none'})}.{payload}.{signature}",
        "another algorithm": f"{segment({'alg': 'HS384'})}.{payload}.{signature}",
        "changed": f"{head}.{segment({'sub': held.user_id})}.{signature}",
        "no signature": f"{head}.{payload}.",
        "an API key": jwt.encode({"role": "service_role", "exp": 9**10}, JWT_SECRET),
        "no session": held.token(session_id=None),
        "no user": held.token(sub=None),
        "no end": held.token(exp=None),
        "session zero": held.token(session_id=str(UUID(int=0))),
        "an OAuth client's": held.token(client_id=str(uuid4())),
        "huge": "a" * 40_000,
    }


NAMES = list(forgeries(Held(str(uuid4()), str(uuid4()), "x")))


@pytest.mark.parametrize("name", NAMES)
async def test_what_is_no_token_of_ours_costs_no_query(world: World, name: str) -> None:
    """In the cookie or as a bearer token; not even its refresh token is looked at. Two of
    them are no event, beside a live one either."""
    sessions = await world.process()
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    token = forgeries(held)[name]
    body = {**held.body(), "access_token": token}
    twice = both(as_header(body), as_header({**body, "expires_at": 0}))
    before = len(world.events)
    for headers in (as_header(body), {"authorization": f"Bearer {token}"}, twice):
        answer, asked = await queries(sessions, client.get("/maybe", headers=headers))
        assert (answer.json(), asked) == ({"user_id": None}, 0)
        assert "set-cookie" not in answer.headers
    cookies = as_header(body), as_header({**body, "refresh_token": "x"}), held.cookie()
    beside = both(*cookies) if name != "huge" else held.cookie()  # only 64 KiB are read
    answer = await client.get("/maybe", headers=beside)
    assert answer.json() == {"user_id": held.user_id}
    assert world.events[before:] == []
    assert len(sessions._supabase._verified) == 1


async def test_a_public_key_is_no_secret(world: World) -> None:
    """A token signed with the public key itself, as if it were a secret, is forged."""
    sessions = await world.process(jwt_keys=[public_key("ES256")])
    client = await world.browser(sessions)
    held = Held(str(uuid4()), str(uuid4()), "a2b3c4d5e6f7")
    pem = PyJWK(public_key("ES256")).key.public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )
    head = segment({"alg": "HS256", "typ": "JWT", "kid": "ES256"})
    signed = f"{head}.{held.token().split('.')[1]}"
    mac = hmac.digest(pem, signed.encode(), "sha256")
    token = f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    headers = {"authorization": f"Bearer {token}"}
    answer, asked = await queries(sessions, client.get("/maybe", headers=headers))
    assert (answer.json(), asked) == ({"user_id": None}, 0)


async def test_who_can_only_verify_never_refreshes(world: World) -> None:
    """With a public key set a token serves to its end, and nothing is minted here."""
    other = await world.process(jwt_keys=[private_key("ES256")])
    issued = await other.create(await world.add_user())
    sessions = await world.process(jwt_keys=[public_key("ES256")])
    client = await world.browser(sessions)
    assert issued.body is not None
    answer = await client.get("/me", headers=as_header(issued.body))
    assert answer.status_code == 200
    for call in (sessions.create(issued.session.user_id), sessions.refresh("x")):
        with pytest.raises(Exception, match="no key signs access tokens"):
            await call
    assert await world.psql.fetchval("select count(*) from auth.sessions") == 1


async def test_a_listed_oauth_client_is_let_in(world: World) -> None:
    """By its id, in every process that lists it."""
    mobile = str(uuid4())
    sessions = await world.process(oauth_clients=[mobile])
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    for client_id, status in ((mobile, 200), (str(uuid4()), 401)):
        token = held.token(client_id=client_id)
        headers = {"authorization": f"Bearer {token}"}
        assert (await client.get("/me", headers=headers)).status_code == status


def both(*headers: dict[str, str]) -> dict[str, str]:
    return {"cookie": "; ".join(header["cookie"] for header in headers)}


async def test_two_cookies_of_two_sessions_are_none(world: World) -> None:
    """And neither is refreshed on the way."""
    sessions = await world.process()
    client = await world.browser(sessions)
    one, two = await world.sign_in(sessions), await world.sign_in(sessions)
    for lasts in (LIVE, NEAR, DEAD):
        header = both(one.cookie(lasts), two.cookie(lasts))
        answer = await client.get("/maybe", headers=header)
        assert answer.json() == {"user_id": None}
        assert "set-cookie" not in answer.headers
    assert world.of(Refreshed) == []
    assert [event.conflict for event in world.of(DuplicateCookies)] == [True] * 3


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("lasts", [LIVE, NEAR, DEAD])
async def test_a_stale_cookie_beside_a_good_one_does_no_harm(
    world: World, lasts: float, first: int
) -> None:
    """In either order: of a session that is over, or an older one of the same."""
    sessions = await world.process()
    client = await world.browser(sessions)
    gone, held = await world.sign_in(sessions), await world.sign_in(sessions)
    await sessions.revoke(gone.id)
    for stale in (gone.cookie(), gone.cookie(DEAD), held.cookie(-300)):
        pair = [stale, held.cookie(lasts)]
        header = both(pair[first], pair[1 - first])
        answer = await client.get("/maybe", headers=header)
        assert answer.json() == {"user_id": held.user_id}


async def test_of_two_cookies_of_one_session_the_newer_is_refreshed(world: World) -> None:
    """The older refresh token beside it is a forgotten cookie, and no theft."""
    sessions = await world.process()
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    token = await steps(sessions, held, 3)
    pair = [held.cookie(-300), held.cookie(DEAD, refresh_token=token)]
    for header in (both(*pair), both(*reversed(pair))):
        answer = await client.get("/maybe", headers=header)
        assert answer.json() == {"user_id": held.user_id}
    assert world.of(Replayed) == []


async def test_a_live_session_beside_one_that_is_over_refreshes_only_itself(
    world: World,
) -> None:
    """Identity is the live one's; of the other nothing is left."""
    sessions = await world.process()
    client = await world.browser(sessions)
    live, dead = await world.sign_in(sessions), await world.sign_in(sessions)
    await sessions.revoke(dead.id)
    header = both(dead.cookie(DEAD), live.cookie(NEAR))
    answer = await client.get("/me", headers=header)
    assert answer.json()["id"] == live.id
    assert [event.session_id for event in world.of(Refreshed)] == [live.id]


@pytest.mark.parametrize("end", ["revoked", "banned", "over in time"])
async def test_the_tokens_of_a_signed_out_user_cost_no_query_for_each_request(
    world: World, end: str
) -> None:
    """However they come: alone, with the refresh token, two of them, as a bearer token."""
    sessions = await world.process()
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    other = await world.sign_in(sessions)
    for each in (held, other):
        if end == "revoked":
            await sessions.revoke(each.id)
        elif end == "banned":
            ban = "update auth.users set banned_until = now() + interval '1 day'"
            await world.psql.execute(ban)
        else:
            limit = "update auth.sessions set not_after = now()"
            await world.psql.execute(limit)
    sessions._state.cache.doubt()
    ways = [
        {"authorization": f"Bearer {held.token()}"},
        held.cookie(),
        held.cookie(NEAR),
        held.cookie(DEAD),
        both(held.cookie(), other.cookie()),
        both(held.cookie(), other.cookie(DEAD)),
    ]
    for headers in ways:
        await client.get("/maybe", headers=headers)
    asked = sessions.store.queries
    for headers in ways * 3:
        answer = await client.get("/maybe", headers=headers)
        assert answer.json() == {"user_id": None}
    assert sessions.store.queries == asked


async def test_a_bearer_token_stands_in_place_of_the_cookie(world: World) -> None:
    """It is never refreshed, and is no reason to refuse another site's write."""
    sessions = await world.process()
    client = await world.browser(sessions)
    one, two = await world.sign_in(sessions), await world.sign_in(sessions)
    headers = {"authorization": f"Bearer {one.token(NEAR)}", **two.cookie(DEAD)}
    answer = await client.get("/me", headers=headers)
    assert answer.json()["id"] == one.id
    assert "set-cookie" not in answer.headers
    cross = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
    bearer = {"authorization": f"Bearer {one.token()}"}
    assert (await client.post("/write", headers={**bearer, **cross})).status_code == 200
    refused = await client.post("/write", headers={**one.cookie(), **cross})
    assert refused.status_code == 403
    refused = await client.post("/write", headers={**one.cookie(DEAD), **cross})
    assert (refused.status_code, world.of(Refreshed)) == (403, [])


async def test_a_bearer_and_a_raw_cookie_with_one_token_are_cached_apart(
    world: World,
) -> None:
    """The cookie is refreshed in time, although the bearer lives longer in the cache."""
    sessions = await world.process()
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    body = held.body(NEAR)
    bearer = {"authorization": f"Bearer {body['access_token']}"}
    assert (await client.get("/me", headers=bearer)).status_code == 200
    raw = {"cookie": f"{NAME}={json.dumps(body, separators=(',', ':'))}"}
    answer = await client.get("/me", headers=raw)
    assert counter(written(answer)) == 1


async def test_every_key_of_a_session_goes_with_it(world: World) -> None:
    """The whole cookie and the bearer token are invalidated together."""
    sessions = await world.process()
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    cookie, bearer = held.cookie(), {"authorization": f"Bearer {held.token()}"}
    for headers in (cookie, bearer):
        assert (await client.get("/me", headers=headers)).status_code == 200
    assert sessions.stats().cached == 2
    await sessions.revoke(held.id)
    assert sessions.stats().cached == 0
    for headers in (cookie, bearer):
        assert (await client.get("/me", headers=headers)).status_code == 401


async def test_one_holder_cannot_fill_the_cache(world: World) -> None:
    """However many different cookies they make around one token."""
    sessions = await world.process()
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    body = held.body()
    for number in range(3 * MAX_COPIES):
        header = as_header({**body, "user": {"n": number}})
        assert (await client.get("/me", headers=header)).status_code == 200
    assert sessions.stats().cached == MAX_COPIES
    again, asked = await queries(sessions, client.get("/me", headers=header))
    assert (again.status_code, asked) == (200, 0)


async def test_a_deleted_session_is_asked_for_once_in_a_while(world: World) -> None:
    """Whoever goes on sending a signed token of it costs nothing."""
    sessions = await world.process()
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    await world.psql.execute("delete from auth.sessions")
    header = held.cookie()
    _, first = await queries(sessions, client.get("/maybe", headers=header))
    _, second = await queries(sessions, client.get("/maybe", headers=header))
    assert (first, second) == (1, 0)


async def test_a_hit_asks_nothing_even_long_after_the_sign_in(world: World) -> None:
    """Neither the table nor, with every request, the order of the cache."""
    clock = FakeClock()
    policy = Policy(max_staleness=timedelta(hours=1), longest_trust=timedelta(hours=1))
    sessions = await world.process(clock=clock, policy=policy)
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    await world.psql.execute(
        "update auth.sessions set created_at = now() - interval '1 day'"
    )
    header = held.cookie()
    await client.get("/me", headers=header)
    noted: list[object] = []
    supabase, note = sessions._supabase, sessions._supabase._record
    supabase._record = lambda *a: (noted.append(a), note(*a))[1]  # type: ignore[method-assign]
    before = sessions.stats().queries
    for _ in range(10):
        assert (await client.get("/me", headers=header)).status_code == 200
    assert (len(noted), sessions.stats().queries) == (1, before)
    assert sessions.stats().pending_touches == 0


async def test_the_memory_of_verified_tokens_is_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It forgets the oldest, and holds no claims, which users fill themselves."""
    monkeypatch.setattr(engine_module, "VERIFIED", 5)
    sessions = await world.process()
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    for number in range(12):
        token = held.token(user_metadata={"n": number})
        headers = {"authorization": f"Bearer {token}"}
        assert (await client.get("/me", headers=headers)).status_code == 200
    known = list(sessions._supabase._verified.values())
    assert len(known) == 5
    assert not any("user_metadata" in repr(asdict(token)) for token in known)


async def test_a_forked_child_starts_over(world: World) -> None:
    """With no flight of its parent's, and the sessions that are in the table."""
    sessions = await world.process()
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    gotrue = await world.connect()
    async with gotrue.transaction():
        await gotrue.execute("select 1 from auth.sessions for update")
        flight = asyncio.create_task(client.get("/me", headers=held.cookie(DEAD)))
        await until(lambda: sessions._supabase._single_flight)
        sessions._supabase.reset_after_fork()
        assert sessions._supabase._single_flight == {}
        assert len(sessions._supabase._verified) == 0
    assert (await flight).status_code in (200, 503)
    assert (await client.get("/me", headers=held.cookie(DEAD))).status_code == 200


async def test_a_client_that_goes_away_takes_nobody_along(world: World) -> None:
    """The refresh goes on for whoever shares it."""
    policy = Policy(time_budget=timedelta(seconds=20))
    sessions = await world.process(policy=policy)
    client, held = await world.browser(sessions), await world.sign_in(sessions)
    header = held.cookie(DEAD)
    gotrue = await world.connect()
    async with gotrue.transaction():
        await gotrue.execute("select 1 from auth.sessions for update")
        first = asyncio.create_task(client.get("/me", headers=header))
        await until(lambda: sessions._supabase._single_flight)
        second = asyncio.create_task(client.get("/me", headers=header))
        await asyncio.sleep(0)
        first.cancel()
    assert (await second).status_code == 200
    assert (len(world.of(Refreshed)), world.of(Reissued)) == (1, [])  # one flight


async def test_a_made_up_refresh_token_is_no_error(world: World) -> None:
    """Whatever text is given to be refreshed, outside of cookies."""
    sessions = await world.process()
    for text in ("", "x" * 10_000, "é" * 12, "\ud800" * 12, "a2b3c4d5e6f7", "\x00" * 12):
        assert await sessions.refresh(text) is None


async def test_no_answer_is_no_refusal(world: World) -> None:
    """A refresh outside of cookies says so by an exception."""
    sessions = await world.process()
    held = await world.sign_in(sessions)
    with outage(sessions), pytest.raises(SessionsUnavailable):
        await sessions.refresh(held.refresh_token)
    assert await sessions.refresh(held.refresh_token) is not None
