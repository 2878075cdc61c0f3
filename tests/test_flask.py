"""Flask: `current_session`, `login_required`, signals, its own handlers and its own 503.

By number where the catalogue of attacks has one.
"""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import flask
import pytest
from flask import Blueprint, Flask, jsonify, render_template_string, request
from flask.testing import FlaskClient
from flask.views import MethodView
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

from handstamp import (
    AuthenticationRequired,
    ConfigError,
    Cookies,
    FreshLoginRequired,
    HandstampError,
    MemoryStore,
    Policy,
    Sessions,
    SessionsUnavailable,
)
from handstamp.blocking import call
from handstamp.core.models import Session
from handstamp.events import Refreshed
from handstamp.flask import (
    SessionAuth,
    current_session,
    current_user,
    fresh_login_required,
    login_required,
    session_auth,
    session_revoked,
    user_logged_in,
    user_logged_out,
)
from tests.support.engines import SECRET, Engine, listening

NAMES = ["__Host-session", "__Host-refresh"]
PAGE = "{% if current_session %}{{ current_session.user_id }}{% else %}nobody{% endif %}"
DOCS = Path(__file__).parents[1] / "docs" / "flask.md"


views = Blueprint("site", __name__)


@views.post("/login")
def sign_in() -> tuple[str, int]:
    session_auth.login(request.args.get("user", "alice"), remember=True)
    return "", 204


@views.post("/logout")
def sign_out() -> tuple[str, int]:
    session_auth.logout()
    return "", 204


@views.get("/me")
@login_required
def me() -> str:
    return current_session.user_id


@views.get("/async-me")
@login_required
async def async_me() -> str:
    return current_session.user_id


@views.post("/async-login")
async def async_login() -> str:
    return session_auth.login("alice").user_id


@views.get("/maybe")
def maybe() -> dict[str, Any]:
    return {"user_id": current_session.user_id if current_session else None}


@views.get("/unguarded")
def unguarded() -> str:
    return current_session.user_id


@views.get("/required")
def required() -> str:
    return session_auth.require().user_id


@views.get("/page")
def page() -> str:
    return render_template_string(PAGE + "|{{ current_session.user_id }}")


@views.get("/fresh")
@fresh_login_required(within=timedelta(minutes=5))
def fresh() -> str:
    return current_session.user_id


@views.get("/devices")
def devices() -> list[str]:
    return [s.id for s in session_auth.list_sessions() if not s.current]


@views.post("/revoke/<id>")
def revoke(id: str) -> dict[str, bool]:
    return {"ended": session_auth.revoke(id)}


@views.post("/revoke-others")
def revoke_others() -> dict[str, int]:
    return {"ended": session_auth.revoke_others()}


@views.get("/stream")
def stream() -> flask.Response:
    def parts() -> Iterator[str]:
        yield "a"
        yield current_session.user_id

    return flask.Response(flask.stream_with_context(parts()))


@views.get("/public")
def public() -> str:
    return "hello"


@views.get("/broken")
def broken() -> str:
    raise ValueError


def site(**config: Any) -> Flask:
    """An application that is not wrapped yet."""
    app = Flask(__name__)
    app.config.update(config)
    app.register_blueprint(views)
    return app


@pytest.fixture
def engine() -> Iterator[Engine]:
    """An engine on a store in memory, opened on the loop that WSGI uses."""
    engine = Engine()
    yield engine
    call(engine.sessions.close)


@pytest.fixture
def app(engine: Engine) -> Flask:
    """The application, wrapped."""
    app = site()
    SessionAuth(app, engine.sessions)
    return app


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """A browser."""
    return app.test_client()


def cookies(client: FlaskClient) -> dict[str, str]:
    """The cookies of ours that a browser holds."""
    found = {name: client.get_cookie(name) for name in NAMES}
    return {name: cookie.value for name, cookie in found.items() if cookie}


def login(client: FlaskClient, user: str = "alice") -> None:
    """Sign in, which must succeed."""
    assert client.post(f"/login?user={user}").status_code == 204


def sessions_of(engine: Engine, user: str = "alice") -> list[str]:
    """The ids of a user's live sessions."""
    return [session.id for session in call(engine.sessions.list_for_user, user)]


