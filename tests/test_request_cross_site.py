"""What a page of another site can make a browser do: nothing that changes a session.

A request of another site carries no SameSite cookie, so it is often anonymous: each write
through the handle looks at the origin again, whatever the request carries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.support.transports import Case, Seen, over_asgi, over_wsgi

Transport = Callable[[Case], Seen]
each_transport = pytest.mark.parametrize("over", [over_asgi, over_wsgi])

BOTH = {"cookie": "__Host-session={session}; __Host-refresh={refresh}"}
CROSS = {"sec-fetch-site": "cross-site", "origin": "https://evil.example"}
FOREIGN = [
    CROSS,
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site", "origin": "https://blog.app.example"},
    {"origin": "https://evil.example"},
    {"origin": "http://app.example:8080"},
    {"origin": "null"},
]
OURS = [
    {},
    {"user-agent": "curl/8.5.0"},
    {"sec-fetch-site": "same-origin", "origin": "https://app.example"},
    {"sec-fetch-site": "none"},
    {"origin": "https://app.example"},
]
ALICE, OTHER = f"{0:026d}", f"{1:026d}"
"""The ids of alice's sessions: the one whose tokens are sent, and another."""
WRITES: list[tuple[Any, ...]] = [
    ("logout",),
    ("login", "bob"),
    ("step_up", 2),
    ("revoke", OTHER),
    ("revoke_others",),
]


def cookies(seen: Seen) -> list[str]:
    """The values of Set-Cookie in an answer."""
    return [value for name, value in seen["headers"] if name == "set-cookie"]


def events(seen: Seen) -> list[str]:
    """What was published, beside the sign-ins and the other browser that asks."""
    return [name for name in seen["events"] if name not in ("LoggedIn", "BindingChanged")]


def live(seen: Seen) -> set[str]:
    """The ids of the sessions that have not ended."""
    return {id for id, row in seen["rows"].items() if row.is_active}


@each_transport
@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_a_logout_by_another_site_clears_no_cookie(
    over: Transport, headers: Mapping[str, str]
) -> None:
    """A form of another site arrives without the Lax cookies, and its answer is a
    top-level navigation, in which Set-Cookie would count: 403, and nothing is cleared."""
    seen = over(Case("form", headers, ("logout",), method="POST"))
    assert (seen["status"], cookies(seen)) == (403, [])
    assert (live(seen), events(seen)) == ({ALICE, OTHER}, ["CrossSiteRefused"])


@each_transport
@pytest.mark.parametrize("act", WRITES, ids=str)
@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_a_link_on_another_site_writes_nothing(
    over: Transport, headers: Mapping[str, str], act: tuple[Any, ...]
) -> None:
    """A top-level GET brings the Lax cookies along: an application that writes on GET is
    protected by the handle, for a GET passes the middleware."""
    seen = over(Case("link", {**BOTH, **headers}, act))
    assert (seen["status"], cookies(seen)) == (403, [])
    assert (live(seen), events(seen)) == ({ALICE, OTHER}, ["CrossSiteRefused"])


