"""A raw WSGI application of the tests, as a server imports it.

With ``SITE_USED=1`` the process that imports it uses its sessions at once, as an
application does that asks the database something at import: the loop runs, connections
are open and activity is pending when the server forks.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from handstamp.blocking import call
from handstamp.config import Cookies, Policy
from handstamp.engine.sessions import Sessions
from handstamp.stores.notify import PostgresListenConnection
from handstamp.wsgi import ENVIRON_KEY, SessionAuthMiddleware

sessions = Sessions(
    os.environ["DATABASE_URL"],
    secret=os.environ["HANDSTAMP_SECRET"],
    policy=Policy.from_env(),
)


def held() -> dict[str, Any]:
    """Who this process is, and which connections of the database it uses."""

    async def find() -> list[int]:
        await sessions.ping()
        database: Any = sessions.store._database  # type: ignore[attr-defined]
        pool = [*database._reads._all, *database._writes._all]
        links = [
            link._connection
            for link in gc.get_objects()
            if isinstance(link, PostgresListenConnection)
        ]
        mine = [c for c in (*pool, *links) if c._loop is sessions._loop]
        return [c.get_server_pid() for c in mine if not c.is_closed()]

    return {"pid": os.getpid(), "backends": call(find), "bus": sessions.stats().listener}


def site(environ: dict[str, Any], start_response: Any) -> Any:
    """The application."""
    handle, query = environ[ENVIRON_KEY], parse_qs(environ.get("QUERY_STRING", ""))
    match environ["PATH_INFO"]:
        case "/login":
            answer: Any = handle.login(query["user"][0]).id
        case "/revoke":
            answer = handle.revoke_others()
        case "/me":
            answer = {"user": handle.require().user_id, "pid": os.getpid()}
        case "/held":
            answer = held()
        case "/stream":
            start_response("200 OK", [("Content-Type", "text/plain")])
            return stream(Path(query["gate"][0]))
        case _:
            answer = {"used": USED}
    body = json.dumps(answer).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def stream(gate: Path) -> Iterator[bytes]:
    """A first chunk at once, and the last when the gate is there."""
    yield b"first"
    while not gate.exists():
        time.sleep(0.01)
    yield b"last"


app = application = SessionAuthMiddleware(site, sessions, cookies=Cookies.insecure())


def use() -> dict[str, Any]:
    """Sign in, and be seen: one touch is pending when this returns."""
    from tests.support.wsgi import environ, serve

    issued = call(sessions.create, os.environ["SITE_USER"])
    sent = environ("/me", HTTP_COOKIE=f"session={issued.session_token}")
    assert serve(app, sent).status == 200
    while sessions.stats().listener != "listening":
        time.sleep(0.01)
    return {**held(), "session": issued.session.id}


USED = use() if os.environ.get("SITE_USED") else None

if __name__ == "__main__":
    from wsgiref.simple_server import make_server

    with make_server("127.0.0.1", int(os.environ["PORT"]), app) as server:  # type: ignore[arg-type]
        server.serve_forever()