def test_a_user_logs_in_and_out(client: FlaskClient) -> None:
    """`current_session` follows."""
    assert client.get("/maybe").json == {"user_id": None}
    login(client)
    assert sorted(cookies(client)) == sorted(NAMES)
    assert client.get("/maybe").json == {"user_id": "alice"}
    assert client.post("/logout").status_code == 204
    assert cookies(client) == {}
    assert client.get("/maybe").json == {"user_id": None}


@pytest.mark.parametrize("path", ["/me", "/async-me", "/unguarded", "/required", "/fresh"])
def test_a_view_for_users_is_a_401_for_everybody_else(
    client: FlaskClient, path: str
) -> None:
    """By decorator, on a sync and on an async view, or by just reading an attribute."""
    response = client.get(path)
    assert (response.status_code, "sign in first" in response.text) == (401, True)
    login(client)
    assert (client.get(path).status_code, client.get(path).text) == (200, "alice")


def test_an_async_view_logs_in_without_await(client: FlaskClient) -> None:
    """The methods are plain functions, also in async views."""
    assert client.post("/async-login").text == "alice"
    assert client.get("/me").text == "alice"


def test_a_class_based_view_is_protected_by_its_decorators(
    app: Flask, client: FlaskClient
) -> None:
    """As Flask documents it."""

    class Profile(MethodView):
        decorators = (login_required,)

        def get(self) -> str:
            return current_session.user_id

    app.add_url_rule("/profile", view_func=Profile.as_view("profile"))
    assert client.get("/profile").status_code == 401
    login(client)
    assert client.get("/profile").text == "alice"


def test_a_blueprint_is_protected_as_a_whole(app: Flask, client: FlaskClient) -> None:
    """By a function before each of its requests."""
    members = Blueprint("members", __name__)
    members.before_request(login_required(lambda: None))
    members.add_url_rule("/club", view_func=lambda: "welcome")
    app.register_blueprint(members)
    assert client.get("/club").status_code == 401
    login(client)
    assert client.get("/club").text == "welcome"


def test_options_is_no_way_around_login_required(app: Flask, client: FlaskClient) -> None:
    """A view that answers OPTIONS itself answers it only with a session."""
    view = login_required(lambda: "secret")
    app.add_url_rule("/both", "both", view, methods=["GET", "OPTIONS"])
    assert client.options("/both").status_code == 401
    assert client.options("/me").status_code == 200


def test_fresh_login_required_counts_from_the_sign_in(
    client: FlaskClient, engine: Engine
) -> None:
    """A refresh is none."""
    login(client)
    assert client.get("/fresh").status_code == 200
    engine.clock.advance(engine.policy.session_ttl)
    response = client.get("/fresh")
    assert (response.status_code, "sign in again" in response.text) == (401, True)
    assert len(engine.of(Refreshed)) == 1
    assert client.get("/me").status_code == 200
    login(client)
    assert client.get("/fresh").status_code == 200


def test_a_guarded_view_keeps_its_name(app: Flask) -> None:
    """Flask makes the endpoint of it."""
    assert {"site.me", "site.async_me", "site.fresh"} <= app.view_functions.keys()


def test_a_missing_session_has_no_attributes(app: Flask, client: FlaskClient) -> None:
    """Neither is there one to be found, nor a default to be lost."""

    @app.get("/nobody")
    def nobody() -> list[Any]:
        default = getattr(current_session, "user_id", "default")
        return [bool(current_session), hasattr(current_session, "user_id"), default]

    assert client.get("/nobody").json == [False, False, "default"]
    login(client)
    assert client.get("/nobody").json == [True, True, "alice"]


def test_a_template_knows_the_session(client: FlaskClient) -> None:
    """And an attribute of a missing session shows nothing."""
    assert client.get("/page").text == "nobody|"
    login(client)
    assert client.get("/page").text == "alice|alice"


def test_a_stream_may_ask_while_it_is_made(client: FlaskClient) -> None:
    """With the request's context kept, as Flask documents it."""
    login(client)
    assert client.get("/stream").text == "aalice"


