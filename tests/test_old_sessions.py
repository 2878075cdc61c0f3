"""A login and a logout end every session that the browser had, or raise (P17).

Also where the request was not authenticated by it: on an excluded path, with cookies of two
sessions, in an outage, where its refresh token was not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.support.engines import Engine
from tests.support.transports import Case, Seen, over_asgi, over_wsgi

Transport = Callable[[Case], Seen]
each_transport = pytest.mark.parametrize("over", [over_asgi, over_wsgi])
each_verb = pytest.mark.parametrize("act", [("login", "bob"), ("logout",)], ids=str)

SESSION = {"cookie": "__Host-session={session}"}
REFRESH = {"cookie": "__Host-refresh={refresh}"}
BOTH = {"cookie": "__Host-session={session}; __Host-refresh={refresh}"}
SWAPPED = {"cookie": "__Host-session={refresh}; __Host-refresh={session}"}
FORGED = {"cookie": "__Host-session=" + "A" * 87 + "; __Host-refresh=x.r." + "A" * 87}
BEARER = {"authorization": "Bearer {session}"}
ALICE, OTHER = f"{0:026d}", f"{1:026d}"
"""The ids of alice's sessions: the one whose tokens are sent, and another."""
EXCLUDED: Mapping[str, Any] = {"exclude": ["/"]}


def cookies(seen: Seen) -> list[str]:
    """The values of Set-Cookie in an answer."""
    return [value for name, value in seen["headers"] if name == "set-cookie"]


def left(seen: Seen) -> set[str]:
    """Which of alice's sessions have not ended."""
    return {id for id, row in seen["rows"].items() if row.is_active} & {ALICE, OTHER}


def check(seen: Seen, *kept: str) -> None:
    """It succeeded, wrote the cookies, and of alice's sessions only these are left."""
    assert (seen["status"], len(cookies(seen))) == (200, 2)
    assert left(seen) == set(kept)
    assert not {"Refreshed", "Reissued"} & set(seen["events"])


@each_transport
@each_verb
@pytest.mark.parametrize("sent", [BOTH, SESSION, REFRESH], ids=str)
@pytest.mark.parametrize("prepare", ["", "forget", "expire", "disable"])
def test_the_session_of_an_excluded_path_ends(
    over: Transport, prepare: str, sent: Mapping[str, str], act: tuple[str, ...]
) -> None:
    """No request was authenticated there, and yet the browser had a session. One whose
    token has expired counts, because its refresh token is valid, and so does one of a
    disabled user, who may be enabled again. Nothing is rotated for it."""
    case = Case("in", sent, act, method="POST", prepare=prepare, options=EXCLUDED)
    check(over(case), OTHER)


@each_transport
@each_verb
@pytest.mark.parametrize("prepare", ["rotate", "late"])
def test_the_session_of_an_older_refresh_token_ends(
    over: Transport, prepare: str, act: tuple[str, ...]
) -> None:
    """One step behind, as after a lost answer, and two, as in a tab that came late: they
    are the session's own, whichever tokens the table has by now."""
    for options in ({}, EXCLUDED) if prepare == "late" else (EXCLUDED,):
        case = Case("in", REFRESH, act, method="POST", prepare=prepare, options=options)
        seen = over(case)
        assert (seen["status"], len(cookies(seen)), left(seen)) == (200, 2, {OTHER})


@each_transport
@each_verb
def test_p8_a_replayed_token_is_one_on_an_excluded_path_too(
    over: Transport, act: tuple[str, ...]
) -> None:
    """Its session ends as replayed, with the event."""
    case = Case("in", BOTH, act, method="POST", prepare="replay", options=EXCLUDED)
    seen = over(case)
    assert (seen["status"], left(seen)) == (200, {OTHER})
    assert "Replayed" in seen["events"]
    assert seen["rows"][ALICE].revoked_reason == "refresh token replayed"


@each_transport
@each_verb
@pytest.mark.parametrize("options", [{}, EXCLUDED], ids=["asked", "excluded"])
def test_two_valid_sessions_in_one_request_both_end(
    over: Transport, act: tuple[str, ...], options: Mapping[str, Any]
) -> None:
    """Neither counts, because one may be planted. The holder of a token may end
    its session, so both end: no success for a session that lives on, and no conflict at
    the next request."""
    both = "__Host-session={session}; __Host-session={other_session}"
    case = Case("in", {"cookie": both}, act, method="POST", options=options)
    check(over(case))


@each_transport
@each_verb
@pytest.mark.parametrize("options", [{}, EXCLUDED], ids=["asked", "excluded"])
def test_the_session_of_another_refresh_cookie_ends(
    over: Transport, act: tuple[str, ...], options: Mapping[str, Any]
) -> None:
    """The session token decides who it is; the refresh token is of another session."""
    mixed = "__Host-session={session}; __Host-refresh={other_refresh}"
    case = Case("in", {"cookie": mixed}, act, method="POST", options=options)
    check(over(case))


@each_transport
@each_verb
def test_more_cookies_than_are_looked_at_hide_no_session(
    over: Transport, act: tuple[str, ...]
) -> None:
    """More than four of a name are none at all to a request; planted beside the victim's
    own they must not save the session from ending."""
    planted = "; ".join(f"__Host-session={n}; __Host-refresh={n}" for n in range(5))
    both = f"{planted}; __Host-session={{session}}; __Host-refresh={{refresh}}"
    check(over(Case("in", {"cookie": both}, act, method="POST")), OTHER)


