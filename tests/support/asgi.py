"""Calls an ASGI application without a server: one scope in, all messages out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from handstamp._connections import ASGIApp, Message, Scope

Headers = Sequence[tuple[bytes, bytes]]


@dataclass
class Answer:
    """The messages that an application sent for one request."""

    messages: list[Message] = field(default_factory=list)

    @property
    def start(self) -> Message:
        return next(m for m in self.messages if m["type"].endswith("response.start"))

    @property
    def status(self) -> int:
        status: int = self.start["status"]
        return status

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.messages)

    def all(self, name: bytes) -> list[bytes]:
        """The values of one response header."""
        return [v for k, v in self.start.get("headers", ()) if k.lower() == name]

    def one(self, name: bytes) -> bytes | None:
        """The value of a response header that is there at most once."""
        values = self.all(name)
        assert len(values) <= 1
        return values[0] if values else None

    @property
    def cookies(self) -> dict[bytes, bytes]:
        """The values of the cookies that this response sets, by name."""
        pairs = [
            value.partition(b";")[0].partition(b"=") for value in self.all(b"set-cookie")
        ]
        return {name: value for name, _, value in pairs}


def cookie_header(
    session: str | None = None, refresh: str | None = None
) -> tuple[bytes, bytes]:
    """The Cookie header of a browser that holds these tokens under the default names."""
    named = {"__Host-session": session, "__Host-refresh": refresh}
    pairs = [f"{name}={value}" for name, value in named.items() if value is not None]
    return b"cookie", "; ".join(pairs).encode()


def http_scope(
    path: str = "/",
    *,
    method: str = "GET",
    headers: Any = (),
    client: Any = ("198.51.100.7", 40_000),
    **more: Any,
) -> Scope:
    """The scope of an HTTP request, as a server makes it by the specification."""
    if isinstance(headers, tuple):
        headers = list(headers)
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "https",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": client,
        "server": ("app.example", 443),
        **more,
    }


def socket_scope(path: str = "/ws", *, headers: Any = (), **more: Any) -> Scope:
    """The scope of a WebSocket handshake."""
    scope = http_scope(path, headers=headers, **more)
    del scope["method"]
    return {**scope, "type": "websocket", "scheme": "wss", "subprotocols": []}


async def serve(app: ASGIApp, scope: Scope, incoming: Iterable[Message] = ()) -> Answer:
    """Run ``app`` to its end. After ``incoming`` the client disconnects."""
    answer, messages = Answer(), iter(incoming)
    over = "websocket.disconnect" if scope["type"] == "websocket" else "http.disconnect"

    async def receive() -> Message:
        return next(messages, {"type": over, "code": 1005})

    async def send(message: Message) -> None:
        answer.messages.append(message)

    await app(scope, receive, send)
    return answer


async def get(
    app: ASGIApp, path: str = "/", *headers: tuple[bytes, bytes], **more: Any
) -> Answer:
    """One request without a body."""
    body = [{"type": "http.request", "body": b"", "more_body": False}]
    return await serve(app, http_scope(path, headers=headers, **more), body)


def responding(status: int = 200, headers: Headers = (), body: bytes = b"ok") -> ASGIApp:
    """An application with a fixed response, which does not read the session."""

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await send(
            {"type": "http.response.start", "status": status, "headers": list(headers)}
        )
        await send({"type": "http.response.body", "body": body})

    return app
