"""ASGI and WSGI give the same answer to the same request, header by header.

Two worlds alike in every byte, their tokens included: the same clock, the same entropy,
the same ids. What one middleware answers, the other answers.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from handstamp.config import Cookies
from tests.support.transports import Case, Seen, over_asgi, over_wsgi

BOTH = {"cookie": "theme=dark; __Host-session={session}; __Host-refresh={refresh}"}
SESSION = {"cookie": "__Host-session={session}"}
REFRESH = {"cookie": "__Host-refresh={refresh}"}
FORGED = {"cookie": "__Host-session=" + "A" * 80}
CROSS = {"sec-fetch-site": "cross-site", "origin": "https://evil.example"}
PUBLIC = (("cache-control", "public, max-age=3600"), ("vary", "Accept"))
EXPIRED = {"prepare": "expire"}
NOT_MEANT = {
    "a passive header": {"x-passive-request": "1"},
    "sec-purpose": {"sec-purpose": "prefetch"},
    "purpose": {"purpose": "prefetch"},
    "x-moz": {"x-moz": "prefetch"},
}
"""What a client says of a request that is to be no activity."""
CASES = [
    Case("anonymous"),
    Case("anonymous, never asked", act=None),
    Case("anonymous, required", act=("require",)),
    Case("another's cookies", {"cookie": "theme=dark"}, act=None),
    Case("cached", BOTH),
    Case("cached, never asked", BOTH, act=None),
    Case("cached, HEAD", BOTH, method="HEAD"),
    Case("cached, POST", BOTH, method="POST"),
    Case("cached, OPTIONS", BOTH, method="OPTIONS"),
    Case("cached, a method in small letters", BOTH, method="get"),
    Case("cached, PURGE of another site", {**BOTH, **CROSS}, method="PURGE"),
    Case("cached, varies already", BOTH, answer=PUBLIC),
    Case("cached, varies on everything", BOTH, answer=(("vary", "*"),)),
    Case("cached, sets our cookie", BOTH, answer=(("set-cookie", "__Host-session=x"),)),
    Case("uncached", SESSION, prepare="forget"),
    Case("expired", BOTH, prepare="expire"),
    Case("expired, public", BOTH, prepare="expire", answer=PUBLIC),
    Case("expired, never asked", BOTH, prepare="expire", act=None),
    Case("expired, POST", BOTH, prepare="expire", method="POST"),
    Case("expired, HEAD", BOTH, prepare="expire", method="HEAD"),
    Case("expired, session alone", SESSION, prepare="expire"),
    Case("refresh alone", REFRESH, prepare="expire"),
    Case("expired, passive", {**BOTH, "x-passive-request": "1"}, prepare="expire"),
    Case("expired, active after all", {**BOTH, "x-passive-request": "0"}, prepare="expire"),
    Case("expired, prefetch", {**BOTH, "sec-purpose": "prefetch"}, prepare="expire"),
    *(
        Case(f"expired, {method} with {name}", {**BOTH, **word}, **EXPIRED, method=method)
        for method in ("POST", "DELETE", "PURGE", "get")
        for name, word in NOT_MEANT.items()
    ),
    Case("expired, part of another site", {**BOTH, **CROSS}, prepare="expire"),
    Case("revoked", BOTH, prepare="revoke"),
    Case("revoked, required", BOTH, prepare="revoke", act=("require",)),
    Case("forged", FORGED),
    Case("forged, never asked", FORGED, act=None),
    Case(
        "twice the same", {"cookie": "__Host-session={session}; __Host-session={session}"}
    ),
    Case("one of two", {"cookie": "__Host-session=old; __Host-session={session}"}),
    Case("swapped", {"cookie": "__Host-session={refresh}; __Host-refresh={session}"}),
    Case("in quotes", {"cookie": '__Host-session="{session}"'}),
    Case("behind no blank", {"cookie": "a=b;__Host-session={session}"}),
    Case("behind a comma", {"cookie": "a=b,__Host-session={session}"}),
    Case("another name", {"cookie": "\xa0__Host-session={session}"}),
    Case("blanks around", {"cookie": "__Host-session= {session}\t"}),
    Case("in bytes beyond ASCII", {"cookie": "__Host-session=\xff{session}"}),
    Case("huge", {"cookie": "__Host-session=" + "A" * 100_000}),
    Case("bearer, not asked for", {"authorization": "Bearer {session}"}),
    Case("bearer", {"authorization": "Bearer {session}"}, options={"bearer": True}),
    Case(
        "bearer, POST of another site",
        {"authorization": "Bearer {session}", **CROSS},
        method="POST",
        options={"bearer": True},
    ),
    Case("write of another site", {**BOTH, **CROSS}, method="POST"),
    Case("anonymous write from there", CROSS, method="POST"),
    Case("write of a sibling", {**BOTH, "sec-fetch-site": "same-site"}, method="POST"),
    Case(
        "write, allowed", {**BOTH, **CROSS}, method="POST", options={"cross_site": "allow"}
    ),
    Case(
        "write of a friend",
        {**BOTH, **CROSS},
        method="POST",
        options={"trusted_origins": ["https://evil.example"]},
    ),
    Case("excluded", BOTH, path="/open", options={"exclude": ["/open"]}),
    Case("nearly excluded", BOTH, path="/open/", options={"exclude": ["/open"]}),
    Case(
        "a passive path",
        BOTH,
        prepare="expire",
        path="/poll",
        options={"passive": ["/poll"]},
    ),
    Case("outage", BOTH, prepare="down"),
    Case("outage, never asked", BOTH, prepare="down", act=None),
    Case("outage, required", BOTH, prepare="down", act=("require",)),
    Case("outage, log out", BOTH, prepare="down", act=("logout",)),
    Case("outage, log in", prepare="down", act=("login", "bob")),
    Case("outage, refused", BOTH, prepare="down", act=None, options={"outage": "refuse"}),
    Case(
        "outage, POST refused",
        BOTH,
        prepare="down",
        method="POST",
        options={"outage": "refuse"},
    ),
    Case(
        "outage, HEAD refused",
        BOTH,
        prepare="down",
        method="HEAD",
        options={"outage": "refuse"},
    ),
    Case("outage, anonymous", BOTH, prepare="down", options={"outage": "anonymous"}),
    Case(
        "outage, anonymous logs out",
        BOTH,
        ("logout",),
        prepare="down",
        options={"outage": "anonymous"},
    ),
    Case("log in", act=("login", "bob"), method="POST"),
    Case("log in, with a session", BOTH, act=("login", "bob"), method="POST"),
    Case("log in, public", act=("login", "bob"), method="POST", answer=PUBLIC),
    Case("log in, from another site", CROSS, act=("login", "bob"), method="POST"),
    Case("log in, locked", act=("login", "locked"), method="POST"),
    Case(
        "log in, over http", act=("login", "bob"), options={"cookies": Cookies.insecure()}
    ),
    Case("log out", BOTH, act=("logout",), method="POST"),
    Case("log out, anonymous", act=("logout",), method="POST"),
    Case(
        "log out, after a refresh", BOTH, prepare="expire", act=("logout",), method="POST"
    ),
    Case("step up", BOTH, act=("step_up", 2), method="POST"),
    Case(
        "step up, after a refresh",
        BOTH,
        prepare="expire",
        act=("step_up", 2),
        method="POST",
    ),
    Case("step up, the session alone", SESSION, act=("step_up", 2), method="POST"),
    Case("step up, to where it is", BOTH, act=("step_up", 0), method="POST"),
    Case("step up, anonymous", act=("step_up", 2), method="POST"),
    Case(
        "up, bearer",
        {"authorization": "Bearer {session}"},
        act=("step_up", 2),
        method="POST",
        options={"bearer": True},
    ),
    Case("list", BOTH, act=("list_sessions",)),
    Case("list, anonymous", act=("list_sessions",)),
    Case("revoke", BOTH, act=("revoke", "1" * 26), method="POST"),
    Case("revoke others", BOTH, act=("revoke_others",), method="POST"),
    Case("an address", {"x-forwarded-for": "203.0.113.9"}, act=("client",)),
    Case("an agent", {"user-agent": "A\xff\x01gent"}, act=("client",)),
]


@pytest.mark.parametrize("word", NOT_MEANT)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PURGE", "get"])
@pytest.mark.parametrize("over", [over_asgi, over_wsgi], ids=["asgi", "wsgi"])
def test_a_client_cannot_declare_a_write_passive(
    over: Callable[[Case], Seen], method: str, word: str
) -> None:
    """It rotates, and it is activity, whatever its headers say of it."""
    said = over(Case("", {**BOTH, **NOT_MEANT[word]}, method=method, **EXPIRED))
    plain = over(Case("", BOTH, method=method, **EXPIRED))
    assert said == plain
    assert said["events"].count("Refreshed") == 1


@pytest.mark.parametrize("over", [over_asgi, over_wsgi], ids=["asgi", "wsgi"])
def test_an_application_can_declare_a_write_passive(over: Callable[[Case], Seen]) -> None:
    """A path that is configured as passive stays so for every method."""
    case = Case(
        "", BOTH, path="/poll", method="POST", options={"passive": ["/poll"]}, **EXPIRED
    )
    assert "Refreshed" not in over(case)["events"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_transports_return_the_same_response(case: Case) -> None:
    """Status, every header, body; and the same rows, events and queries behind it."""
    assert over_wsgi(case) == over_asgi(case)
