"""The example contract, row by row, over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import httpx
import pytest

from tests.examples.servers import (
    Example,
    Server,
    execute,
    make_due,
    serving,
    sign_in,
    telling,
    until,
)

Start = Callable[..., Server]
ATTRIBUTES = ["HttpOnly", "Path=/", "SameSite=Lax"]


def set_cookies(response: httpx.Response) -> dict[str, list[str]]:
    """The cookies a response sets: name to its attributes, sorted, without the value."""
    pairs = {}
    for header in response.headers.get_list("set-cookie"):
        pair, *attributes = header.split("; ")
        pairs[pair.partition("=")[0]] = sorted(attributes)
    return pairs


def attributes(server: Server, *, remember: bool = False) -> dict[str, list[str]]:
    """The cookies of a new session as they should be, in the manner of set_cookies."""
    names, ages = server.cookie_names, server.example.ages(remember=remember)
    secure = [] if server.insecure else ["Secure"]
    aged = [[age] for age in ages] or [[]] * len(names)
    return {
        name: sorted([*ATTRIBUTES, *secure, *age])
        for name, age in zip(names, aged, strict=True)
    }


def gone(server: Server, *, blindly: bool = False) -> dict[str, list[str]]:
    """The cookies that a sign-out removes; ``blindly`` when the request had none."""
    if server.example.clears_blindly:
        names = ["session", "refresh"]
    else:
        names = [] if blindly else list(server.cookie_names)
    return {name: sorted([*ATTRIBUTES, "Max-Age=0"]) for name in names}


def me(client: httpx.Client) -> dict[str, str]:
    """What GET /me says of a client that is signed in."""
    response = client.get("/me")
    assert response.status_code == 200, response.text
    return response.json()


def test_login_answers_204_with_its_cookies(server: Server) -> None:
    """A right password opens a session, and the answer has no body."""
    with server.client() as client:
        response = sign_in(client)
    assert response.content == b""
    assert set_cookies(response) == attributes(server)


@pytest.mark.parametrize(
    "form",
    [
        {"username": "alice", "password": "builder"},
        {"username": "nobody", "password": "wonderland"},
        {"username": "alice", "password": ""},
        {"username": "alice", "password": "wonderland\0"},
        {"username": "alice\0", "password": "wonderland"},
        {"username": "alice", "password": "w" * 100_000},
        {"username": "a" * 100_000, "password": "wonderland"},
        {"username": "ål\ud7ff☃", "password": "☃"},
        {"username": "alice"},
        {},
    ],
    ids=lambda form: f"{str(form)[:50]}",
)
def test_login_refuses_whoever_does_not_know_the_password(
    server: Server, form: dict[str, str]
) -> None:
    """Anything but a user and their password is a 4xx without a cookie."""
    with server.client() as client:
        response = client.post("/login", data=form)
    assert response.status_code in ({401} if form.get("password") else {401, 422})
    assert set_cookies(response) == {}


def test_login_says_the_same_of_an_unknown_user_and_a_wrong_password(
    server: Server,
) -> None:
    """The 401 does not tell which users exist."""
    with server.client() as client:
        wrong = client.post("/login", data={"username": "bob", "password": "x"})
        unknown = client.post("/login", data={"username": "eve", "password": "x"})
        sign_in(client, "bob")
    assert (401, wrong.text) == (unknown.status_code, unknown.text)
    assert "bob" not in wrong.text


def test_login_takes_a_multipart_form_too(server: Server) -> None:
    """Both encodings of a form are understood, and a file is no password."""
    fields = {"username": (None, "alice"), "password": (None, "wonderland")}
    file = {"username": (None, "alice"), "password": ("f", b"wonderland")}
    with server.client() as client:
        assert client.post("/login", files=fields).status_code == 204
        assert client.post("/login", files=file).status_code in (401, 422)


def test_login_replaces_the_session_of_this_browser(server: Server) -> None:
    """A second sign-in ends the first session and starts one with another id."""
    with server.client() as client, server.client() as other:
        sign_in(client)
        before = me(client)
        other.cookies.update(dict(client.cookies))
        sign_in(client)
        assert before["session_id"] != me(client)["session_id"]
        assert other.get("/me").status_code == 401


def test_me_names_the_user_and_the_session(server: Server) -> None:
    """/me has exactly the three facts of the contract."""
    with server.client() as alice, server.client() as bob:
        sign_in(alice)
        sign_in(bob, "bob")
        ours, theirs = me(alice), me(bob)
    assert {"user_id", "session_id", "username"} == ours.keys()
    assert (ours["username"], theirs["username"]) == ("alice", "bob")
    assert ours["user_id"] != theirs["user_id"]


def test_an_anonymous_client_gets_401(server: Server) -> None:
    """What belongs to a user is refused without a session, and nothing is set."""
    with server.client() as client:
        responses = [
            client.get("/me"),
            client.get("/sessions"),
            client.post("/sessions/revoke-others"),
            client.post(f"/sessions/{server.example.some_id}/revoke"),
        ]
    assert [response.status_code for response in responses] == [401] * 4
    assert not any("set-cookie" in response.headers for response in responses)


def test_logout_ends_the_session_and_clears_the_cookies(server: Server) -> None:
    """After 204 the browser has no cookie, and the old ones are worth nothing."""
    with server.client() as client, server.client() as thief:
        sign_in(client)
        thief.cookies.update(dict(client.cookies))
        response = client.post("/logout")
        assert response.status_code == 204
        assert gone(server) == set_cookies(response)
        assert dict(client.cookies) == {}
        assert thief.get("/me").status_code == 401


def test_logout_clears_the_cookies_also_when_nobody_is_signed_in(server: Server) -> None:
    """A stale or foreign cookie goes away as well."""
    stale = "; ".join(f"{name}=stale" for name in server.cookie_names)
    with server.client() as client:
        for cookies in ({}, {"Cookie": stale}):
            response = client.post("/logout", headers=cookies)
            assert response.status_code == 204
            assert gone(server, blindly=not cookies) == set_cookies(response)


def test_sessions_lists_this_users_sessions_and_marks_the_current(server: Server) -> None:
    """The list has one line for each device, and bob's is not among them."""
    with server.client() as phone, server.client() as laptop, server.client() as bob:
        sign_in(phone)
        sign_in(laptop)
        sign_in(bob, "bob")
        laptop.post("/sessions/revoke-others")
        sign_in(phone)
        lines = laptop.get("/sessions").json()
        ids = {line["id"]: line["current"] for line in lines}
        assert {me(phone)["session_id"]: False, me(laptop)["session_id"]: True} == ids
    fields = {"id", "created_at", "last_activity_at", "address", "current"}
    assert [fields] * 2 == [line.keys() for line in lines]
    assert {"127.0.0.1"} == {line["address"] for line in lines}