def test_a_user_lists_and_revokes_their_sessions(app: Flask) -> None:
    """One, then all others, and never another user's."""
    phone, laptop, tablet, bob = (app.test_client() for _ in range(4))
    for client in (phone, laptop, tablet):
        login(client)
    login(bob, "bob")
    ids = laptop.get("/devices").json
    assert ids is not None
    assert len(ids) == 2
    assert bob.post(f"/revoke/{ids[0]}").json == {"ended": False}
    assert laptop.post(f"/revoke/{ids[0]}").json == {"ended": True}
    assert laptop.post("/revoke-others").json == {"ended": 1}
    statuses = [c.get("/me").status_code for c in (phone, tablet, laptop, bob)]
    assert statuses == [401, 401, 200, 200]


@pytest.mark.parametrize("path", ["/devices", "/revoke/x", "/revoke-others"])
def test_what_needs_a_user_is_a_401_without_one(client: FlaskClient, path: str) -> None:
    """Without a decorator too."""
    send = client.get if path == "/devices" else client.post
    assert send(path).status_code == 401


def test_signals_are_sent_by_the_application(app: Flask, engine: Engine) -> None:
    """In the request, once for each thing that happened and not otherwise."""
    told: list[tuple[str, dict[str, Any]]] = []

    def note(name: str) -> Any:
        def receive(sender: Flask, **facts: Any) -> None:
            assert request.path  # in the request
            told.append((name, facts))

        return receive

    signals = (user_logged_in, user_logged_out, session_revoked)
    notes = [note(signal.name) for signal in signals]
    for signal, receiver in zip(signals, notes, strict=True):
        signal.connect(receiver, app)
    client, other = app.test_client(), app.test_client()
    client.post("/logout")
    login(other)
    [other_id] = sessions_of(engine)
    login(client)
    client.post("/revoke/unknown")
    client.post(f"/revoke/{other_id}")
    login(other)
    client.post("/revoke-others")
    client.post("/revoke-others")
    client.post("/logout")
    assert [name for name, _ in told] == [
        *("user-logged-in", "user-logged-in", "session-revoked", "user-logged-in"),
        *("session-revoked", "user-logged-out"),
    ]
    facts = [facts for _, facts in told]
    assert facts[0]["session"].id == other_id
    assert facts[2] == {"user_id": "alice", "session_id": other_id, "count": 1}
    assert facts[4] == {"user_id": "alice", "session_id": None, "count": 1}
    assert facts[5]["session"].id == facts[1]["session"].id


def test_a_sign_out_on_an_excluded_path_is_told(engine: Engine) -> None:
    """Nobody was signed in there, and the session of the browser ended all the same."""
    app = site()
    SessionAuth(app, engine.sessions, exclude=["/logout"])
    told: list[Session] = []

    def receive(sender: Flask, session: Session, **facts: Any) -> None:
        told.append(session)

    user_logged_out.connect(receive, app)
    client = app.test_client()
    login(client)
    [known] = sessions_of(engine)
    for _ in range(2):
        assert client.post("/logout").status_code == 204
    assert [session.id for session in told] == [known]


def test_a_failed_logout_sends_no_signal(app: Flask, engine: Engine) -> None:
    """No signal tells what an outage prevented."""
    told: list[Any] = []

    def receive(sender: Flask, **facts: Any) -> None:
        told.append(facts)

    user_logged_out.connect(receive, app)
    client = app.test_client()
    login(client)
    call(listening, engine)
    assert client.get("/me").status_code == 200
    engine.store.down = True  # and the cache knows whose session it is
    assert client.get("/me").status_code == 200
    assert client.post("/logout").status_code == 503
    engine.store.down = False
    assert told == []
    assert client.get("/me").status_code == 200


class People:
    """An application's own users, which counts how often one is loaded."""

    def __init__(self, *names: str) -> None:
        self.names = set(names)
        self.loaded: list[str] = []

    def find(self, user_id: str) -> dict[str, str] | None:
        self.loaded.append(user_id)
        return {"name": user_id.title()} if user_id in self.names else None


