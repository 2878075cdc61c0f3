"""Cookies of Supabase that somebody else put beside the user's own.

A neighbour below the same domain can set a cookie of any name that has no `__Host-`. It
may sign the user out, with an event; it must never sign them into another session.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from itertools import permutations
from typing import Any

import pytest

from handstamp import Policy
from handstamp.events import DuplicateCookies, Refreshed, Replayed
from handstamp.supabase.cookies import cut, encode_session
from handstamp.supabase.rules import AuthUser
from handstamp.testing import outage
from tests.support.supabase_keys import private_key, public_key
from tests.support.supabase_site import NAME, Held, World, living

LIVE, NEAR, DEAD = 3600.0, 60.0, -5.0
NOBODY = {"user_id": None}
Pairs = list[tuple[str, str]]


@pytest.fixture
async def world(supabase_dsn: str) -> AsyncIterator[World]:
    """Empty tables."""
    async with living(supabase_dsn) as world:
        yield world


def value(held: Held, lasts: float = LIVE, size: int = 0, **claims: Any) -> str:
    """The whole value of a cookie, with metadata of about this size."""
    body = held.body(lasts, **claims)
    return encode_session({**body, "user": {"n": "x" * size}})


def whole(held: Held, lasts: float = LIVE, **claims: Any) -> Pairs:
    """A cookie in one piece."""
    return [(NAME, value(held, lasts, **claims))]


def pieces(held: Held, lasts: float = LIVE, **claims: Any) -> Pairs:
    """The same session in three pieces."""
    parts = cut(NAME, value(held, lasts, 6000, **claims))
    assert len(parts) == 3
    return list(parts.items())


def header(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """A Cookie header with these pairs in this order."""
    return {"cookie": "; ".join(f"{name}={text}" for name, text in pairs)}


def orders(mine: Pairs, other: Pairs) -> list[Pairs]:
    """Both orders, and the cookies in turns."""
    longest = max(len(mine), len(other))
    turns = [pair[n] for n in range(longest) for pair in (mine, other) if n < len(pair)]
    return [mine + other, other + mine, turns, turns[::-1]]


async def two(world: World, **options: Any) -> tuple[Any, Any, Held, Held]:
    """A process, its client, the user's session and the attacker's."""
    sessions = await world.process(**options)
    client = await world.browser(sessions)
    return sessions, client, await world.sign_in(sessions), await world.sign_in(sessions)


FORMS = [(whole, pieces), (pieces, whole), (pieces, pieces), (whole, whole)]


@pytest.mark.parametrize(("mine", "tossed"), FORMS)
@pytest.mark.parametrize("lasts", [LIVE, NEAR, DEAD])
async def test_a_tossed_cookie_is_a_conflict_in_every_form_and_order(
    world: World, mine: Any, tossed: Any, lasts: float
) -> None:
    """Whole or in pieces, and whether the user's access token has expired or not."""
    _, client, user, attacker = await two(world)
    asked = orders(mine(user, lasts), tossed(attacker))
    for pairs in asked:
        answer = await client.get("/maybe", headers=header(pairs))
        assert answer.json() == NOBODY
        assert "set-cookie" not in answer.headers
    assert world.of(Refreshed) == []
    assert [event.conflict for event in world.of(DuplicateCookies)] == [True] * len(asked)


@pytest.mark.parametrize("junk", ["junk", "base64-junk", "base64-" + "A" * 3173])
async def test_a_piece_too_many_does_not_hide_the_user_s_session(
    world: World, junk: str
) -> None:
    """A tossed `.3` behind the three pieces of the user, beside the attacker's cookie."""
    _, client, user, attacker = await two(world)
    mine = [*pieces(user), (f"{NAME}.3", junk)]
    answer = await client.get("/maybe", headers=header(mine))
    assert answer.json() == {"user_id": user.user_id}
    for pairs in orders(mine, whole(attacker)):
        assert (await client.get("/maybe", headers=header(pairs))).json() == NOBODY


