"""What pages of other sites can do in a real browser: nothing to a session of ours.

The application is on ``localhost``. To it, a page on ``127.0.0.1`` is of another site, and
one on another port of ``localhost`` is of a sibling, which gets the SameSite cookies too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import uvicorn
from flask import Flask
from flask_sock import Sock
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from werkzeug.serving import make_server

from handstamp import Sessions, blocking
from handstamp.config import Cookies
from handstamp.flask import SessionAuth
from handstamp.flask import session_auth as flask_auth
from handstamp.starlette import session_auth, wrap
from tests.examples.servers import free_port, until
from tests.support.chromium import Tab, find_chromium, open_tab
from tests.support.engines import SECRET
from tests.support.wsgi import new_user

Serving = Callable[[str, str], AbstractContextManager[str]]
CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]

PAGE = """<!doctype html><title>elsewhere</title>
<form id="form" method="post" action="{target}"></form>
<form id="detour" method="post" action="/detour?{target}"></form>
<iframe sandbox="allow-scripts allow-forms allow-top-navigation" srcdoc='
  <form method="post" action="{target}" target="_top"></form>
  <script>onmessage = () => document.forms[0].submit()</script>'></iframe>
<a id="link" href="{target}">win a prize</a>
<script>
  const done = () => {{ document.title = "done" }}
  const frame = document.querySelector("iframe").contentWindow
  const options = {{method: "POST", mode: "no-cors", credentials: "include"}}
  const socket = () => new WebSocket("{target}".replace("http", "ws"))
  const attacks = {{
    form: () => document.getElementById("form").submit(),
    detour: () => document.getElementById("detour").submit(),
    sandbox: () => frame.postMessage("go", "*"),
    link: () => document.getElementById("link").click(),
    fetch: () => fetch("{target}", options).then(done, done),
    image: () => {{
      const image = new Image()
      image.onerror = image.onload = done
      image.src = "{target}"
    }},
    socket: () => {{
      const s = socket()
      s.onmessage = message => {{ document.title = "received " + message.data }}
      s.onclose = () => {{ if (document.title == "elsewhere") done() }}
    }},
  }}
</script>"""
AWAY = ["form", "detour", "sandbox", "link"]
"""What takes the tab to the application; the rest stays on its page."""


class Elsewhere(BaseHTTPRequestHandler):
    """The other site: ``/?<target>`` is a page with all its attacks on one address."""

    def do_GET(self) -> None:
        target = self.path.partition("?")[2]
        self._answer(200, PAGE.format(target=target).encode())

    def do_POST(self) -> None:
        self._answer(307, b"", Location=self.path.partition("?")[2])

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "text/html", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing: the tests read what the browser shows."""


CALLBACK = """<!doctype html><title>signing in</title>
<form method="post" action="/login"></form><script>document.forms[0].submit()</script>"""
OPTIONS: dict[str, Any] = {"cookies": Cookies.insecure()}


def starlette_site(sessions: Sessions, user: str) -> Any:
    """An application that has never thought of other sites, and logs out on GET too."""

    async def login(request: Request) -> Response:
        return PlainTextResponse((await session_auth(request).login(user)).user_id)

    async def logout(request: Request) -> Response:
        await session_auth(request).logout()
        return PlainTextResponse("logged out")

    async def me(request: Request) -> Response:
        return PlainTextResponse(session_auth(request).user_id or "anonymous")

    async def callback(request: Request) -> Response:
        return HTMLResponse(CALLBACK)

    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(session_auth(websocket).user_id or "anonymous")
        await websocket.receive()  # until the page has gone

    both = ["GET", "POST"]
    routes: list[Any] = [
        Route("/login", login, methods=both),
        Route("/logout", logout, methods=both),
        Route("/me", me),
        Route("/callback", callback),
        WebSocketRoute("/ws", socket),
    ]
    return wrap(Starlette(routes=routes), sessions, **OPTIONS)


def flask_site(sessions: Sessions, user: str) -> Flask:
    """The same under WSGI, with flask-sock."""
    app = Flask(__name__)
    SessionAuth(app, sessions, **OPTIONS)
    both = ["GET", "POST"]

    @app.route("/login", methods=both)
    def login() -> str:
        return flask_auth.login(user).user_id

    @app.route("/logout", methods=both)
    def logout() -> str:
        flask_auth.logout()
        return "logged out"

    @app.get("/me")
    def me() -> str:
        return flask_auth.user_id or "anonymous"

    @app.get("/callback")
    def callback() -> str:
        return CALLBACK

    @Sock(app).route("/ws")
    def socket(ws: Any) -> None:
        ws.send(flask_auth.user_id or "anonymous")
        ws.receive()  # until the page has gone

    return app


