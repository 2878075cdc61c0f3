"""The environment of Supabase's state machine: processes, a clock, and the checks.

Every response, every event and every row is compared with the prediction of
:mod:`tests.rotation.supabase_families`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import jwt
from hypothesis.stateful import RuleBasedStateMachine

from handstamp.core.models import Authenticated, Issued
from handstamp.events import (
    Event,
    LateRefresh,
    Refreshed,
    Reissued,
    Replayed,
    Revoked,
)
from tests.rotation.supabase_families import (
    MARGIN,
    MEMORY,
    STALENESS,
    AuthFamily,
    Fate,
    Settings,
    is_row,
)
from tests.rotation.supabase_worlds import AuthProcess, AuthTables, SupabaseBase, client
from tests.support.clock import FakeClock
from tests.support.supabase import SECOND, STEP
from tests.support.supabase_site import JWT_SECRET

START = datetime.fromisoformat("2026-01-05T09:00:00.123457+00:00")
PROCESSES = 3
BROWSERS = 3
TEN = 10 * SECOND
SETTINGS = (
    Settings(name="defaults"),
    Settings(name="ten", interval=TEN),
    Settings(name="limited", interval=TEN, timebox=400 * SECOND, inactivity=300 * SECOND),
    Settings(name="no rotation", interval=TEN, rotation=False),
    Settings(name="reuse", interval=TEN, reuse=True),
)
TOLD: dict[Fate, list[type[Event]]] = {
    Fate.STEP: [Refreshed],
    Fate.FORK: [Reissued],
    Fate.SAME: [Reissued],
    Fate.ENDS: [Replayed],
    Fate.STALE: [LateRefresh],
    Fate.REFUSED: [],
}
T = TypeVar("T")


@dataclass(frozen=True)
class Jar:
    """The cookie of one session, as an answer wrote it."""

    session_id: str
    text: str = field(repr=False)
    body: Mapping[str, Any] = field(repr=False)

    @property
    def cookie(self) -> str:
        """What tells it from others of the same session."""
        return f"{self.body['access_token']} {self.text}"

    @property
    def expires_at(self) -> datetime:
        """When its access token does."""
        return datetime.fromtimestamp(self.body["expires_at"], UTC)


@dataclass(repr=False)
class AuthBrowser:
    """A jar, and the responses that are on their way to it."""

    number: int
    jar: Jar | None = None
    coming: list[tuple[Jar, float]] = field(default_factory=list)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(f"<browser {self.number}>")

    def expect(self, issued: Issued | None, response: str) -> None:
        """Take this response, lose it, or have it come later."""
        if issued is None:
            return
        if response == "taken":
            self.jar = jar_of(issued)
        elif response == "delayed":
            self.coming.append((jar_of(issued), issued.deliver_until))


def jar_of(issued: Issued) -> Jar:
    """What a browser holds of an answer."""
    assert issued.body is not None
    assert issued.refresh_token is not None
    return Jar(issued.session.id, issued.refresh_token, issued.body)


class SupabaseStage(RuleBasedStateMachine):
    """Give ``base`` and a ``runner`` by subclassing."""

    base: SupabaseBase
    runner: asyncio.Runner

    def deploy(self, settings: Settings, version: int) -> None:
        """Empty tables, fresh processes of one deployment."""
        self.clock = FakeClock(START)
        self.settings = settings
        self.families: dict[str, AuthFamily] = {}
        self.bodies: dict[str, Jar] = {}
        self.banned: dict[str, datetime] = {}
        self.browsers = [AuthBrowser(number) for number in range(BROWSERS)]
        # What each process may still believe, and what it has just refused.
        self.believed: dict[tuple[int, str], dict[str, datetime]] = {}
        self.refused: dict[tuple[int, str], datetime] = {}
        self.run(self.base.reset())
        self.processes = [self._start(version, 0) for _ in range(PROCESSES)]
        self.look()

    def teardown(self) -> None:
        """End the processes."""
        for process in getattr(self, "processes", ()):
            self.run(process.close())

    def _start(self, version: int, upgrade: int) -> AuthProcess:
        store = self.base.store(self.settings, version, upgrade)
        return AuthProcess(store, self.base.dsn, self.clock)

    def restart(self, process: int, *, upgrades: bool) -> None:
        """Kill this process, with all that it knew, and start another."""
        before = self.processes[process]
        self.run(before.close())
        again = (2, 100) if upgrades else (before.version, before.upgrade)
        self.processes[process] = self._start(*again)
        self.believed = {k: v for k, v in self.believed.items() if k[0] != process}
        self.refused = {k: v for k, v in self.refused.items() if k[0] != process}

    @property
    def now(self) -> datetime:
        """What time it is, here and in the database."""
        return self.clock.now()

    def run(self, awaitable: Awaitable[T]) -> T:
        """Do something at this time."""

        async def run() -> T:
            await self.base.set_clock(self.now)
            return await awaitable

        return self.runner.run(run())

    def is_banned(self, user_id: str) -> bool:
        """Whether this user may not come in; at the instant it is over, it is over."""
        return user_id in self.banned and self.now < self.banned[user_id]

    def is_live(self, family: AuthFamily) -> bool:
        """Whether this session is anybody's way in."""
        return not family.is_over(self.now) and not self.is_banned(family.user_id)

    def promised(self, family: AuthFamily, text: str) -> bool:
        """Whether who shows this token is an honest browser, and must be let in.

        GoTrue promises nothing to one that lost the answer by which a row became a
        counter: no active row has that parent.
        """
        return family.honest and self.is_live(family) and not family.was_upgraded(text)

    # -- what must be in the tables ----------------------------------------------------

    def look(self) -> None:
        """Read the tables, and compare them with what is predicted."""
        self.tables: AuthTables = self.run(self.base.tables())
        living = {f.id: f for f in self.families.values() if not f.gone}
        assert self.tables.sessions.keys() == living.keys(), "a session more, or less"
        assert self.tables.tokens.keys() <= living.keys(), "a row without its session"
        for family in living.values():
            self._check_session(family, self.tables.sessions[family.id])
            self._check_rows(family, self.tables.tokens.get(family.id, []))

    def _check_session(self, family: AuthFamily, row: Mapping[str, Any]) -> None:
        written = client(family.by)
        assert row["user_id"] == family.user_id
        assert row["created_at"] == family.created_at
        assert row["refreshed_at"] == family.refreshed_at, "refreshed at another time"
        assert row["updated_at"] == family.last_refreshed_at
        assert (row["user_agent"], row["address"]) == (written.user_agent, written.address)
        assert row["counter"] == family.counter, "it counts wrongly"
        assert (row["key"] is None) is (family.counter is None)
        family.key = family.key or row["key"]
        assert row["key"] == family.key, "another key, and every token is worth nothing"

    def _check_rows(self, family: AuthFamily, rows: Sequence[Mapping[str, Any]]) -> None:
        assert len(rows) == len(family.rows), "a token row more, or less"
        for row, known in zip(rows, family.rows, strict=True):
            known.text = known.text or row["token"]
            assert (row["token"], row["parent"]) == (known.text, known.parent)
            assert row["revoked"] is known.revoked, f"revoked: {row['revoked']}"
            assert row["updated_at"] == known.updated_at, "used at another time"
        live = [row["token"] for row in rows if not row["revoked"]]
        # A row that came again within its interval, and was no parent, has two children.
        assert len(live) <= 1 or family.forked, "two different successors live"

    # -- what must become of a token ---------------------------------------------------

    def ask(
        self, jar: Jar, process: int, by: int, *, passive: bool = False
    ) -> Issued | None:
        """Make one request with this cookie, and judge what became of it."""
        family, engine = self.families[jar.session_id], self.processes[process]
        self._off_the_instant(jar, process)
        left, promised = jar.expires_at - self.now, self.promised(family, jar.text)
        engine.events.clear()
        work = engine.sessions.authenticate(
            engine.read(jar.body), client(by), passive=passive
        )
        answer = self.run(work)
        ok = isinstance(answer, Authenticated)
        issued = answer.issued if isinstance(answer, Authenticated) else None
        renews = left <= MARGIN and not passive and not self._remembers(process, jar.text)
        if renews:
            self._judge(family, jar.text, process, by, issued, engine.events)
            self.was_promised(family, jar.text, promised, issued is not None)
        else:
            assert issued is None, "new tokens for nothing"
            self.nothing_happened(engine.events)
        if issued is None:
            if renews:
                self.refused[process, jar.text] = self.now
            self._judge_look(family, jar, process, ok)
        return issued

    def _off_the_instant(self, jar: Jar, process: int) -> None:
        """Where a process counts in seconds, at the instant itself a rounding decides."""
        believed = self.believed.get((process, jar.session_id), {})
        instants = {at + STALENESS for at in believed.values()}
        instants |= {jar.expires_at - MARGIN}
        if (process, jar.text) in self.refused:
            instants.add(self.refused[process, jar.text] + MEMORY)
        while self.now in instants:
            self.clock.advance(STEP)

    def exchange(
        self, text: str, family: AuthFamily, process: int, by: int
    ) -> Issued | None:
        """What a program does: refresh, without any cookie."""
        engine, promised = self.processes[process], self.promised(family, text)
        engine.events.clear()
        issued = self.run(engine.sessions.refresh(text, client=client(by)))
        self._judge(family, text, process, by, issued, engine.events)
        self.was_promised(family, text, promised, issued is not None)
        return issued

    def was_promised(
        self, family: AuthFamily, text: str, promised: bool, let_in: bool
    ) -> None:
        """Hold it against them that an honest browser was not let in."""
        assert let_in or not promised, "an honest browser was signed out"
        # Whoever shows a row that became a counter forks the counter.
        family.honest = family.honest and not (family.was_upgraded(text) and not promised)

    def nothing_happened(self, events: Sequence[Event]) -> None:
        """Nothing was written, and there is nothing to tell."""
        before = self.tables.digest
        self.look()
        assert self.tables.digest == before, "something was written"
        assert events == []

    def _remembers(self, process: int, text: str) -> bool:
        at = self.refused.get((process, text))
        return at is not None and self.now < at + MEMORY

    def _judge(
        self,
        family: AuthFamily,
        text: str,
        process: int,
        by: int,
        issued: Issued | None,
        events: Sequence[Event],
    ) -> None:
        before, was_by = self.tables.digest, family.by
        fate = self.settle(family, text, process, by, issued)
        kinds = [type(event) for event in events]
        ended = [Revoked] if fate is Fate.ENDS and not is_row(text) else []
        assert kinds == TOLD[fate] + ended, f"{fate}, and these events: {kinds}"
        for event in events:
            if isinstance(event, Replayed):
                assert event.session_id == family.id
                assert event.presented_by == client(by), "the wrong presenter"
                assert event.signed_in_by == client(was_by), "the wrong holder"
        self.look()
        if fate in (Fate.STALE, Fate.REFUSED):
            assert self.tables.digest == before, "a refused token wrote something"

    def settle(
        self, family: AuthFamily, text: str, process: int, by: int, issued: Issued | None
    ) -> Fate:
        """What must have become of this token; from now on the family knows it."""
        banned = self.is_banned(family.user_id)
        fate, same = (Fate.REFUSED, None) if banned else family.fate(text, self.now)
        given = None if issued is None else issued.refresh_token
        if fate in (Fate.STEP, Fate.FORK):
            assert given is not None, f"{fate} was refused"
            family.step(text, given, self.now, self.processes[process].upgrades)
        else:
            assert given == same, f"{fate} ended in another successor, or in none"
        if issued is not None:
            family.seen(self.now, by)
            self._check_access(family, issued)
        elif fate is Fate.ENDS:
            family.end(text, self.now)
            self.believed.pop((process, family.id), None)
        return fate

    def _check_access(self, family: AuthFamily, issued: Issued) -> None:
        assert issued.session.id == family.id, "another session's identity"
        options = {"verify_exp": False, "verify_aud": False, "verify_iat": False}
        claims = jwt.decode(issued.session_token, JWT_SECRET, ["HS256"], options=options)
        assert (claims["session_id"], claims["sub"]) == (family.id, family.user_id)
        jar = jar_of(issued)
        assert claims["exp"] == jar.body["expires_at"]
        self.bodies[jar.text] = jar

    def _judge_look(self, family: AuthFamily, jar: Jar, process: int, ok: bool) -> None:
        """What an access token is worth, that was not replaced."""
        left = jar.expires_at - self.now
        if left.total_seconds() <= 0:
            assert not ok, "an access token outlived its end"
            return
        believed = self.believed.setdefault((process, family.id), {})
        at = believed.get(jar.cookie)
        hit = at is not None and self.now < at + STALENESS and left > MARGIN
        if self.is_live(family):
            # A refresh may still be in time at the very end, a look no more.
            assert ok or self.now in family.limits(), "a live access token was refused"
        else:
            over = hit and (family.gone or self.is_banned(family.user_id))
            assert not ok or over, "an access token outlived its session"
        if ok and not hit:
            believed[jar.cookie] = self.now
        elif not ok:
            believed.pop(jar.cookie, None)