@pytest.mark.parametrize("number", [0, 1, 2])
async def test_a_second_value_of_one_piece_does_not_hide_the_user_s_session(
    world: World, number: int
) -> None:
    """Every combination that is a session counts, wherever the tossed piece stands."""
    _, client, user, attacker = await two(world)
    mine, tossed = pieces(user), (f"{NAME}.{number}", "A" * 3180)
    for pairs in ([*mine, tossed], [tossed, *mine]):
        answer = await client.get("/maybe", headers=header(pairs))
        assert answer.json() == {"user_id": user.user_id}
        for more in (whole(attacker) + pairs, pairs + whole(attacker)):
            assert (await client.get("/maybe", headers=header(more))).json() == NOBODY


async def test_a_whole_session_in_a_piece_of_the_user_s_is_a_conflict(
    world: World,
) -> None:
    """The attacker's session as `.0`, beside the `.0`, `.1` and `.2` of the user."""
    _, client, user, attacker = await two(world)
    tossed = [(f"{NAME}.0", value(attacker))]
    for pairs in orders(pieces(user), tossed):
        assert (await client.get("/maybe", headers=header(pairs))).json() == NOBODY


@pytest.mark.parametrize(
    "junk", ["x", "base64-!", "base64-e30", "{}", "%7B%7D", '"base64-e30"']
)
async def test_a_tossed_value_that_is_no_session_changes_nothing(
    world: World, junk: str
) -> None:
    """The user stays who they are, by a cookie in one piece or in three."""
    _, client, user, _ = await two(world)
    for mine in (whole(user), pieces(user)):
        for pairs in orders(mine, [(NAME, junk)]):
            answer = await client.get("/maybe", headers=header(pairs))
            assert answer.json() == {"user_id": user.user_id}


async def test_names_in_another_case_and_quoted_values_are_no_sessions(
    world: World,
) -> None:
    """Neither for the user nor for somebody who tosses one."""
    _, client, user, attacker = await two(world)
    odd = [(NAME.upper(), value(attacker)), (NAME, f'"{value(attacker)}"')]
    assert (await client.get("/maybe", headers=header(odd))).json() == NOBODY
    for pairs in permutations([*whole(user), *odd]):
        answer = await client.get("/maybe", headers=header(pairs))
        assert answer.json() == {"user_id": user.user_id}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("passive", [{}, {"x-passive-request": "1"}])
async def test_an_expired_session_that_can_be_refreshed_is_a_conflict(
    world: World, version: int, passive: dict[str, str]
) -> None:
    """Beside a live one of somebody else, of both kinds of refresh tokens, also where the
    live one is cached, and on a passive request."""
    _, client, user, attacker = await two(world, version=version)
    for lasts in (LIVE, NEAR):
        for pairs in orders(whole(user, DEAD), whole(attacker, lasts)):
            answer = await client.get("/maybe", headers={**header(pairs), **passive})
            assert answer.json() == NOBODY
    assert world.of(Refreshed) == []
    assert {event.conflict for event in world.of(DuplicateCookies)} == {True}


async def test_a_process_that_cannot_refresh_sees_the_conflict_too(world: World) -> None:
    """With public keys alone: another server would renew the expired session."""
    other = await world.process(jwt_keys=[private_key("ES256")])
    users = [await world.add_user() for _ in range(2)]
    issued = [await other.create(user) for user in users]
    sessions = await world.process(jwt_keys=[public_key("ES256")])
    client = await world.browser(sessions)
    bodies = [dict(each.body or {}) for each in issued]
    minting = other._issuer.tokens
    (row,) = await other._auth.read_sessions([issued[0].session.id])
    assert row is not None
    bodies[0]["access_token"] = expired(minting, row)
    pairs = [(NAME, encode_session(body)) for body in bodies]
    for order in (pairs, pairs[::-1]):
        assert (await client.get("/maybe", headers=header(order))).json() == NOBODY
    alone = await client.get("/maybe", headers=header(pairs[1:]))
    assert alone.json() == {"user_id": users[1]}