def test_sessions_shows_no_token(server: Server) -> None:
    """Neither a token nor a part of one is in the list."""
    with server.client() as client:
        sign_in(client)
        text = client.get("/sessions").text
        parts = [part for token in client.cookies.values() for part in telling(token)]
    assert [part for part in parts if part in text] == []


def test_a_user_revokes_one_of_their_sessions(server: Server) -> None:
    """The other device is out at once, and a second revocation finds nothing."""
    with server.client() as phone, server.client() as laptop:
        sign_in(phone)
        sign_in(laptop)
        path = f"/sessions/{me(phone)['session_id']}/revoke"
        assert laptop.post(path).status_code == 204
        assert phone.get("/me").status_code == 401
        assert laptop.post(path).status_code == 404
        assert laptop.get("/me").status_code == 200


def test_nobody_revokes_the_session_of_another_user(server: Server) -> None:
    """A foreign id looks just like one that does not exist."""
    with server.client() as alice, server.client() as bob:
        sign_in(alice)
        sign_in(bob, "bob")
        foreign = bob.post(f"/sessions/{me(alice)['session_id']}/revoke")
        unknown = bob.post(f"/sessions/{server.example.some_id}/revoke")
        assert (404, foreign.text) == (unknown.status_code, unknown.text)
        assert alice.get("/me").status_code == 200


@pytest.mark.parametrize("id", ["%00", "'%20or%201=1", "x" * 5000, "%ff", "%E2%98%83"])
def test_an_id_that_cannot_be_one_is_not_found(server: Server, id: str) -> None:
    """For every text in the path the answer is a 404."""
    with server.client() as client:
        sign_in(client)
        assert client.post(f"/sessions/{id}/revoke").status_code == 404


def test_revoke_others_keeps_only_this_session(server: Server) -> None:
    """All other devices of this user are out, and bob is not."""
    with server.client() as phone, server.client() as laptop, server.client() as bob:
        sign_in(phone)
        sign_in(laptop)
        sign_in(bob, "bob")
        assert laptop.post("/sessions/revoke-others").status_code == 204
        statuses = [c.get("/me").status_code for c in (phone, laptop, bob)]
        assert statuses == [401, 200, 200]
        assert len(laptop.get("/sessions").json()) == 1