@each_transport
@pytest.mark.parametrize("headers", OURS, ids=str)
@pytest.mark.parametrize("sent", [{}, BOTH], ids=["anonymous", "signed in"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_logout_by_our_own_page_or_no_page_works(
    over: Transport, headers: Mapping[str, str], sent: Mapping[str, str], method: str
) -> None:
    """Without Origin and Sec-Fetch-Site it is no page: a phone, a script, curl."""
    seen = over(Case("own", {**sent, **headers}, ("logout",), method=method))
    assert (seen["status"], len(cookies(seen))) == (200, 2)
    assert live(seen) == ({OTHER} if sent else {ALICE, OTHER})


@each_transport
@pytest.mark.parametrize(
    "options",
    [{"trusted_origins": ["https://evil.example"]}, {"cross_site": "allow"}],
    ids=str,
)
@pytest.mark.parametrize("act", [("logout",), ("revoke_others",)], ids=str)
def test_a_trusted_origin_may_log_out(
    over: Transport, act: tuple[str, ...], options: Mapping[str, Any]
) -> None:
    """The options of the middleware mean the same for each write."""
    seen = over(Case("friend", {**BOTH, **CROSS}, act, method="POST", options=options))
    assert (seen["status"], len(live(seen))) == (200, 1)


@each_transport
def test_a_foreign_logout_of_an_excluded_path_is_refused(over: Transport) -> None:
    """A path that is not authenticated is not one that may be written to."""
    options = {"exclude": ["/logout"]}
    for headers in (CROSS, {**BOTH, **CROSS}):
        case = Case(
            "excluded", headers, ("logout",), method="POST", path="/logout", options=options
        )
        seen = over(case)
        assert (seen["status"], cookies(seen), len(live(seen))) == (403, [], 2)


BEARER = {"authorization": "Bearer {session}"}
MADE_UP = {"authorization": "Bearer " + "A" * 80}


@each_transport
@pytest.mark.parametrize("headers", [{}, *FOREIGN], ids=str)
def test_a_bearer_client_logs_out_from_any_origin(
    over: Transport, headers: Mapping[str, str]
) -> None:
    """No page attaches a bearer token without this server's consent (CORS). The token's
    session ends; cookies are another matter, and are left alone."""
    case = Case(
        "bearer",
        {**BEARER, **headers},
        ("logout",),
        method="POST",
        options={"bearer": True},
    )
    seen = over(case)
    assert (seen["status"], cookies(seen), live(seen)) == (200, [], {OTHER})


@each_transport
@pytest.mark.parametrize("headers", [{}, *FOREIGN], ids=str)
@pytest.mark.parametrize("exclude", [[], ["/"]], ids=["asked", "excluded"])
def test_a_forged_bearer_token_clears_no_cookies(
    over: Transport, headers: Mapping[str, str], exclude: list[str]
) -> None:
    """It logs no user out: the session of the cookies beside it lives on, so they must
    stay."""
    case = Case(
        "made up",
        {**BOTH, **MADE_UP, **headers},
        ("logout",),
        method="POST",
        options={"bearer": True, "exclude": exclude},
    )
    seen = over(case)
    assert (seen["status"], cookies(seen), live(seen)) == (200, [], {ALICE, OTHER})


@each_transport
@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_a_bearer_token_opens_no_login_to_another_site(
    over: Transport, headers: Mapping[str, str]
) -> None:
    """A login sets cookies, so it is refused as any other."""
    case = Case(
        "bearer",
        {**BEARER, **headers},
        ("login", "bob"),
        method="POST",
        options={"bearer": True},
    )
    seen = over(case)
    assert (seen["status"], cookies(seen), live(seen)) == (403, [], {ALICE, OTHER})


UPGRADES = [
    {"upgrade": "websocket"},
    {"upgrade": "WebSocket", "connection": "Upgrade"},
    {"upgrade": "h2c, WEBSOCKET"},
    {"upgrade": "websocket/13,"},
]


@each_transport
@pytest.mark.parametrize("upgrade", UPGRADES, ids=str)
@pytest.mark.parametrize("headers", FOREIGN, ids=str)
@pytest.mark.parametrize("prepare", ["", "forget"], ids=["cached", "uncached"])
def test_a_handshake_of_another_site_is_refused_where_it_is_a_get(
    over: Transport, headers: Mapping[str, str], upgrade: Mapping[str, str], prepare: str
) -> None:
    """Whoever may open a socket may write through it. Under WSGI it is an HTTP request,
    and under ASGI where the server does not handle WebSockets."""
    case = Case("handshake", {**BOTH, **upgrade, **headers}, prepare=prepare)
    seen = over(case)
    assert (seen["status"], cookies(seen)) == (403, [])
    assert events(seen) == ["CrossSiteRefused"]


@each_transport
@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_a_handshake_over_http_2_is_refused_as_well(
    over: Transport, headers: Mapping[str, str]
) -> None:
    """Its method is CONNECT (RFC 8441)."""
    seen = over(Case("handshake", {**BOTH, **headers}, method="CONNECT"))
    assert seen["status"] == 403


@each_transport
@pytest.mark.parametrize("upgrade", [*UPGRADES, {"upgrade": "h2c"}], ids=str)
@pytest.mark.parametrize("headers", OURS, ids=str)
def test_a_handshake_of_our_own_page_is_authenticated(
    over: Transport, headers: Mapping[str, str], upgrade: Mapping[str, str]
) -> None:
    """As any request is."""
    seen = over(Case("handshake", {**BOTH, **upgrade, **headers}))
    assert (seen["status"], seen["body"]) == (200, b"'alice'")


@each_transport
def test_another_protocol_is_no_socket(over: Transport) -> None:
    """No page can ask for one, and a link may come with what a proxy adds."""
    for upgrade in ({"upgrade": "h2c"}, {"upgrade-insecure-requests": "1"}):
        seen = over(Case("link", {**BOTH, **CROSS, **upgrade}))
        assert (seen["status"], seen["body"]) == (200, b"'alice'")