def expired(minting: Any, row: Any) -> str:
    """An access token of this session that ended a minute ago."""
    user = AuthUser(
        id=row.user_id,
        aud="authenticated",
        role="authenticated",
        email="",
        phone="",
        app_metadata={},
        user_metadata={},
    )
    at = row.read_at - timedelta(hours=1)
    ends = row.read_at - timedelta(minutes=1)
    token: str = minting.mint(row, user, (), issued_at=at, expires_at=ends)
    return token


@pytest.mark.parametrize("version", [1, 2])
async def test_an_expired_cookie_that_nobody_can_refresh_is_no_conflict(
    world: World, version: int
) -> None:
    """A refresh token that was invented, or is another session's: the live session beside
    it counts, and nothing ends."""
    sessions, client, user, other = await two(world, version=version)
    token = user.refresh_token
    for _ in range(3):
        issued = await sessions.refresh(token)
        assert issued is not None
        token = str(issued.refresh_token)
    invented = "a2b3c4d5e6f7" if version == 1 else token[:-4] + "AAAA"
    for stale in (invented, other.refresh_token):
        dead = whole(user, DEAD, refresh_token=stale)
        for pairs in orders(dead, whole(other)):
            answer = await client.get("/maybe", headers=header(pairs))
            assert answer.json() == {"user_id": other.user_id}
    assert world.of(Replayed) == []
    assert await world.row(user) is not None


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("lasts", [LIVE, DEAD])
async def test_a_replay_is_noticed_beside_a_session_of_somebody_else(
    world: World, version: int, lasts: float
) -> None:
    """Who stole the cookie and used it tosses a cookie to the victim, so that the stale one
    is not presented alone. It ends that session anyway, but not on a passive request; and
    not beside the current cookie of the same session."""
    rules = {"reuse_interval": timedelta(0)}
    sessions, client, user, other = await two(world, version=version, rules=rules)
    token = user.refresh_token
    for _ in range(3):
        issued = await sessions.refresh(token)
        assert issued is not None
        token = str(issued.refresh_token)
    stale, current = whole(user, DEAD), whole(user, DEAD, refresh_token=token)
    passive = {"x-passive-request": "1"}
    for pairs in orders(stale, whole(other, lasts)):
        await client.get("/maybe", headers={**header(pairs), **passive})
    for pairs in orders(stale, current + whole(other, lasts)):
        answer = await client.get("/maybe", headers=header(pairs))
        assert answer.json() == NOBODY
    assert world.of(Replayed) == []
    for pairs in orders(stale, whole(other, lasts)):
        answer = await client.get("/maybe", headers=header(pairs))
        assert answer.json() == {"user_id": other.user_id}
    assert [event.session_id for event in world.of(Replayed)] == [user.id]
    assert await sessions.refresh(token) is None


async def test_a_session_that_is_over_is_no_conflict(world: World) -> None:
    """A banned user's or a revoked one's, expired or not."""
    sessions, client, user, other = await two(world)
    await sessions.revoke(user.id)
    for lasts in (LIVE, DEAD):
        for pairs in orders(pieces(user, lasts), whole(other)):
            answer = await client.get("/maybe", headers=header(pairs))
            assert answer.json() == {"user_id": other.user_id}


async def test_a_spliced_cookie_cannot_keep_the_user_from_refreshing(
    world: World,
) -> None:
    """The user's access token with a refresh token of somebody else is a candidate; the
    one with the genuine refresh token is renewed, in any order."""
    _, client, user, attacker = await two(world)
    spliced = whole(user, DEAD + 2, refresh_token=attacker.refresh_token)
    for pairs in (spliced + whole(user, DEAD), whole(user, DEAD) + spliced):
        answer = await client.get("/maybe", headers=header(pairs))
        assert answer.json() == {"user_id": user.user_id}


async def test_more_pieces_than_can_be_combined_are_no_session(world: World) -> None:
    """Whatever is cut off or not looked at decides nothing: anonymous."""
    _, client, user, attacker = await two(world)
    junk = [(f"{NAME}.{n}", f"{t}") for n in range(3) for t in range(12)]
    for pairs in orders(whole(attacker), [*pieces(user), *junk]):
        assert (await client.get("/maybe", headers=header(pairs))).json() == NOBODY


