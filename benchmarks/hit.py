"""What a cached session adds to a request, compared with the floor and with Starlette.

The floor is the least that any such middleware can do: find the Cookie header, find the
cookie in it, hash it, look it up. It is a plain function around the application, without
a coroutine of its own. Everything runs in one process without a server. Each request has
its own scope with its own header objects, made before the measurement, as a server would
make them. The time is the thread's processor time, which other programs on the machine
disturb far less than wall time; nothing here waits.

No session is read again during the measurement. How often that happens in production,
because of ``longest_trust``, is counted separately (:mod:`benchmarks.longest_trust`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from hashlib import sha256
from statistics import median
from time import thread_time_ns
from typing import Any

from starlette.middleware.sessions import SessionMiddleware

from benchmarks import longest_trust
from benchmarks.database import SECRET
from benchmarks.environment import environment
from benchmarks.listener import wait_until_listening
from benchmarks.other_shapes import CachedSession, cached_sessions
from benchmarks.report import Report, Row
from benchmarks.rounds import Options, over, ratio, turns
from handstamp._connections import ASGIApp, Message, Receive, Scope, Send
from handstamp.asgi import SCOPE_KEY, SessionAuthMiddleware
from handstamp.config import Policy
from handstamp.engine.sessions import Sessions
from handstamp.stores.memory import MemoryStore

ABOUT = "a request with a cached session, in nanoseconds"
ROUNDS, REQUESTS, FEW_REQUESTS = 201, 300, 50

# Nothing may expire or be written during the measurement: a run measures hits.
POLICY = Policy(
    session_ttl=timedelta(days=2),
    grace=timedelta(hours=12),
    flush_every=timedelta(hours=6),
    max_staleness=timedelta(days=1),
    longest_trust=timedelta(days=1),
)
USER_ID = "01JZ0000000000000000000000"
OTHER_COOKIE = "theme=dark"
_CHROME = b'"Chromium";v="142", "Google Chrome";v="142", "Not_A Brand";v="99"'
_AGENT = (
    b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    b"Chrome/142.0.0.0 Safari/537.36"
)
# As Chrome sends them with a fetch() of a page's own origin; the cookie comes last.
HEADERS = [
    (b"host", b"app.example.com"),
    (b"connection", b"keep-alive"),
    (b"sec-ch-ua-platform", b'"Linux"'),
    (b"user-agent", _AGENT),
    (b"sec-ch-ua", _CHROME),
    (b"accept", b"*/*"),
    (b"sec-fetch-site", b"same-origin"),
    (b"sec-fetch-mode", b"cors"),
    (b"referer", b"https://app.example.com/dashboard"),
    (b"accept-encoding", b"gzip, deflate, br, zstd"),
    (b"accept-language", b"en-GB,en;q=0.9"),
]
REPLY = b'{"ok": true}'


@dataclass(frozen=True, slots=True)
class Variant:
    """One application to call, and the cookie its clients send."""

    name: str
    app: ASGIApp
    cookie: bytes


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that does no more than answer."""
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", b"12"),
            ],
        }
    )
    await send({"type": "http.response.body", "body": REPLY})


async def reads_user(scope: Scope, receive: Receive, send: Send) -> None:
    """The same application, which reads the user of the request."""
    if scope[SCOPE_KEY].user_id != USER_ID:
        raise RuntimeError("the request was not authenticated")
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", b"12"),
            ],
        }
    )
    await send({"type": "http.response.body", "body": REPLY})


