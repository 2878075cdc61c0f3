"""Calls a WSGI application without a server: one environ in, one answer out."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any
from wsgiref.validate import validator

import asyncpg
from ulid import ULID

from handstamp.blocking import call
from handstamp.core.models import Issued
from handstamp.wsgi import ENVIRON_KEY
from tests.support.engines import Engine, listening

Environ = dict[str, Any]
App = Callable[..., Any]


@dataclass
class Answer:
    """The response of an application to one request."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    starts: int = 0

    def all(self, name: str) -> list[str]:
        """The values of one response header."""
        return [value for key, value in self.headers if key.lower() == name]

    def one(self, name: str) -> str | None:
        """The value of a response header that is there at most once."""
        values = self.all(name)
        assert len(values) <= 1, values
        return values[0] if values else None

    @property
    def cookies(self) -> dict[str, str]:
        """The values of the cookies that this response sets, by name."""
        pairs = [value.partition(";")[0].partition("=") for value in self.all("set-cookie")]
        assert len({name for name, _, _ in pairs}) == len(pairs), "one of a name"
        return {name: value for name, _, value in pairs}


def cookie(issued: Issued | None = None, **tokens: str) -> str:
    """The Cookie header of a browser with these tokens under the default names."""
    if issued is not None:
        tokens = {"session": issued.session_token, "refresh": issued.refresh_token}
    return "; ".join(f"__Host-{name}={value}" for name, value in tokens.items())


def environ(path: str = "/", *, method: str = "GET", **more: Any) -> Environ:
    """The environ of one request, by PEP 3333."""
    return {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "app.example",
        "SERVER_PORT": "443",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "198.51.100.7",
        "HTTP_HOST": "app.example",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "https",
        "wsgi.input": BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        **more,
    }


def serve(app: App, environ: Environ) -> Answer:
    """Run ``app`` as a server does. The last status before the first byte counts."""
    answer, sent = Answer(), bytearray()

    def start_response(
        status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        if answer.starts and exc_info is None:
            raise AssertionError("a second start_response without exc_info")
        if sent and exc_info is not None:
            raise exc_info[1].with_traceback(exc_info[2])
        answer.starts += 1
        answer.status, answer.headers = int(status[:3]), list(headers)
        return sent.extend

    iterable = app(environ, start_response)
    try:
        for chunk in iterable:
            sent.extend(chunk)
    finally:
        close = getattr(iterable, "close", None)
        if close is not None:
            close()
    answer.body = bytes(sent)
    return answer


def get(app: App, path: str = "/", **more: Any) -> Answer:
    """One request through the validator of the standard library."""
    return serve(validator(app), environ(path, **more))


def responding(
    status: str = "200 OK", headers: Sequence[tuple[str, str]] = (), body: bytes = b"ok"
) -> App:
    """An application with a fixed response, which does not read the session."""
    plain = [("Content-Type", "text/plain")]

    def app(environ: Environ, start_response: App) -> list[bytes]:
        start_response(status, [*headers] if status[:3] in BARE else [*plain, *headers])
        return (
            [] if status[:3] in BARE or environ.get("REQUEST_METHOD") == "HEAD" else [body]
        )

    return app


BARE = ("204", "304")
"""Statuses without a body."""


def asking(ask: App = lambda handle: handle.user_id) -> App:
    """An application that calls ``ask`` with the handle, and answers with the result."""

    def app(environ: Environ, start_response: App) -> Any:
        result = ask(environ[ENVIRON_KEY])
        return responding(body=repr(result).encode())(environ, start_response)

    return app


def rows(dsn: str, sql: str, *values: object) -> list[asyncpg.Record]:
    """The rows of a statement."""

    async def fetch() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetch(sql, *values)
        finally:
            await connection.close()

    return asyncio.run(fetch())


def new_user(dsn: str) -> str:
    """Insert a user. Returns the id."""
    user_id = str(ULID())
    sql = "insert into users (id, username, password_hash) values ($1, $2, '-')"
    rows(dsn, sql, user_id, user_id)
    return user_id


@contextmanager
def running(**options: Any) -> Iterator[Engine]:
    """An open engine on the event loop of `handstamp.blocking`, closed at the end."""
    engine = Engine(**options)
    call(engine.sessions.open)
    call(listening, engine)
    try:
        yield engine
    finally:
        engine.store.down = False
        call(engine.sessions.close)
