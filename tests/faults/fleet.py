"""A fleet: several worker processes on one database, and what a client sees of each.

Times are readings of the clock that the engine counts down on, so that what a client saw
and what a worker believed can be compared to the microsecond, without any allowance.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil
import pytest
from ulid import ULID
from websockets.asyncio.client import ClientConnection, connect

from handstamp import Policy, Sessions
from handstamp.core.models import Issued
from handstamp.engine.clocks import uptime

ROOT = Path(__file__).resolve().parents[2]
SECRET = "the secret of the fault tests: 32 bytes and more"
PATIENCE = 20.0
LISTENER = "the listening one"


@dataclass(frozen=True, slots=True)
class Seen:
    """One answer, and when its request began and ended."""

    began: float
    ended: float
    status: int
    sets_cookie: bool
    retry_after: str | None

    @property
    def honest(self) -> bool:
        """Whether an outage may look like this: an answer or "come back later"."""
        later = self.status == 503 and self.retry_after is not None
        return not self.sets_cookie and (later or self.status == 200)


@dataclass
class Worker:
    """One process of the application, and a client that talks to it alone."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path
    client: httpx.AsyncClient | None = None

    async def ask(
        self, session: Issued | None = None, path: str = "/me", *, refresh: bool = False
    ) -> Seen:
        """One request with the session's token, or with its refresh token instead."""
        headers = {}
        if session is not None:
            name, token = "session", session.session_token
            if refresh:
                name, token = "refresh", session.refresh_token
            headers["cookie"] = f"{name}={token}"
        return await self._send("GET", path, headers)

    async def post(self, path: str) -> Seen:
        """One POST without cookies."""
        return await self._send("POST", path, {})

    async def stats(self) -> dict[str, Any]:
        """The stats of this process."""
        assert self.client is not None
        return (await self.client.get("/stats")).json()

    async def _send(self, method: str, path: str, headers: dict[str, str]) -> Seen:
        assert self.client is not None
        began = uptime()
        response = await self.client.request(method, path, headers=headers)
        return Seen(
            began=began,
            ended=uptime(),
            status=response.status_code,
            sets_cookie="set-cookie" in response.headers,
            retry_after=response.headers.get("retry-after"),
        )

    async def refuses(self, session: Issued) -> bool:
        """Whether a request of this session is answered with 401."""
        return (await self.ask(session)).status == 401

    async def accepts(self, session: Issued) -> bool:
        """Whether a request of this session is served."""
        return (await self.ask(session)).status == 200

    async def listens(self) -> bool:
        """Whether its listener is LISTENING, and the breaker is closed."""
        stats = await self.stats()
        return stats["listener"] == "listening" and not stats["breaker_is_open"]

    @asynccontextmanager
    async def socket(self, session: Issued) -> AsyncIterator[ClientConnection]:
        """A WebSocket of this session, open and answering."""
        cookie = {"Cookie": f"session={session.session_token}"}
        url = f"ws://127.0.0.1:{self.port}/ws"
        async with connect(url, additional_headers=cookie) as opened:
            await opened.send("hello")
            assert await opened.recv() == "hello"
            yield opened


@dataclass
class Fleet:
    """The workers of one database, and the database behind their backs.

    ``admin`` is an engine of this process, as another service would have one.
    """

    dsn: str
    workers: Sequence[Worker]
    policy: Policy
    admin: Sessions = field(init=False)

    @asynccontextmanager
    async def ready(self) -> AsyncIterator[Fleet]:
        """Clients for one test; every worker listens when it begins."""
        self.admin = Sessions(self.dsn, secret=SECRET, policy=self.policy)
        try:
            async with self.admin:
                for worker in self.workers:
                    url = f"http://127.0.0.1:{worker.port}"
                    worker.client = httpx.AsyncClient(base_url=url, timeout=30)
                await self.listening()
                yield self
        finally:
            for worker in self.workers:
                if worker.client is not None:
                    await worker.client.aclose()

    async def listening(self) -> None:
        """Wait until every worker is listening and reaches the database."""
        await everywhere(self.workers, Worker.listens, "to listen")

    async def user(self) -> str:
        """Create a user."""
        id = str(ULID())
        await self.sql(
            "insert into users (id, username, password_hash, email_hash,"
            " last_password_change) values ($1, $2::text, 'x', $2::text, null)",
            id,
            id,
        )
        return id

    async def sign_in(self, user_id: str | None = None) -> Issued:
        """A new session, of a new user by default."""
        return await self.admin.create(user_id or await self.user(), remember=True)

    async def warm(self, *sessions: Issued) -> None:
        """Ask with each session in every worker, so that all of them have it cached."""
        for worker in self.workers:
            for session in sessions:
                assert (await worker.ask(session)).status == 200

    async def sql(self, statement: str, *values: object) -> list[asyncpg.Record]:
        """Run one statement as an administrator at psql would."""
        connection = await asyncpg.connect(self.dsn)
        try:
            return await connection.fetch(statement, *values)
        finally:
            await connection.close()

    async def revoke_by_sql(self, session: Issued) -> float:
        """End one session by plain SQL; returns a time when it was certainly committed."""
        ended = await self.sql(
            "update user_sessions set is_active = false where id = $1 returning id",
            session.session.id,
        )
        assert len(ended) == 1
        return uptime()

    async def listeners(self) -> list[int]:
        """The processes of PostgreSQL behind the workers' listening connections."""
        rows = await self.sql(
            "select pid from pg_stat_activity where application_name = $1"
            " and datname = current_database()",
            LISTENER,
        )
        return [row["pid"] for row in rows]