async def test_a_flood_of_cookies_does_not_push_the_user_s_out_of_sight(
    world: World,
) -> None:
    """Where the header is longer than what is looked at, nothing of it counts."""
    _, client, user, attacker = await two(world)
    flood = [(f"a{n}", "x" * 4000) for n in range(17)]
    for pairs in (
        whole(attacker) + flood + whole(user),
        whole(user) + flood + whole(attacker),
    ):
        assert (await client.get("/maybe", headers=header(pairs))).json() == NOBODY


async def test_an_outage_signs_nobody_into_a_tossed_session(world: World) -> None:
    """The attacker's session is cached, the user's is not: nobody can say."""
    policy = Policy(max_staleness=timedelta(minutes=1))
    sessions, client, user, attacker = await two(world, policy=policy)
    tossed = whole(attacker)
    assert (await client.get("/me", headers=header(tossed))).status_code == 200
    with outage(sessions, just_begun=True):
        assert (await client.get("/me", headers=header(tossed))).status_code == 200
        for lasts in (LIVE, DEAD):
            for pairs in orders(whole(user, lasts), tossed):
                answer = await client.get("/me", headers=header(pairs))
                assert answer.status_code == 503


def many_whole(mine: Pairs) -> Pairs:
    """More values of the name than count for a request."""
    return [(NAME, f"base64-junk{n}") for n in range(5)] + mine


def many_joined(mine: Pairs) -> Pairs:
    """More pieces than can be told apart."""
    return [(f"{NAME}.{n}", f"{t}") for n in range(3) for t in range(12)] + mine


def flooded(mine: Pairs) -> Pairs:
    """More than is looked at for a request."""
    return [(f"a{n}", "x" * 4000) for n in range(17)] + mine


@pytest.mark.parametrize("tossed", [many_whole, flooded])
@pytest.mark.parametrize("form", [whole, pieces])
@pytest.mark.parametrize("lasts", [LIVE, DEAD])
async def test_a_logout_ends_the_user_s_session_whatever_was_tossed(
    world: World, tossed: Any, form: Any, lasts: float
) -> None:
    """What is too much to sign somebody in is not too much to sign them out."""
    _, client, user, _ = await two(world)
    pairs = tossed(form(user, lasts))
    assert (await client.get("/maybe", headers=header(pairs))).json() == NOBODY
    answer = await client.post("/logout", headers=header(pairs))
    assert answer.status_code == 204
    gone = {line.partition("=")[0] for line in answer.headers.get_list("set-cookie")}
    assert gone == {name for name, _ in pairs if name.startswith(NAME)}
    assert await world.row(user) is None


async def test_a_logout_ends_both_sessions_of_a_conflict(world: World) -> None:
    """It cannot know which one is the user's."""
    _, client, user, attacker = await two(world)
    for mine, other in ((whole(user), pieces(attacker)),):
        pairs = mine + other
        assert (await client.post("/logout", headers=header(pairs))).status_code == 204
    assert await world.row(user) is await world.row(attacker) is None


async def test_a_logout_that_cannot_tell_the_sessions_apart_is_no_success(
    world: World,
) -> None:
    """The user's session would live on without its cookie: 503, and the cookie stays."""
    _, client, user, _ = await two(world)
    answer = await client.post("/logout", headers=header(many_joined(pieces(user))))
    assert (answer.status_code, "set-cookie" in answer.headers) == (503, False)
    assert await world.row(user) is not None
    answer = await client.post("/logout", headers=header(pieces(user)))
    assert answer.status_code == 204
    assert await world.row(user) is None


async def test_a_sign_in_ends_what_the_browser_had_whatever_was_tossed(
    world: World,
) -> None:
    """As a logout does."""
    _, client, user, attacker = await two(world)
    pairs = many_whole(whole(user))
    path = f"/login/{attacker.user_id}"
    assert (await client.post(path, headers=header(pairs))).status_code == 200
    assert await world.row(user) is None