def with_people(app: Flask, engine: Engine, people: People) -> SessionAuth:
    """Wrap with a loader, and add views that read the user."""
    auth = SessionAuth(app, engine.sessions)
    auth.user_loader(people.find)

    @app.get("/name")
    def name() -> list[str]:
        return [current_user["name"], current_user["name"]]

    @app.get("/is-there")
    def is_there() -> list[bool]:
        return [bool(current_user), bool(current_session)]

    @app.get("/attribute")
    @login_required
    def attribute() -> str:
        return str(current_user.items())

    @app.get("/user-page")
    def user_page() -> str:
        return render_template_string("{{ current_user.name }}")

    @app.post("/become")
    def become() -> list[str]:
        before = current_user["name"]
        session_auth.login("bob")
        return [before, current_user["name"]]

    return auth


def test_the_user_is_loaded_when_asked_and_once(engine: Engine) -> None:
    """Views that do not read the user cost nothing."""
    app, people = site(), People("alice")
    with_people(app, engine, people)
    client = app.test_client()
    login(client)
    assert client.get("/me").status_code == 200
    assert people.loaded == []
    assert client.get("/name").json == ["Alice", "Alice"]
    assert people.loaded == ["alice"]
    assert client.get("/user-page").text == "Alice"


def test_the_user_changes_with_the_session(engine: Engine) -> None:
    """Within one request."""
    app = site()
    with_people(app, engine, People("alice", "bob"))
    client = app.test_client()
    login(client)
    assert client.post("/become").json == ["Alice", "Bob"]


def test_a_user_who_does_not_exist_any_more_is_anonymous(engine: Engine) -> None:
    """False, and reading an attribute is a 401, as without a session."""
    app = site()
    with_people(app, engine, People())
    client = app.test_client()
    assert client.get("/is-there").json == [False, False]
    assert client.get("/attribute").status_code == 401
    login(client)
    assert client.get("/is-there").json == [False, True]
    assert client.get("/attribute").status_code == 401
    assert client.get("/user-page").text == ""


def test_an_async_loader_works_too(engine: Engine) -> None:
    """Flask runs it as it runs an async view."""
    app = site()
    auth = with_people(app, engine, People())

    @auth.user_loader
    async def load(user_id: str) -> dict[str, str]:
        return {"name": "async " + user_id}

    client = app.test_client()
    login(client)
    assert client.get("/name").json == ["async alice"] * 2


def test_c147_requests_inside_of_one_application_context_are_two_users(
    engine: Engine,
) -> None:
    """`flask.g` is shared there, and the user is not."""
    app = site()
    with_people(app, engine, People("alice", "bob"))
    alice, bob = app.test_client(), app.test_client()
    login(alice)
    login(bob, "bob")
    with app.app_context():
        names = [client.get("/name").json for client in (alice, bob, alice)]
    assert names == [["Alice"] * 2, ["Bob"] * 2, ["Alice"] * 2]


def test_without_a_loader_there_is_no_user(app: Flask) -> None:
    """And no error of the client's."""
    app.testing = True
    app.add_url_rule("/user", view_func=lambda: current_user.name)
    client = app.test_client()
    login(client)
    with pytest.raises(ConfigError, match="user_loader"):
        client.get("/user")


ASKING = ["/me", "/async-me", "/maybe", "/unguarded", "/required", "/fresh", "/page"]


@pytest.mark.parametrize("path", ASKING)
def test_p5_asking_in_an_outage_is_a_503(
    client: FlaskClient, engine: Engine, path: str
) -> None:
    """With Retry-After, however the session is read, and the cookies are not changed."""
    login(client)
    before = cookies(client)
    engine.clock.advance(engine.policy.session_ttl)
    engine.store.down = True
    response = client.get(path)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert "set-cookie" not in response.headers
    assert cookies(client) == before
    engine.store.down = False
    assert client.get(path).status_code in (200, 401)


def test_p5_not_asking_in_an_outage_is_a_200(client: FlaskClient, engine: Engine) -> None:
    """And no user is logged out."""
    login(client)
    engine.clock.advance(engine.policy.session_ttl)
    engine.store.down = True
    response = client.get("/public")
    assert (response.status_code, "set-cookie" in response.headers) == (200, False)
    engine.store.down = False
    assert client.get("/me").status_code == 200