def floor(app: ASGIApp, needle: bytes, known: dict[bytes, object]) -> ASGIApp:
    """``app`` behind the floor, which looks the session up and ignores the result."""

    def call(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        for name, value in scope["headers"]:
            if name == b"cookie":
                start = value.find(needle) + len(needle)
                end = value.find(b";", start)
                known[sha256(value[start:end]).digest()]
                break
        return app(scope, receive, send)

    return call


def run(options: Options) -> Report:
    """Measure every variant in turns."""
    count = FEW_REQUESTS if options.quick else REQUESTS
    rounds = options.rounds or ROUNDS
    with asyncio.Runner() as runner:
        drive = by_hand if options.loop == "none" else partial(on_loop, runner)
        sessions = Sessions(MemoryStore(), secret=SECRET, policy=POLICY)
        variants = runner.run(_variants(sessions))
        others = list(cached_sessions(POLICY))
        variants += map(_floor_of, others)
        variants += map(_variant_of, others)
        for variant in variants:
            drive(variant.app, _scopes(variant.cookie, count))
        before, queries = sessions.stats().hits, sessions.store.queries
        costs = _measure(variants, drive, count, rounds)
        hits = sessions.stats().hits - before
        queries = sessions.store.queries - queries
        runner.run(sessions.close())
        again = runner.run(longest_trust.count_reads(quick=options.quick))
    _check(others, (rounds + 1) * count)
    requests = 2 * rounds * count
    if (hits, queries) != (requests, 0):
        raise RuntimeError(f"{hits} hits, {queries} queries in {requests} requests")
    return Report(
        benchmark="hit",
        about=ABOUT,
        environment=environment(),
        settings={"rounds": rounds, "requests_per_round": count, "loop": options.loop},
        rows=_rows(costs),
        facts={
            **_ratios(costs),
            "requests": requests,
            "hits": hits,
            "queries": queries,
            **again,
        },
    )


def _variant_of(other: CachedSession) -> Variant:
    app = SessionAuthMiddleware(bare, other.sessions)
    return Variant(other.name, app, _with_other_cookie(other.cookie))


def _floor_of(other: CachedSession) -> Variant:
    """The least that a cookie of this length costs."""
    name, _, value = other.cookie.partition(b"=")
    known: dict[bytes, object] = {sha256(value).digest(): None}
    app = floor(bare, name + b"=", known)
    return Variant(f"floor, {other.name}", app, _with_other_cookie(other.cookie))


def _with_other_cookie(cookie: bytes) -> bytes:
    return cookie + b"; " + OTHER_COOKIE.encode()


def _check(others: list[CachedSession], requests: int) -> None:
    """Raise RuntimeError unless all requests were hits, the warm-up included."""
    for other in others:
        stats = other.sessions.stats()
        if (stats.hits, stats.misses, stats.queries) != (requests, 0, 0):
            raise RuntimeError(f"{other.name}: {stats.hits} hits in {requests} requests")


async def _variants(sessions: Sessions) -> list[Variant]:
    """The variants; the handstamp ones share one session, which is then cached."""
    await wait_until_listening(sessions)
    issued = await sessions.create(USER_ID, remember=True)
    ours = (
        f"{OTHER_COOKIE}; __Host-session={issued.session_token};"
        f" __Host-refresh={issued.refresh_token}"
    ).encode()
    digest = sha256(issued.session_token.encode()).digest()
    known: dict[bytes, object] = {digest: issued.session}
    return [
        Variant("bare app", bare, ours),
        Variant("floor", floor(bare, b"__Host-session=", known), ours),
        Variant("handstamp", SessionAuthMiddleware(bare, sessions), ours),
        Variant("handstamp, asked", SessionAuthMiddleware(reads_user, sessions), ours),
        Variant(
            "SessionMiddleware", SessionMiddleware(bare, SECRET), await _starlette_cookie()
        ),
    ]


async def _starlette_cookie() -> bytes:
    """The Cookie header of a user who signed in through Starlette's middleware."""
    cookies: list[bytes] = []

    async def login(scope: Scope, receive: Receive, send: Send) -> None:
        scope["session"]["user_id"] = USER_ID
        await bare(scope, receive, send)

    async def collect(message: Message) -> None:
        headers = message.get("headers", ())
        cookies.extend(value for name, value in headers if name == b"set-cookie")

    await SessionMiddleware(login, SECRET)(_scope(b""), receive, collect)
    return OTHER_COOKIE.encode() + b"; " + cookies[0].partition(b";")[0]


Drive = Callable[[ASGIApp, list[Scope]], float]


def _measure(
    variants: list[Variant], drive: Drive, count: int, rounds: int
) -> dict[str, list[float]]:
    """Nanoseconds a request of each variant, turn by turn."""
    costs: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for turn in turns(variants, rounds):
        for variant in turn:
            scopes = _scopes(variant.cookie, count)
            costs[variant.name].append(drive(variant.app, scopes))
    return costs


def by_hand(app: ASGIApp, scopes: list[Scope]) -> float:
    """Nanoseconds a request, one step for each. Raises RuntimeError if one suspends."""
    count, start = len(scopes), thread_time_ns()
    while scopes:
        coroutine: Any = app(scopes.pop(), receive, send)
        try:
            coroutine.send(None)
        except StopIteration:
            continue
        raise RuntimeError("an application suspended")
    return (thread_time_ns() - start) / count


def on_loop(runner: asyncio.Runner, app: ASGIApp, scopes: list[Scope]) -> float:
    """Nanoseconds a request, awaited one after the other in a task."""

    async def all_of_them() -> float:
        count, start = len(scopes), thread_time_ns()
        while scopes:
            await app(scopes.pop(), receive, send)
        return (thread_time_ns() - start) / count

    return runner.run(all_of_them())


async def receive() -> Message:
    """A server whose client sent no body."""
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message: Message) -> None:
    """A server that ignores the response."""


def _scopes(cookie: bytes, count: int) -> list[Scope]:
    return [_scope(cookie) for _ in range(count)]


def _scope(cookie: bytes) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 51324),
        "scheme": "http",
        "method": "GET",
        "root_path": "",
        "path": "/api/messages",
        "raw_path": b"/api/messages",
        "query_string": b"",
        "headers": [_copy(name, value) for name, value in (*HEADERS, (b"cookie", cookie))],
        "state": {},
    }


def _copy(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """New objects, as a parser makes them: their hashes are not computed yet."""
    return bytes(bytearray(name)), bytes(bytearray(value))


def _rows(costs: dict[str, list[float]]) -> list[Row]:
    base = costs["bare app"]
    return [
        {
            "variant": name,
            "median_ns": median(values),
            "min_ns": min(values),
            "over_bare_ns": median(over(values, base)),
        }
        for name, values in costs.items()
    ]


def _ratios(costs: dict[str, list[float]]) -> Row:
    extra = {name: over(values, costs["bare app"]) for name, values in costs.items()}
    ours, asked = extra["handstamp"], extra["handstamp, asked"]
    return {
        **{
            f"{name}, of ulid": ratio(values, ours)
            for name, values in extra.items()
            if name.startswith(("uuid", "supabase"))
        },
        **{
            f"{name}, times_the_floor": ratio(values, extra[f"floor, {name}"])
            for name, values in extra.items()
            if f"floor, {name}" in extra
        },
        "times_the_floor": ratio(ours, extra["floor"]),
        "of_SessionMiddleware": ratio(ours, extra["SessionMiddleware"]),
        "asked_times_the_floor": ratio(asked, extra["floor"]),
        "asked_of_SessionMiddleware": ratio(asked, extra["SessionMiddleware"]),
    }