def test_public_needs_and_shows_no_session(server: Server) -> None:
    """A page that does not read the session is cacheable for clients without cookies."""
    with server.client() as client:
        response = client.get("/public")
        assert response.status_code == 200
        assert not {"vary", "set-cookie", "cache-control"} & response.headers.keys()


def test_vary_names_the_cookie_where_one_was_sent_or_asked_for(server: Server) -> None:
    """Caches keep apart what cookies tell apart."""
    with server.client() as client:
        anonymous = client.get("/me")
        other = client.get("/public", headers={"Cookie": "theme=dark"})
        sign_in(client)
        signed_in, public = client.get("/me"), client.get("/public")
    assert "vary" not in other.headers
    varied = [r.headers["vary"] for r in (anonymous, signed_in, public)]
    assert varied[1:] == ["Cookie"] * 2
    assert varied[0] in ("Cookie", "Accept, Cookie")  # Falcon's errors follow Accept
    assert "set-cookie" not in signed_in.headers


def test_what_sets_a_cookie_is_never_stored(server: Server) -> None:
    """Sign-in and sign-out are private and vary by cookie."""
    with server.client() as client:
        for response in (sign_in(client), client.post("/logout")):
            assert response.headers["cache-control"] == server.example.no_store
            assert response.headers["vary"] == "Cookie"


def test_only_remembered_cookies_outlive_the_browser(server: Server) -> None:
    """Max-Age is there with `remember` and not otherwise, except in Supabase's cookie."""
    with server.client() as client:
        brief, kept = sign_in(client), sign_in(client, remember="1")
        unticked = sign_in(client, remember="0")
    assert set_cookies(kept) == attributes(server, remember=True)
    assert set_cookies(brief) == set_cookies(unticked) == attributes(server)


def test_healthz_says_that_all_is_well(server: Server) -> None:
    """With a database that answers, the status is ok and the listener listens."""
    well = {"status": "ok", "database": "ok", "bus": "listening"}
    with server.client() as client:
        assert until(lambda: listening(client), "the listener") == {
            **well,
            "bound": "pushed",
        }


def listening(client: httpx.Client) -> dict[str, str] | None:
    """The health of a process that listens."""
    health: dict[str, str] = client.get("/healthz").raise_for_status().json()
    return health if health["bus"] == "listening" else None


def test_healthz_says_when_not_every_writer_is_heard(
    example: Example, seeded_copy: str, tmp_path: Path
) -> None:
    """Without the trigger, revocations by others are bounded and not pushed."""
    asyncio.run(drop_trigger(seeded_copy))
    with (
        serving(example, seeded_copy, tmp_path / "log") as server,
        server.client() as client,
    ):
        assert until(lambda: listening(client), "the listener")["bound"] == "5 s"


async def drop_trigger(dsn: str) -> None:
    """Undo what `handstamp init --trigger` did to the sessions."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("drop function handstamp_notify_session cascade")
    finally:
        await connection.close()


def test_cookies_are_host_bound_and_secure_by_default(secure_server: Server) -> None:
    """Without the setting for plain http, the cookies carry the strictest names that
    their format allows."""
    with secure_server.client() as client:
        response = sign_in(client)
        assert set_cookies(response) == attributes(secure_server)
        pairs = [h.partition(";")[0] for h in response.headers.get_list("set-cookie")]
        found = client.get("/me", headers={"Cookie": "; ".join(pairs)})
        assert found.status_code == 200
        renamed = "; ".join(pairs).replace("__Host-", "").replace("sb-127", "sb-128")
        assert client.get("/me", headers={"Cookie": renamed}).status_code == 401


def test_insecure_cookies_are_for_this_machine_only(start: Start, example: Example) -> None:
    """A sign-in on another host name fails, and the log tells the operator why."""
    server = start(example, HANDSTAMP_INSECURE_COOKIES="1", HANDSTAMP_RETENTION="86400")
    form = {"username": "alice", "password": "wonderland"}
    with server.client() as client:
        response = client.post("/login", data=form, headers={"Host": "app.example.com"})
    assert (response.status_code, set_cookies(response)) == (500, {})
    assert "https" not in response.text
    reason = "ConfigError: cookies without Secure are for"
    until(lambda: reason in server.log.read_text(), "the reason to be logged")
    assert server.leaks(tracebacks=False) == []


FOREIGN = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_a_write_from_another_site_is_refused(
    server: Server, headers: dict[str, str]
) -> None:
    """Another site's page can neither sign anybody out nor in."""
    form = {"username": "alice", "password": "wonderland"}
    with server.client() as client:
        for path in ("/login", "/logout"):  # SameSite keeps our cookies off its form
            response = client.post(path, data=form, headers=headers)
            assert (response.status_code, set_cookies(response)) == (403, {})
        sign_in(client)
        for path in ("/logout", "/sessions/revoke-others", "/login"):
            response = client.post(path, data=form, headers=headers)
            assert (response.status_code, set_cookies(response)) == (403, {})
        assert client.get("/me", headers=headers).status_code == 200