def test_c102_public_pages_stay_cacheable(client: FlaskClient) -> None:
    """Without our cookies, a page that does not read the session has no Vary."""
    assert "vary" not in client.get("/public").headers
    assert client.get("/maybe").headers["vary"] == "Cookie"
    assert client.get("/page").headers["vary"] == "Cookie"
    login(client)
    assert client.get("/public").headers["vary"] == "Cookie"


def test_c157_a_cookie_leaves_with_an_unhandled_error(
    client: FlaskClient, engine: Engine
) -> None:
    """Flask's own 500 has the new cookies of the request."""
    login(client)
    before = cookies(client)
    engine.clock.advance(engine.policy.session_ttl)
    response = client.get("/broken")
    assert response.status_code == 500
    assert cookies(client).keys() == before.keys()
    assert all(cookies(client)[name] != before[name] for name in NAMES)
    assert client.get("/me").text == "alice"


def test_a_write_from_another_site_is_refused(client: FlaskClient) -> None:
    """With our cookies by the middleware, without them by the view; the test client sees no
    exception."""
    foreign = {"Sec-Fetch-Site": "cross-site"}
    response = client.post("/logout", headers=foreign)
    assert (response.status_code, response.headers.getlist("Set-Cookie")) == (403, [])
    login(client)
    assert client.post("/logout", headers=foreign).status_code == 403
    assert client.get("/me").status_code == 200


def test_the_application_s_own_401_page_answers(app: Flask, client: FlaskClient) -> None:
    """A handler of the status is called, as for `abort(401)`."""

    @app.errorhandler(401)
    def mine(error: Any) -> tuple[str, int]:
        return f"mine: {error.description}", 401

    assert client.get("/me").text == "mine: sign in first"


def test_a_handler_of_all_http_errors_answers(app: Flask, client: FlaskClient) -> None:
    """The way Flask documents for JSON keeps status and Retry-After."""

    @app.errorhandler(HTTPException)
    def as_json(error: Any) -> Any:
        response = error.get_response()
        response.data = flask.json.dumps({"error": error.name})
        response.content_type = "application/json"
        return response

    assert client.get("/me").json == {"error": "Unauthorized"}


@pytest.mark.parametrize("kind", [AuthenticationRequired, HandstampError])
@pytest.mark.parametrize("early", [True, False])
def test_a_handler_of_the_error_itself_wins(
    engine: Engine, kind: type[Exception], early: bool
) -> None:
    """Whether it was there before the extension or came after it."""
    app = site()
    if not early:
        SessionAuth(app, engine.sessions)
    app.register_error_handler(kind, lambda error: ("mine", 418))
    if early:
        SessionAuth(app, engine.sessions)
    assert app.test_client().get("/me").status_code == 418


def test_a_stale_sign_in_may_have_its_own_answer(
    app: Flask, client: FlaskClient, engine: Engine
) -> None:
    """`FreshLoginRequired` has a handler of its own."""
    app.register_error_handler(FreshLoginRequired, lambda error: ("again", 401))
    assert client.get("/fresh").text != "again"
    login(client)
    engine.clock.advance(timedelta(minutes=6))
    assert client.get("/fresh").text == "again"


def test_a_blueprint_answers_for_itself(app: Flask, client: FlaskClient) -> None:
    """Its handler is for its own views only."""
    club = Blueprint("club", __name__)
    club.add_url_rule("/club", view_func=login_required(lambda: "in"))
    club.register_error_handler(401, lambda error: ("members only", 401))
    app.register_blueprint(club)
    assert client.get("/club").text == "members only"
    assert client.get("/me").text != "members only"


def test_a_503_of_the_application_s_own(
    app: Flask, client: FlaskClient, engine: Engine
) -> None:
    """It knows when to try again."""

    @app.errorhandler(SessionsUnavailable)
    def busy(error: SessionsUnavailable) -> Any:
        return jsonify(again=error.retry_after), 503

    login(client)
    engine.clock.advance(engine.policy.session_ttl)
    engine.store.down = True
    assert client.get("/me").json == {"again": 1}
    engine.store.down = False