@contextmanager
def asgi(dsn: str, user: str) -> Iterator[str]:
    """Starlette under uvicorn."""
    port = free_port()
    app = starlette_site(Sessions(dsn, secret=SECRET), user)
    config = uvicorn.Config(app, host="localhost", port=port, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive(), "uvicorn")
        yield f"http://localhost:{port}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def wsgi(dsn: str, user: str) -> Iterator[str]:
    """Flask under Werkzeug's server."""
    sessions = Sessions(dsn, secret=SECRET)
    server = make_server("localhost", 0, flask_site(sessions, user), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://localhost:{server.port}"
    finally:
        server.shutdown()
        thread.join()
        blocking.call(sessions.close)


@pytest.fixture(params=[asgi, wsgi], scope="module")
def serving(request: pytest.FixtureRequest) -> Serving:
    """How the application is served: by either transport."""
    return request.param


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """The tab of a browser with a profile of its own."""
    assert CHROMIUM is not None
    with open_tab(CHROMIUM, tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[int]:
    """The port of the other site."""
    server = ThreadingHTTPServer(("localhost", 0), Elsewhere)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def site(serving: Serving, dsn: str) -> Iterator[tuple[str, str]]:
    """Where the application is, and its user."""
    user = new_user(dsn)
    with serving(dsn, user) as url:
        yield url, user


def shown(tab: Tab, url: str) -> str:
    """The text of a page."""
    tab.open(url)
    text: str = tab.run("document.body.innerText")
    return text


def attack(tab: Tab, page: str, name: str, target: str) -> str:
    """Let a page of another site do one thing; what the tab shows then."""
    tab.open(f"{page}/?{target}")
    tab.run(f"void setTimeout(attacks.{name})")
    if name in AWAY:
        tab.wait_for(
            f"location.href.startsWith({target!r}) && document.readyState === 'complete'"
        )
        return str(tab.run("document.body.innerText"))
    tab.wait_for("document.title !== 'elsewhere'")
    return str(tab.run("document.title"))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"], ids=["another", "sibling"])
def test_pages_of_other_sites_log_no_user_out_in_a_browser(
    host: str, tab: Tab, elsewhere: int, site: tuple[str, str]
) -> None:
    """By no form, link, frame, fetch or image; nor do they open a socket, or log in."""
    url, user = site
    page = f"http://{host}:{elsewhere}"
    for name in [*AWAY, "fetch", "image"]:
        assert "refused" in attack(tab, page, "form", f"{url}/login")
        assert shown(tab, f"{url}/me") == "anonymous"
        assert shown(tab, f"{url}/login") == user  # typed in: no page of another site
        shown_text = attack(tab, page, name, f"{url}/logout")
        assert ("refused" in shown_text) == (name in AWAY)
        assert shown(tab, f"{url}/me") == user, name
        # Only the sibling's handshake has our cookies, and that is refused.
        received = "done" if host == "localhost" else "received anonymous"
        assert attack(tab, page, "socket", f"{url}/ws") == received
        assert shown(tab, f"{url}/logout") == "logged out"
        assert shown(tab, f"{url}/me") == "anonymous"


def test_a_sign_in_comes_back_from_another_site_in_a_browser(
    tab: Tab, elsewhere: int, site: tuple[str, str]
) -> None:
    """From an identity provider: a callback that logs in at once is refused, and one that
    answers with a page which posts is our own page."""
    url, user = site
    provider = f"http://127.0.0.1:{elsewhere}"
    assert "refused" in attack(tab, provider, "link", f"{url}/login")
    tab.open(f"{provider}/?{url}/callback")
    tab.run("void setTimeout(attacks.link)")
    tab.wait_for(f"location.href === '{url}/login' && document.readyState === 'complete'")
    assert tab.run("document.body.innerText") == user
    assert shown(tab, f"{url}/me") == user


def test_our_own_page_does_all_of_it_in_a_browser(tab: Tab, site: tuple[str, str]) -> None:
    """Its form logs out, and its socket has the user."""
    url, user = site
    shown(tab, f"{url}/me")
    post = "fetch({!r}, {{method: 'POST'}}).then(answer => answer.text())".format
    assert tab.run(post("/login")) == user
    received = tab.run(
        "new Promise(received => {"
        " const socket = new WebSocket(location.origin.replace('http', 'ws') + '/ws');"
        " socket.onmessage = message => { received(message.data); socket.close() };"
        " socket.onclose = closed => received(`closed by ${closed.code}`) })"
    )
    assert received == user
    assert tab.run(post("/logout")) == "logged out"
    assert tab.run(post("/logout")) == "logged out"
    assert shown(tab, f"{url}/me") == "anonymous"