@each_transport
@each_verb
@pytest.mark.parametrize("prepare", ["", "expire"])
def test_the_session_of_a_friend_s_frame_ends(
    over: Transport, prepare: str, act: tuple[str, ...]
) -> None:
    """A part of another site's page is never refreshed, so a session whose token has
    expired does not count there; it had one all the same."""
    friend = {"sec-fetch-site": "cross-site", "origin": "https://friend.example"}
    case = Case(
        "in",
        {**BOTH, **friend},
        act,
        method="POST",
        prepare=prepare,
        options={"trusted_origins": ["https://friend.example"]},
    )
    check(over(case), OTHER)


@each_transport
@each_verb
@pytest.mark.parametrize("prepare", ["", "expire"])
@pytest.mark.parametrize(
    ("headers", "options"),
    [
        ({"x-passive-request": "1"}, {}),
        ({"sec-purpose": "prefetch"}, {}),
        ({}, {"passive": ["/"]}),
        ({}, {"passive": ["/"], "exclude": ["/"]}),
    ],
    ids=str,
)
def test_the_session_of_a_passive_request_ends(
    over: Transport,
    headers: Mapping[str, str],
    options: Mapping[str, Any],
    prepare: str,
    act: tuple[str, ...],
) -> None:
    """Known by a refresh token that was not used up."""
    case = Case("in", {**BOTH, **headers}, act, prepare=prepare, options=options)
    check(over(case), OTHER)


@each_transport
@each_verb
def test_the_session_of_an_options_request_ends(
    over: Transport, act: tuple[str, ...]
) -> None:
    """Which is never authenticated."""
    check(over(Case("in", BOTH, act, method="OPTIONS")), OTHER)


def up(engine: Engine) -> None:
    """The database is back."""
    engine.store.down = False


@each_transport
def test_a_login_after_an_outage_ends_the_session_that_was_unknown(over: Transport) -> None:
    """The database was away when the request came, and is back at the login."""
    for outage in ("ask", "anonymous"):
        case = Case(
            "in",
            BOTH,
            ("login", "bob"),
            method="POST",
            prepare="down",
            options={"outage": outage},
            meanwhile=up,
        )
        check(over(case), OTHER)


@each_transport
@each_verb
@pytest.mark.parametrize("options", [EXCLUDED, {"outage": "anonymous"}], ids=str)
def test_p17_where_nobody_can_say_nothing_ends_and_nothing_is_cleared(
    over: Transport, options: Mapping[str, Any], act: tuple[str, ...]
) -> None:
    """503, and the cookies stay, for the session does."""
    case = Case("in", BOTH, act, method="POST", prepare="down", options=options)
    seen = over(case)
    assert (seen["status"], cookies(seen), left(seen)) == (503, [], {ALICE, OTHER})


@each_transport
@pytest.mark.parametrize("exclude", [[], ["/"]], ids=["asked", "excluded"])
def test_a_login_with_a_bearer_token_ends_what_its_cookies_had(
    over: Transport, exclude: list[str]
) -> None:
    """The session of the token, which signed in anew, and that of the cookies, which are
    written over."""
    beside = "__Host-session={other_session}; __Host-refresh={other_refresh}"
    options = {"bearer": True, "exclude": exclude}
    sent = {**BEARER, "cookie": beside}
    check(over(Case("in", sent, ("login", "bob"), method="POST", options=options)))


@each_transport
@pytest.mark.parametrize("exclude", [[], ["/"]], ids=["asked", "excluded"])
def test_a_logout_with_a_bearer_token_is_about_that_alone(
    over: Transport, exclude: list[str]
) -> None:
    """The cookies and their session are as they were."""
    beside = "__Host-session={other_session}; __Host-refresh={other_refresh}"
    options = {"bearer": True, "exclude": exclude}
    sent = {**BEARER, "cookie": beside}
    seen = over(Case("out", sent, ("logout",), method="POST", options=options))
    assert (seen["status"], cookies(seen), left(seen)) == (200, [], {OTHER})


@each_transport
@each_verb
@pytest.mark.parametrize(
    "sent", [{}, FORGED, SWAPPED], ids=["nothing", "forged", "swapped"]
)
def test_p2_what_is_no_token_of_ours_ends_nothing_and_costs_nothing(
    over: Transport, sent: Mapping[str, str], act: tuple[str, ...]
) -> None:
    """No query beside the login's own; nor does a token in the other one's cookie count."""
    seen = over(Case("in", sent, act, method="POST", options=EXCLUDED))
    check(seen, ALICE, OTHER)
    assert seen["queries"] == (1 if act[0] == "login" else 0)


@each_transport
@each_verb
def test_the_usual_login_and_logout_ask_nothing_more(
    over: Transport, act: tuple[str, ...]
) -> None:
    """Where the cookies are those of the request's session, nothing is looked for."""
    for sent in (BOTH, SESSION):
        seen = over(Case("in", sent, act, method="POST"))
        check(seen, OTHER)
        assert seen["queries"] == 1


@each_transport
@each_verb
@pytest.mark.parametrize("prepare", ["", "forget", "expire"])
def test_a_session_that_has_ended_stays_as_it_ended(
    over: Transport, prepare: str, act: tuple[str, ...]
) -> None:
    """Its reason is not written over."""

    def revoked(engine: Engine) -> None:
        list(engine.store._end([ALICE], "by an operator"))

    case = Case(
        "in", BOTH, act, method="POST", prepare=prepare, options=EXCLUDED, meanwhile=revoked
    )
    seen = over(case)
    check(seen, OTHER)
    assert seen["rows"][ALICE].revoked_reason == "by an operator"