def test_an_operator_s_error_is_a_500_and_a_log_line(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """The client learns nothing of it."""
    app = site()
    SessionAuth(app, engine.sessions, cookies=Cookies.insecure())
    response = app.test_client().post("/login", base_url="http://app.example.com")
    assert (response.status_code, "https" in response.text) == (500, False)
    assert "cookies without Secure are for" in caplog.text


def test_c156_flask_s_own_session_stays_its_own(engine: Engine) -> None:
    """Its cookie, its flashes and its test helper work beside ours."""
    app = site(SECRET_KEY="of flask")
    SessionAuth(app, engine.sessions)

    @app.get("/count")
    def count() -> list[Any]:
        flask.session["n"] = flask.session.get("n", 0) + 1
        flask.flash("seen")
        return [flask.session["n"], current_session.user_id]

    client = app.test_client()
    login(client)
    assert [client.get("/count").json for _ in range(2)] == [[1, "alice"], [2, "alice"]]
    with client.session_transaction() as session:
        assert (session["n"], len(session["_flashes"])) == (2, 2)
        session["n"] = 10
    assert client.get("/count").json == [11, "alice"]
    client.post("/logout")
    assert client.get_cookie("session") is not None
    login(client)
    assert client.get("/count").json == [12, "alice"]


def test_flask_s_session_gets_no_cookie_of_ours(engine: Engine) -> None:
    """One name for two cookies is refused, whichever is configured first."""
    insecure = Cookies.insecure()
    with pytest.raises(ConfigError, match="SESSION_COOKIE_NAME"):
        SessionAuth(site(SECRET_KEY="of flask"), engine.sessions, cookies=insecure)
    late = site(TESTING=True)
    SessionAuth(late, engine.sessions, cookies=insecure)
    late.secret_key = "of flask"
    with pytest.raises(ConfigError, match="SESSION_COOKIE_NAME"):
        late.test_client().post("/login")
    named = site(SECRET_KEY="of flask", SESSION_COOKIE_NAME="flask")
    SessionAuth(named, engine.sessions, cookies=insecure)
    client = named.test_client()
    login(client)
    assert client.get_cookie("session") is not None


def test_one_extension_serves_two_applications(engine: Engine) -> None:
    """Each with its own sessions."""
    other = Engine()
    auth = SessionAuth(outage="refuse")
    one, two = site(), site()
    auth.init_app(one, engine.sessions)
    auth.init_app(two, other.sessions)
    assert one.extensions["handstamp"].sessions is engine.sessions
    assert two.extensions["handstamp"].sessions is other.sessions
    login(one.test_client())
    assert (len(engine.store.rows), len(other.store.rows)) == (1, 0)
    call(other.sessions.close)


def test_one_application_takes_one_extension(app: Flask, engine: Engine) -> None:
    """A second one is a mistake, and the error explains it."""
    with pytest.raises(ConfigError, match="already"):
        SessionAuth(app, engine.sessions)


def test_a_mounted_application_knows_the_session(app: Flask, client: FlaskClient) -> None:
    """Of the one that is wrapped around it."""
    inner = Flask("inner")
    inner.add_url_rule("/who", view_func=lambda: current_session.user_id)
    app.wsgi_app.app = DispatcherMiddleware(app.wsgi_app.app, {"/inner": inner})
    login(client)
    assert client.get("/inner/who").text == "alice"


def test_a_proxy_s_word_is_taken_through_werkzeug_s_own_fix(
    app: Flask, client: FlaskClient, engine: Engine
) -> None:
    """ProxyFix around the wrapped application decides what the client's address is."""
    app.wsgi_app = ProxyFix(app.wsgi_app)
    client.post("/login", headers={"X-Forwarded-For": "198.51.100.7"})
    [row] = engine.store.rows.values()
    assert row.address == "198.51.100.7"


def test_a_test_request_context_has_no_session(app: Flask) -> None:
    """There was no request: the session can be read, but not be changed."""
    with app.test_request_context("/"):
        assert not current_session
        with pytest.raises(AuthenticationRequired):
            _ = current_session.user_id
        with pytest.raises(ConfigError, match="test_client"):
            session_auth.login("alice")


def test_without_the_extension_the_error_says_what_to_do() -> None:
    """And is no error of the client's."""
    app = site(TESTING=True)
    for path in ("/me", "/maybe"):
        with pytest.raises(ConfigError, match=r"SessionAuth\(app\)"):
            app.test_client().get(path)


def test_outside_of_a_request_there_is_nothing_to_ask() -> None:
    """Flask's own error, and a false session."""
    assert not current_session
    with pytest.raises(RuntimeError, match="request context"):
        _ = current_session.user_id


URL = "postgresql://localhost/app"


def test_the_engine_is_made_of_the_configuration() -> None:
    """With every setting that there is."""
    policy = Policy(session_ttl=timedelta(minutes=5))
    app = site(
        HANDSTAMP_DATABASE_URL=URL,
        HANDSTAMP_SECRET=[SECRET, SECRET + " anew"],
        HANDSTAMP_POLICY=policy,
        HANDSTAMP_INSECURE_COOKIES=True,
        HANDSTAMP_TRUSTED_PROXIES=["10.0.0.0/8"],
        HANDSTAMP_OUTAGE="anonymous",
    )
    SessionAuth(app)
    options = app.wsgi_app._options
    assert options.sessions.policy is policy
    assert options.sessions is app.extensions["handstamp"].sessions
    assert options.cookies == Cookies.insecure()
    assert ("10.1.2.3" in options.proxies, options.outage) == (True, "anonymous")


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({}, "HANDSTAMP_DATABASE_URL and HANDSTAMP_SECRET"),
        ({"HANDSTAMP_DATABASE_URL": URL, "HANDSTAMP_SECRET": ""}, "set HANDSTAMP_SECRET"),
        (
            {"HANDSTAMP_SECERT": "x"},
            "no option HANDSTAMP_SECERT: did you mean HANDSTAMP_SECRET",
        ),
        ({"HANDSTAMP_TRUSTED_PROXIES": "here"}, "trusted proxy"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_work_is_refused(
    config: dict[str, Any], problem: str
) -> None:
    """At start, by its name."""
    with pytest.raises(ConfigError, match=problem):
        SessionAuth(site(**config))


def test_what_is_given_in_code_wins(engine: Engine) -> None:
    """Over the configuration, and at `init_app` over the constructor."""
    app = site(HANDSTAMP_OUTAGE="refuse", HANDSTAMP_DATABASE_URL=URL)
    auth = SessionAuth(sessions=Engine().sessions, outage="refuse")
    auth.init_app(app, engine.sessions, outage="anonymous")
    assert app.wsgi_app._options.outage == "anonymous"
    assert app.wsgi_app._options.sessions is engine.sessions


def test_an_operator_lists_and_ends_sessions(app: Flask, engine: Engine) -> None:
    """With `flask handstamp`, and sees no token and no whole address."""
    client = app.test_client()
    login(client)
    login(app.test_client())
    login(app.test_client(), "bob")
    run = app.test_cli_runner().invoke
    lines = run(args=["handstamp", "list", "alice"]).output.splitlines()
    assert {line.split()[0] for line in lines} == set(sessions_of(engine))
    assert all("127.0.…" in line and "127.0.0.1" not in line for line in lines)
    one = sessions_of(engine)[0]
    assert run(args=["handstamp", "revoke", one]).output == "ended\n"
    again = run(args=["handstamp", "revoke", one])
    assert (again.exit_code, "no live session" in again.output) == (1, True)
    reason = ["--reason", "left the company"]
    assert run(args=["handstamp", "revoke-user", "alice", *reason]).output == "ended 1\n"
    assert {engine.row(i).revoked_reason for i in engine.store.rows} == {
        *("revoked by an operator", "left the company", None)
    }
    assert client.get("/me").status_code == 401
    assert len(sessions_of(engine, "bob")) == 1


def test_an_operator_prunes(app: Flask, client: FlaskClient, engine: Engine) -> None:
    """What died longer ago than the policy keeps it."""
    login(client)
    client.post("/logout")
    engine.clock.advance(engine.policy.retention + timedelta(days=91))
    run = app.test_cli_runner().invoke
    assert run(args=["handstamp", "prune"]).output == "deleted 1\n"


def test_the_command_line_says_that_the_database_is_down(
    app: Flask, engine: Engine
) -> None:
    """In a line, and not in a traceback."""
    engine.store.down = True
    result = app.test_cli_runner().invoke(args=["handstamp", "list", "alice"])
    engine.store.down = False
    assert (result.exit_code, result.output.startswith("Error: sessions")) == (1, True)


ALICE = "01J9ZC3M6V2Q8W4X5Y6Z7A8B9C"
ACCOUNTS = f"""
def check_password(username, password):
    right = (username, password) == ("alice", "wonderland")
    return "{ALICE}" if right else None
"""


def diff_in_the_docs() -> list[str]:
    """The lines of the diff that docs/flask.md shows, which has the whole application."""
    [text] = re.findall(r"```diff\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    return text.splitlines()


def version(sign: str) -> str:
    """The application with the lines of one sign: "-" before the diff, "+" after it."""
    lines = diff_in_the_docs()
    assert {line[:1] for line in lines} <= {"", " ", "+", "-"}
    return "\n".join(line[1:] for line in lines if line[:1] in ("", " ", sign))


@pytest.fixture
def folder(tmp_path: Path, dsn: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the application of the documentation finds what it needs."""
    (tmp_path / "accounts.py").write_text(ACCOUNTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("FLASK_SECRET_KEY", "of flask")
    monkeypatch.setenv("FLASK_HANDSTAMP_DATABASE_URL", dsn)
    monkeypatch.setenv("FLASK_HANDSTAMP_SECRET", SECRET)
    return tmp_path


def load(folder: Path, sign: str) -> Flask:
    """Run one version of the application's file."""
    path = folder / "app.py"
    path.write_text(version(sign))
    app = runpy.run_path(str(path))["app"]
    assert isinstance(app, Flask)
    return app


def use(client: FlaskClient) -> list[Any]:
    """What a visitor sees who signs in, looks around and signs out."""
    account = [client.get("/account").status_code]
    wrong = client.post("/login", data={"username": "alice", "password": "x"})
    right = client.post("/login", data={"username": "alice", "password": "wonderland"})
    pages = [client.get("/account").json for _ in range(2)]
    out = client.post("/logout").status_code
    after = client.get("/account").status_code
    return [*account, wrong.status_code, right.status_code, *pages, out, after]


async def test_an_existing_application_is_wrapped_in_twelve_lines(
    dsn: str, folder: Path
) -> None:
    """The one in the documentation, by its diff: before and after it a visitor sees the
    same, and after it their session can be revoked."""
    assert sum(line[:1] in ("+", "-") for line in diff_in_the_docs()) <= 12
    connection = await asyncpg.connect(dsn)
    sql = "insert into users (id, username, password_hash) values ($1, 'alice', 'x')"
    await connection.execute(sql, ALICE)
    before, after = load(folder, "-"), load(folder, "+")
    pages = [{"user_id": ALICE, "visits": n} for n in (1, 2)]
    expected = [401, 401, 204, *pages, 204, 401]
    assert use(before.test_client()) == expected
    assert use(after.test_client()) == expected
    client, form = after.test_client(), {"username": "alice", "password": "wonderland"}
    client.post("/login", data=form)
    sessions = after.extensions["handstamp"].sessions
    assert call(sessions.revoke_user, ALICE) == 1
    assert client.get("/account").status_code == 401
    reasons = await connection.fetch("select revoked_reason from user_sessions")
    assert {row[0] for row in reasons} == {"logout", "revoked"}
    await connection.close()
    call(sessions.close)


def test_a_store_in_memory_is_enough_for_the_application_s_own_tests() -> None:
    """As the documentation shows it."""
    app = site()
    sessions = Sessions(MemoryStore(), secret="x" * 32)
    SessionAuth(app, sessions)
    client = app.test_client()
    login(client)
    assert client.get("/me").status_code == 200
    call(sessions.close)
