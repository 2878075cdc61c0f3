"""What a session costs under WSGI: a hit, and a miss.

*Hits.* As in ``hit``: the floor is the least that any such middleware can do, and every
request has its own environ, made before the measurement. It is compared with Flask's signed
session, and with Django's sessions and ``request.user`` on the database. Django's cost is
taken over Django's own bare request, on a connection that stays open, which favours Django.
``cpu`` is the thread's processor time, ``wall`` is wall time.
*Misses.* One thread authenticates one session after another, none of which is in the cache,
through the whole middleware and the thread of the event loop. It is compared with one plain
query of the same row, by psycopg and by asyncpg.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from io import BytesIO
from itertools import cycle
from statistics import median
from time import perf_counter_ns, thread_time_ns
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from benchmarks.database import SECRET, Seeded, connect_pool, database, seed
from benchmarks.environment import environment, server_version
from benchmarks.hit import HEADERS, OTHER_COOKIE, POLICY, USER_ID
from benchmarks.listener import wait_until_listening
from benchmarks.report import Report, Row
from benchmarks.rounds import Options, over, percentile, ratio, turns
from handstamp.blocking import call
from handstamp.engine.sessions import Sessions
from handstamp.stores.memory import MemoryStore
from handstamp.wsgi import ENVIRON_KEY, SessionAuthMiddleware

ABOUT = "a request under WSGI, with a cached session and without"
ROUNDS, REQUESTS, FEW_REQUESTS = 51, 200, 20
CACHE_SIZE = 64
"""So small that each session has left the cache before it is requested again."""

Environ = dict[str, Any]
App = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]


@dataclass(frozen=True, slots=True)
class Variant:
    """One application, the cookie of its clients, and the variant to compare it with."""

    name: str
    app: App
    cookie: str
    base: str = "bare app"


def bare(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
    """An application that does no more than answer."""
    start_response(
        "200 OK", [("Content-Type", "application/json"), ("Content-Length", "12")]
    )
    return [b'{"ok": true}']


def reads_user(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
    """The same application, which reads the user of the request."""
    if environ[ENVIRON_KEY].user_id != USER_ID:
        raise RuntimeError("the request was not authenticated")
    return bare(environ, start_response)


def floor(app: App, needle: bytes, known: dict[bytes, object]) -> App:
    """``app`` behind the floor, which looks the session up and ignores the result."""

    def serve(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        value = environ["HTTP_COOKIE"].encode("latin-1")
        start = value.find(needle) + len(needle)
        end = value.find(b";", start)
        known[sha256(value[start:end]).digest()]
        return app(environ, start_response)

    return serve


def run(options: Options) -> Report:
    """Measure every variant in turns: hits first, then misses."""
    count = FEW_REQUESTS if options.quick else REQUESTS
    rounds = options.rounds or ROUNDS
    with database() as dsn:
        hits = _run_hits(dsn, rounds, count)
        misses, postgresql = _run_misses(dsn, rounds, count)
    facts = {**hits.facts(rounds * count), **_miss_facts(misses)}
    return Report(
        benchmark="wsgi",
        about=ABOUT,
        environment={
            **environment(postgresql),
            **{name: version(name) for name in ("Flask", "Django", "psycopg")},
        },
        settings={"rounds": rounds, "requests_per_round": count},
        rows=[*hits.rows(), *_miss_rows(misses)],
        facts=facts,
    )


class Hits:
    """What each variant cost, turn by turn: nanoseconds of two clocks a request."""

    def __init__(self, variants: Sequence[Variant]) -> None:
        self.variants = variants
        self.cpu: dict[str, list[float]] = {variant.name: [] for variant in variants}
        self.wall: dict[str, list[float]] = {variant.name: [] for variant in variants}
        self.hits = 0

    def measure(self, rounds: int, count: int) -> None:
        """Measure everything once in each turn."""
        for turn in turns(self.variants, rounds):
            for variant in turn:
                cpu, wall = drive(variant.app, environs(variant.cookie, count))
                self.cpu[variant.name].append(cpu)
                self.wall[variant.name].append(wall)

    def rows(self) -> list[Row]:
        """A row for each variant."""
        return [
            {
                "variant": variant.name,
                "cpu_us": median(self.cpu[variant.name]) / 1000,
                "wall_us": median(self.wall[variant.name]) / 1000,
                "over_bare_cpu_us": median(self._over(self.cpu, variant.name)) / 1000,
                "over_bare_wall_us": median(self._over(self.wall, variant.name)) / 1000,
                "wall_p99_us": None,
            }
            for variant in self.variants
        ]

    def facts(self, requests: int) -> Row:
        """The ratios."""
        if self.hits != 2 * requests:
            raise RuntimeError(f"{self.hits} hits in {2 * requests} requests")
        cpu, wall = self.cpu, self.wall
        ours, asked = self._over(cpu, "handstamp"), self._over(cpu, "handstamp, asked")
        django = "Django, request.user"
        return {
            "times_the_floor": ratio(ours, self._over(cpu, "floor")),
            "asked_times_the_floor": ratio(asked, self._over(cpu, "floor")),
            "of_Flask_session": ratio(asked, self._over(cpu, "Flask, session")),
            "Django_costs_times_wall": ratio(
                self._over(wall, django), self._over(wall, "handstamp, asked")
            ),
            "Django_costs_times_cpu": ratio(self._over(cpu, django), asked),
            "hits": self.hits,
        }

    def _over(self, costs: dict[str, list[float]], name: str) -> list[float]:
        base = next(variant.base for variant in self.variants if variant.name == name)
        return over(costs[name], costs[base])


def _run_hits(dsn: str, rounds: int, count: int) -> Hits:
    sessions = Sessions(MemoryStore(), secret=SECRET, policy=POLICY)
    call(wait_until_listening, sessions)
    hits = Hits([*_ours(sessions), *_flask(), *_django(dsn)])
    for variant in hits.variants:
        drive(variant.app, environs(variant.cookie, 20))
    before = sessions.stats().hits
    hits.measure(rounds, count)
    hits.hits = sessions.stats().hits - before
    call(sessions.close)
    return hits


def _ours(sessions: Sessions) -> list[Variant]:
    """Variants of handstamp and their base, with one cached session."""
    issued = call(sessions.create, USER_ID, remember=True)
    cookie = (
        f"{OTHER_COOKIE}; __Host-session={issued.session_token};"
        f" __Host-refresh={issued.refresh_token}"
    )
    digest = sha256(issued.session_token.encode()).digest()
    known: dict[bytes, object] = {digest: issued.session}
    return [
        Variant("bare app", bare, cookie),
        Variant("floor", floor(bare, b"__Host-session=", known), cookie),
        Variant("handstamp", SessionAuthMiddleware(bare, sessions), cookie),
        Variant("handstamp, asked", SessionAuthMiddleware(reads_user, sessions), cookie),
    ]


def _flask() -> list[Variant]:
    """Flask's own session, read, around the bare application."""
    from flask import Flask, Request

    app = Flask(__name__)
    app.secret_key = SECRET
    signer = app.session_interface.get_signing_serializer(app)  # type: ignore[attr-defined]
    cookie = f"{OTHER_COOKIE}; session={signer.dumps({'user_id': USER_ID})}"

    def serve(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        session = app.session_interface.open_session(app, Request(environ))
        if session is None or session["user_id"] != USER_ID:
            raise RuntimeError("Flask found no session")
        return bare(environ, start_response)

    return [Variant("Flask, session", serve, cookie)]


def _django(dsn: str) -> list[Variant]:
    """Django's request, bare and with its sessions and its user."""
    _configure_django(dsn)
    from django.contrib.auth.middleware import AuthenticationMiddleware
    from django.contrib.sessions.middleware import SessionMiddleware
    from django.core.handlers.wsgi import WSGIRequest
    from django.http import HttpResponse

    key, user_id = _django_session()

    def view(request: Any) -> Any:
        return HttpResponse(b'{"ok": true}', content_type="application/json")

    def viewing(request: Any) -> Any:
        if request.user.pk != user_id:
            raise RuntimeError("Django found no user")
        return view(request)

    def served(get_response: Any) -> App:
        def serve(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
            response = get_response(WSGIRequest(environ))
            start_response("200 OK", list(response.items()))
            return [bytes(response.content)]

        return serve

    chain = SessionMiddleware(AuthenticationMiddleware(viewing))
    cookie = f"{OTHER_COOKIE}; sessionid={key}"
    return [
        Variant("Django, bare", served(view), cookie),
        Variant("Django, request.user", served(chain), cookie, "Django, bare"),
    ]


def _configure_django(dsn: str) -> None:
    import django
    from django.conf import settings
    from django.core.management import call_command

    url = urlsplit(dsn)
    named = {"NAME": url.path[1:], "HOST": url.hostname, "PORT": url.port}
    person = {"USER": url.username, "PASSWORD": url.password}
    engine = "django.db.backends.postgresql"
    apps = ("contenttypes", "auth", "sessions")
    settings.configure(
        SECRET_KEY=SECRET,
        DATABASES={"default": {"ENGINE": engine, **named, **person}},
        INSTALLED_APPS=[f"django.contrib.{app}" for app in apps],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
    )
    django.setup()
    call_command("migrate", verbosity=0)


def _django_session() -> tuple[str, int]:
    """The key of a signed-in user's session, and the key of the user."""
    from django.contrib.auth import login
    from django.contrib.auth.models import User
    from django.contrib.sessions.backends.db import SessionStore
    from django.http import HttpRequest

    user = User.objects.create_user("alice", password="wonderland")
    request: Any = HttpRequest()
    request.session = SessionStore()
    login(request, user, backend="django.contrib.auth.backends.ModelBackend")
    request.session.save()
    return str(request.session.session_key), int(user.pk)


def drive(app: App, environs: list[Environ]) -> tuple[float, float]:
    """Nanoseconds a request: the thread's processor time, and wall time."""
    count, cpu, wall = len(environs), thread_time_ns(), perf_counter_ns()
    while environs:
        for _ in app(environs.pop(), start_response):
            pass
    return (thread_time_ns() - cpu) / count, (perf_counter_ns() - wall) / count


def start_response(
    status: str, headers: list[tuple[str, str]], exc_info: Any = None
) -> Any:
    """A server that ignores the response."""


def environs(cookie: str, count: int) -> list[Environ]:
    """Separate requests with separate objects, as a server makes them."""
    return [_environ(cookie) for _ in range(count)]


def _environ(cookie: str) -> Environ:
    sent = {
        f"HTTP_{name.decode().upper().replace('-', '_')}": value.decode()
        for name, value in HEADERS
    }
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/api/messages",
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "none",
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "51324",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": BytesIO(),
        "wsgi.errors": None,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        **sent,
        "HTTP_COOKIE": cookie.encode().decode("latin-1"),
    }


FIND = """
    select s.*, u.is_active as user_is_active, now() as read_at
    from user_sessions s left join users u on u.id = s.user_id
    where s.session_token_hash = any($1::bpchar[])"""
"""The query of an application without handstamp."""
Ask = Callable[[Seeded], None]


def _run_misses(dsn: str, rounds: int, count: int) -> tuple[dict[str, list[float]], str]:
    """Microseconds of every miss and of every query, and the server's version."""
    import psycopg

    seeded, postgresql = asyncio.run(_seeded(dsn, 4 * count))
    sessions = Sessions(dsn, secret=SECRET, policy=POLICY, cache_size=CACHE_SIZE)
    with psycopg.connect(dsn, autocommit=True) as connection, asyncio.Runner() as runner:
        plain = runner.run(asyncpg.connect(dsn))
        asks: dict[str, tuple[Ask, Iterator[Seeded]]] = {
            "handstamp, miss": (_missing(sessions), cycle(seeded)),
            "psycopg, query": (_by_psycopg(psycopg.RawCursor(connection)), cycle(seeded)),
            "asyncpg, query": (_by_asyncpg(runner, plain), cycle(seeded)),
        }
        found: dict[str, list[float]] = {name: [] for name in asks}
        for name in asks:
            _ask(*asks[name], 50)
        for turn in turns(list(asks), rounds):
            for name in turn:
                found[name].extend(_ask(*asks[name], count))
        runner.run(plain.close())
    if sessions.stats().hits:
        raise RuntimeError(f"{sessions.stats().hits} sessions were in the cache")
    call(sessions.close)
    return found, postgresql


async def _seeded(dsn: str, count: int) -> tuple[list[Seeded], str]:
    async with connect_pool(dsn) as pool:
        return await seed(pool, max(count, 4 * CACHE_SIZE), POLICY), await server_version(
            pool
        )


def _ask(ask: Ask, supply: Iterator[Seeded], count: int) -> list[float]:
    taken = []
    for _ in range(count):
        session = next(supply)
        start = perf_counter_ns()
        ask(session)
        taken.append((perf_counter_ns() - start) / 1000)
    return taken


def _missing(sessions: Sessions) -> Ask:
    seen: list[str | None] = []

    def app(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        seen.append(environ[ENVIRON_KEY].user_id)
        return bare(environ, start_response)

    middleware = SessionAuthMiddleware(app, sessions)

    def ask(session: Seeded) -> None:
        cookie = f"__Host-session={session.pair.session}"
        middleware(_environ(cookie), start_response)
        if seen.pop() != session.user_id:
            raise RuntimeError("not authenticated")

    return ask


def _by_psycopg(cursor: Any) -> Ask:
    sql = FIND.encode()

    def ask(session: Seeded) -> None:
        cursor.execute(sql, [[session.pair.session_digest]])
        if cursor.fetchone() is None:
            raise RuntimeError("psycopg found no row")

    return ask


def _by_asyncpg(runner: asyncio.Runner, connection: Any) -> Ask:
    sql = FIND

    def ask(session: Seeded) -> None:
        run = runner.get_loop().run_until_complete
        if run(connection.fetchrow(sql, [session.pair.session_digest])) is None:
            raise RuntimeError("asyncpg found no row")

    return ask


def _miss_rows(found: dict[str, list[float]]) -> list[Row]:
    return [
        {
            "variant": name,
            "cpu_us": None,
            "wall_us": percentile(taken, 50),
            "over_bare_cpu_us": None,
            "over_bare_wall_us": None,
            "wall_p99_us": percentile(taken, 99),
        }
        for name, taken in found.items()
    ]


def _miss_facts(found: dict[str, list[float]]) -> Row:
    ours = percentile(found["handstamp, miss"], 50)
    return {
        "miss_of_psycopg": ours / percentile(found["psycopg, query"], 50),
        "miss_of_asyncpg": ours / percentile(found["asyncpg, query"], 50),
        "misses": len(found["handstamp, miss"]),
    }