class Traffic:
    """Requests that never stop, one after the other for each worker and session."""

    def __init__(self) -> None:
        self.seen: dict[tuple[int, str], list[Seen]] = {}
        self._over = False

    def begin(self, worker: Worker, session: Issued | None) -> asyncio.Task[None]:
        """Start asking one worker with one session, or with none."""
        name, path = "public", "/public"
        if session is not None:
            name, path = session.session.id, "/me"
        seen: list[Seen] = []
        self.seen[worker.port, name] = seen
        return asyncio.create_task(self._keep_asking(worker, session, path, seen))

    def end(self) -> None:
        """Begin no request any more."""
        self._over = True

    async def _keep_asking(
        self, worker: Worker, session: Issued | None, path: str, seen: list[Seen]
    ) -> None:
        while not self._over:
            seen.append(await worker.ask(session, path))
            await asyncio.sleep(0.01)  # the pace of a client, not a wait for anything

    def of(self, worker: Worker, session: Issued | None) -> list[Seen]:
        """What this session saw of this worker, in order."""
        return self.seen[worker.port, session.session.id if session else "public"]

    def everything(self) -> list[Seen]:
        """All answers."""
        return [seen for some in self.seen.values() for seen in some]

    async def flows_on(self, requests: int = 20) -> None:
        """Every client gets this many answers to requests that begin from now on."""
        now = uptime()

        async def enough() -> bool:
            return all(
                sum(seen.began > now for seen in some[-2 * requests :]) >= requests
                for some in self.seen.values()
            )

        await until(enough, "the traffic to flow on")


@asynccontextmanager
async def traffic(
    workers: Sequence[Worker], *sessions: Issued | None
) -> AsyncIterator[Traffic]:
    """Each session (none for ``None``) sends requests to every worker meanwhile."""
    flow = Traffic()
    tasks = [flow.begin(worker, session) for worker in workers for session in sessions]
    try:
        yield flow
    finally:
        flow.end()
        await asyncio.gather(*tasks)


async def until(
    condition: Callable[[], Awaitable[object]], what: str, patience: float = PATIENCE
) -> float:
    """Wait for a condition; how long it took, or a failure that says what for."""
    began = uptime()
    while not await condition():
        if uptime() - began > patience:
            pytest.fail(f"waited {patience:.0f} s in vain for {what}")
        await asyncio.sleep(0.01)
    return uptime() - began


async def everywhere(
    workers: Iterable[Worker],
    condition: Callable[..., Awaitable[bool]],
    what: str,
    *values: Any,
    patience: float = PATIENCE,
) -> float:
    """Wait until a condition holds in every worker; how long it took."""

    def wait(worker: Worker) -> Awaitable[float]:
        says = f"worker {worker.port} {what}"
        return until(lambda: condition(worker, *values), says, patience)

    return max(await asyncio.gather(*map(wait, workers)))


@contextmanager
def fleet(
    dsn: str,
    folder: Path,
    *,
    count: int,
    by_way_of: str | None = None,
    listen_dsn: str | None = None,
    **settings: float,
) -> Iterator[Fleet]:
    """Workers on this database, ended when it ends; ``settings`` are the policy's."""
    given = {f"HANDSTAMP_{k.upper()}": str(v) for k, v in settings.items()}
    listen = f"{listen_dsn or dsn}?application_name={LISTENER.replace(' ', '%20')}"
    env = _environment(DATABASE_URL=by_way_of or dsn, LISTEN_URL=listen, **given)
    workers: list[Worker] = []
    try:
        for _ in range(count):
            workers.append(_start(env, folder))  # noqa: PERF401
        for worker in workers:
            _wait_for(worker)
        yield Fleet(dsn, workers, Policy.from_env(given))
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            _end(worker)


def _environment(**settings: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HANDSTAMP_")}
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), clean.get("PYTHONPATH", "")])
    return {**clean, "PYTHONPATH": path, "HANDSTAMP_SECRET": SECRET, **settings}


def _start(env: dict[str, str], folder: Path) -> Worker:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / f"worker-{port}.log"
    options = ["--port", str(port), "--log-level", "warning", "--no-access-log"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "tests.faults.worker:app", *options],
            cwd=ROOT,
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return Worker(port, process, log)


def _wait_for(worker: Worker) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if worker.process.poll() is not None:
            break
        try:
            httpx.get(f"http://127.0.0.1:{worker.port}/public").raise_for_status()
            return
        except httpx.TransportError:
            time.sleep(0.05)
    pytest.fail(f"a worker did not start:\n{worker.log.read_text()}")


def _end(worker: Worker) -> None:
    try:
        worker.process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        worker.process.kill()
        worker.process.wait()


@contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """These processes and their children stand still: none of them answers."""
    halted: list[psutil.Process] = []
    try:
        for pid in pids:
            _halt(psutil.Process(pid), halted)
        yield
    finally:
        for process in halted:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def _halt(process: psutil.Process, halted: list[psutil.Process]) -> None:
    """The parent first: then it starts no child that would not be seen."""
    process.suspend()
    halted.append(process)
    for child in process.children():
        with suppress(psutil.NoSuchProcess):  # it had ended before it could be halted
            _halt(child, halted)