def test_a_write_from_our_own_page_is_fine(server: Server) -> None:
    """Same-origin requests pass, by either header."""
    with server.client() as client:
        sign_in(client)
        ours = {"Sec-Fetch-Site": "same-origin", "Origin": server.url}
        by_origin = {"Origin": server.url}
        for headers in (ours, by_origin):
            response = client.post("/sessions/revoke-others", headers=headers)
            assert response.status_code == 204


def test_head_is_get_without_a_body_and_delivers_cookies(server: Server) -> None:
    """A HEAD may rotate, and then its answer carries the new cookies."""
    delivered = server.cookie_names if server.example.rotates else ()
    with server.client() as client:
        sign_in(client)
        make_due(client)
        response = client.head("/me")
        assert response.status_code in (200, 405)
        assert response.content == b""
        assert set(delivered) == set_cookies(response).keys()
        assert client.get("/me").status_code == 200


def test_options_never_touches_the_session(server: Server) -> None:
    """A preflight neither rotates nor fails, from wherever it comes."""
    with server.client() as client:
        sign_in(client)
        make_due(client)
        for headers in ({}, *FOREIGN):
            response = client.options("/me", headers=headers)
            assert response.status_code in (200, 204, 404, 405)  # 404: Pyramid's 405
            assert set_cookies(response) == {}


def test_without_a_database_the_answer_is_503_and_nobody_is_signed_out(
    example: Example, seeded_copy: str, tmp_path: Path
) -> None:
    """An outage costs answers, never sessions; what needs no session goes on."""
    settings = {"HANDSTAMP_INSECURE_COOKIES": "1", "HANDSTAMP_MAX_STALENESS": "60"}
    log = tmp_path / "log"
    with (
        serving(example, seeded_copy, log, **settings) as server,
        server.client() as client,
    ):
        sign_in(client)
        assert me(client)["username"] == "alice"
        with taken_away(seeded_copy):
            refused = [
                client.get("/me"),
                client.get("/sessions"),
                client.post("/logout"),
                client.post("/login", data={"username": "bob", "password": "builder"}),
            ]
            until(
                lambda: client.get("/healthz").json()["bus"] == "disconnected",
                "the loss of the listener",
            )
            public, health = client.get("/public"), client.get("/healthz")
        assert [response.status_code for response in refused] == [503] * 4
        assert [response.headers["retry-after"] for response in refused] == ["1"] * 4
        assert [set_cookies(response) for response in refused] == [{}] * 4
        assert [public.status_code, health.status_code] == [200, 200]
        assert (health.json()["status"], health.json()["database"]) == ("degraded", "down")
        assert health.json()["bound"] == "60 s"
        until(lambda: client.get("/me").status_code == 200, "the outage to end")
        assert server.leaks() == []


def test_a_failed_authentication_clears_no_cookie(server: Server) -> None:
    """Its answer could arrive after another tab's sign-in and wipe it."""
    with server.client() as client, server.client() as thief:
        sign_in(client)
        thief.cookies.update(dict(client.cookies))
        client.post("/logout")
        response = thief.get("/me")
    assert response.status_code == 401
    assert set_cookies(response) == {}


@contextmanager
def taken_away(dsn: str) -> Iterator[None]:
    """Meanwhile refuse connections to a database, and end the open ones."""
    base, _, name = dsn.rpartition("/")
    admin = f"{base}/postgres"
    end = "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1"
    allow = f"alter database {name} with allow_connections"
    asyncio.run(execute(admin, f"{allow} false"))
    asyncio.run(execute(admin, end, name))
    try:
        yield
    finally:
        asyncio.run(execute(admin, f"{allow} true"))


def test_openapi_shows_how_me_is_secured(start: Start) -> None:
    """FastAPI's document lists the session cookie as the scheme of /me."""
    server = start(Example("fastapi"), HANDSTAMP_INSECURE_COOKIES="1")
    with server.client() as client:
        document = client.get("/openapi.json").json()
    [requirement] = document["paths"]["/me"]["get"]["security"]
    [name] = requirement
    scheme = document["components"]["securitySchemes"][name]
    assert (scheme["type"], scheme["in"]) == ("apiKey", "cookie")
    assert "security" not in document["paths"]["/public"]["get"]
