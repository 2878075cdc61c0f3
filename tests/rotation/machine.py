"""The state machine: browsers, thieves and processes that die, in one or two worlds.

Every operation runs in each world, under one clock, and must have the same result. The
model in :mod:`tests.rotation.families` predicts the result as well, so a single world is
enough to find a broken rule.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from handstamp import Policy
from handstamp.core.cookies import Credentials
from handstamp.core.models import Answer, Authenticated, Invalid, Issued, Unknown
from handstamp.errors import LoginRefused
from tests.rotation.families import BLUR, Family, Fate, Pair
from tests.rotation.worlds import USERS, Base, Row, World, client, forgers_tokens, sha256
from tests.support.clock import FakeClock

START = datetime.fromisoformat("2026-01-05T09:00:00.123457+00:00")
PROCESSES = 3
BROWSERS = 3
MAX_FAMILIES = 2
POLICY = Policy(
    session_ttl=timedelta(seconds=120),
    grace=timedelta(seconds=30),
    refresh_ttl=timedelta(days=2),
    absolute_ttl=timedelta(days=5),
    browser_ttl=timedelta(days=1),
    touch_every=timedelta(seconds=60),
    # The flusher runs on the wall clock and must not run here: rules flush.
    flush_every=timedelta(seconds=29),
    time_budget=timedelta(minutes=10),  # nor may a slow machine end anything
)
IDLE = replace(POLICY, idle_ttl=timedelta(hours=1))

SECOND = timedelta(seconds=1)
TICK = timedelta(microseconds=1)
some_process = st.integers(0, PROCESSES - 1)
some_browser = st.integers(0, BROWSERS - 1)
some_response = st.sampled_from(["taken", "taken", "lost", "lost", "delayed"])
some_part = st.sampled_from(["both", "both", "both", "refresh", "session"])
seldom = st.sampled_from([False, False, False, True])
around = st.sampled_from([-SECOND, -TICK, timedelta(0), TICK, SECOND])
small = st.timedeltas(TICK, timedelta(seconds=5))
whole = st.sampled_from([1, 5, 30, 31, 60, 120, 121]).map(lambda n: n * SECOND)
long = st.sampled_from([3599, 3601, 6 * 3600, 23 * 3600, 47 * 3600]).map(
    lambda n: timedelta(seconds=n, microseconds=333)
)
turns = st.lists(st.integers(0, 4), min_size=12, max_size=12)
# The first answer is on its way while the second operation is done from end to end.
overtaken = st.just([0, 0, 9, 0]) | turns


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an operation ended in, in the same words for every world."""

    ok: bool
    reason: str = ""
    session_id: str | None = None
    tokens: tuple[str, str] | None = None
    deliver_until: float | None = None


@dataclass(repr=False)
class Browser:
    """A jar of cookies, and the responses that are on their way to it."""

    number: int
    jar: Pair | None = None
    coming: list[tuple[Pair, float]] | None = None

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(f"<browser {self.number}>")

    def expect(self, pair: Pair, until: float, response: str) -> None:
        """Take this response, lose it, or have it come later."""
        if response == "taken":
            self.jar = pair
        elif response == "delayed":
            self.coming = [*(self.coming or []), (pair, until)]


class RotationMachine(RuleBasedStateMachine):
    """Give ``bases`` and a ``runner`` by subclassing."""

    bases: Sequence[Base] = ()
    runner: asyncio.Runner

    # -- the stage -------------------------------------------------------------------

    @initialize(idle=seldom)
    def begin(self, idle: bool) -> None:
        """Empty tables, fresh processes."""
        self.clock = FakeClock(START)
        self.policy = IDLE if idle else POLICY
        for base in self.bases:
            self._run(base.reset())
        self.worlds = [
            World(base, self.clock, self.policy, PROCESSES) for base in self.bases
        ]
        self.browsers = [Browser(n) for n in range(BROWSERS)]
        self.families: dict[str, Family] = {}
        self.pending: list[dict[tuple[str, int], tuple[datetime | None, bool]]] = [
            {} for _ in range(PROCESSES)
        ]
        self.cached_pairs: dict[tuple[int, str], datetime] = {}
        self.disabled: set[str] = set()
        self.rows: dict[str, Row] = {}
        self.numbers = itertools.count()
        self._look()

    def teardown(self) -> None:
        """End the processes; the database stays."""
        for world in getattr(self, "worlds", ()):
            self._run(world.close())

    @property
    def now(self) -> datetime:
        """What time it is in every world."""
        return self.clock.now()

    def _run(self, awaitable: Awaitable[Any]) -> Any:
        async def run() -> Any:
            return await awaitable

        return self.runner.run(run())

    def _each(self, operation: Callable[[World], Awaitable[Any]]) -> list[Any]:
        async def run(world: World) -> Any:
            await world.follow_clock()
            return await operation(world)

        return [self._run(run(world)) for world in self.worlds]

    def _same(self, operation: Callable[[World], Awaitable[Any]]) -> Any:
        first, *others = self._each(operation)
        for other in others:
            assert first == other, f"the worlds part: {first} / {other}"
        return first

    # -- what must hold after every operation ----------------------------------------

    def _look(self) -> None:
        """Read every table; compare them with each other and with what is predicted."""
        before, tables = self.rows, self._each(lambda world: world.base.rows())
        blind = {f.id for f in self.families.values() if f.blind}
        first = {k: v for k, v in tables[0].items() if k not in blind}
        for other in tables[1:]:
            rest = {k: v for k, v in other.items() if k not in blind}
            assert first == rest, f"the tables part: {first} / {rest}"
        self.rows = tables[0]
        for table in tables:
            self._check_ended(table)
            self._check_secrets(table)
        for session_id, row in first.items():
            self._check_row(self.families[session_id], row)
            if session_id in before:
                self._check_step(before[session_id], row)

    def _check_ended(self, table: dict[str, Row]) -> None:
        for row in table.values():
            ended = self.families[row.id].revoked_at is not None
            assert row.is_active is not ended, f"revoked {ended}, but the row: {row}"

    def _check_secrets(self, table: dict[str, Row]) -> None:
        stored = repr(table)
        for family in self.families.values():
            for pair in family.chain[-2:]:
                assert pair.session not in stored, "a session token is stored"
                assert pair.refresh not in stored, "a refresh token is stored"

    def _check_row(self, family: Family, row: Row) -> None:
        pair = family.chain[-1]
        assert row.token_digest == sha256(pair.session), "not the token handed out"
        assert row.refresh_digest == sha256(pair.refresh), "not the token handed out"
        assert abs(row.expires_at - family.expires_at) <= BLUR, "expires at another time"
        family.dated(row.expires_at)
        assert row.refresh_expires_at == family.refresh_expires_at
        assert row.created_at == family.created_at
        family.active_at = row.last_activity_at
        steps = family.generation - len(family.step_ups)
        for world in self.worlds:
            made = world.refreshed(family.id)
            assert made == steps, f"{made} rotations, {steps} steps"

    def _check_step(self, was: Row, row: Row) -> None:
        assert row.last_activity_at >= was.last_activity_at, "activity went backwards"
        if not was.is_active:
            assert row == was, f"a dead row was written: {was} -> {row}"

    # -- presenting tokens -----------------------------------------------------------

    def _present(
        self,
        pair: Pair,
        process: int,
        by: int,
        *,
        part: str = "both",
        passive: bool = False,
        issued: list[Issued] | None = None,
    ) -> Outcome:
        """Make one request with these tokens, and judge what became of it; ``issued``
        gets what each world answered."""
        family, now = self.families[pair.session_id], self.now
        credentials = _credentials(pair, part)
        replays = [len(world.replayed(family.id)) for world in self.worlds]

        async def ask(world: World) -> Outcome:
            engine = world.processes[process]
            answer = await engine.authenticate(credentials, client(by), passive=passive)
            outcome = _outcome(answer)
            if issued is not None and isinstance(answer, Authenticated) and answer.issued:
                issued.append(answer.issued)
            # Of a race that was lost in the one world and won in the other, only the
            # end is the same: the session is over.
            return replace(outcome, reason="") if family.blind else outcome

        outcome = self._same(ask)
        by_session = self._judge_session(family, pair, process, part, passive, outcome)
        if not by_session and part == "session":
            assert not outcome.ok, "believed without a token that lives"
        elif not by_session:
            self._judge_refresh(family, pair, process, by, passive, outcome, replays)
        if not outcome.ok and family.honest and part != "session":
            assert not family.is_live(now), f"an honest client was refused: {outcome}"
        self._look()
        return outcome

    def _judge_session(
        self,
        family: Family,
        pair: Pair,
        process: int,
        part: str,
        passive: bool,
        outcome: Outcome,
    ) -> bool:
        """Whether the session token settled it."""
        if part == "refresh":
            return False
        generation, now = pair.generation, self.now
        may = family.may_enter(generation, process, now)
        if family.must_enter(generation, now):
            assert outcome.ok, f"a live session token was refused: {outcome}"
            assert outcome.tokens is None, "a live session token was replaced"
        elif not may or not outcome.ok or outcome.tokens is not None:
            return False
        key = (family.id, generation)
        sure = not passive or family.must_enter(generation, now)
        was_at, was_sure = self.pending[process].get(key, (None, False))
        self.pending[process][key] = (was_at if passive else now, sure or was_sure)
        return True

    def _judge_refresh(
        self,
        family: Family,
        pair: Pair,
        process: int,
        by: int,
        passive: bool,
        outcome: Outcome,
        replays: list[int],
    ) -> None:
        fate = family.fate(pair.generation, self.now)
        if passive and self._may_be_cached(pair, process) and outcome.ok:
            return
        if fate is Fate.EITHER:
            fate = Fate.REDATE if outcome.ok else Fate.REPLAY
        match fate:
            case Fate.ROTATE | Fate.REISSUE | Fate.REDATE:
                self._judge_reissue(family, pair, process, fate, passive, outcome)
            case Fate.REPLAY:
                assert not outcome.ok, "a replayed token was believed"
                self._judge_replay(family, process, by, replays)
            case Fate.LATE | Fate.DEAD:
                assert not outcome.ok, f"{fate} was believed: {outcome}"

    def _may_be_cached(self, pair: Pair, process: int) -> bool:
        at = self.cached_pairs.get((process, pair.refresh))
        return at is not None and self.now < at + self.policy.max_staleness

    def _judge_reissue(
        self,
        family: Family,
        pair: Pair,
        process: int,
        fate: Fate,
        passive: bool,
        outcome: Outcome,
    ) -> None:
        assert outcome.ok, f"{fate} was refused: {outcome}"
        assert outcome.session_id == family.id, "another session's identity"
        if passive:
            assert outcome.tokens is None, "a passive request rotated"
            self.cached_pairs[process, pair.refresh] = self.now
            if fate is Fate.ROTATE:
                self._proven(family, process)  # its holder received the response
            return
        assert outcome.tokens is not None, f"{fate} handed out nothing"
        if fate is Fate.ROTATE:
            self._learn(family, outcome.tokens)
            return
        current = family.chain[-1]
        assert outcome.tokens == (current.session, current.refresh), "a second successor"
        if fate is Fate.REDATE:
            family.redate(self.now)

    def _proven(self, family: Family, process: int) -> None:
        """The newest tokens are known to have arrived, to this process for now."""
        key = (family.id, family.generation)
        was_at, _ = self.pending[process].get(key, (None, False))
        self.pending[process][key] = (was_at, True)

    def _learn(self, family: Family, tokens: tuple[str, str]) -> None:
        self._new(family, tokens)
        family.rotate(Pair(family.id, family.generation + 1, *tokens), self.now)

    def _new(self, family: Family, tokens: tuple[str, str]) -> None:
        old = {text for pair in family.chain for text in (pair.session, pair.refresh)}
        assert not old & set(tokens), "a generation repeats an older one"

    def _judge_replay(
        self, family: Family, process: int, by: int, replays: list[int]
    ) -> None:
        family.end(self.now, process)
        for world, before in zip(self.worlds, replays, strict=True):
            new = world.replayed(family.id)[before:]
            assert len(new) == 1, f"{len(new)} replays were reported"
            signed_in, presented = client(family.opened_by), client(by)
            assert new[0].presented_by == presented, "the wrong presenter"
            assert new[0].signed_in_by.address == signed_in.address
            reported = new[0].signed_in_by.fingerprint
            if "fingerprint" not in world.base.names.forgets or reported is not None:
                assert reported == signed_in.fingerprint

    def _answered(self, browser: Browser, outcome: Outcome, response: str) -> None:
        if outcome.tokens is None or outcome.deliver_until is None:
            return
        assert outcome.session_id is not None
        pair = self.families[outcome.session_id].chain[-1]
        assert outcome.tokens == (pair.session, pair.refresh)
        browser.expect(pair, outcome.deliver_until, response)

    # -- rules: signing in, using, losing --------------------------------------------

    def _living(self) -> list[Family]:
        return [f for f in self.families.values() if f.is_live(self.now)]

    def _jars(self) -> list[Browser]:
        """Who has cookies; of those only the ones that are worth something, if any."""
        jars = [b for b in self.browsers if b.jar is not None]
        living = {family.id for family in self._living()}
        return [b for b in jars if b.jar and b.jar.session_id in living] or jars

    def _has_jar(self) -> bool:
        return bool(self._jars())

    @precondition(lambda self: len(self._living()) < MAX_FAMILIES)
    @rule(
        browser=some_browser,
        process=some_process,
        user=st.sampled_from(USERS),
        remember=st.sampled_from([True, True, False]),
    )
    def login(self, browser: int, process: int, user: str, remember: bool) -> None:
        """Sign in, in place of what this browser was signed in as."""
        user = self.bases[0].names.users[USERS.index(user)]
        jar = self.browsers[browser].jar
        replaces = None if jar is None else jar.session_id

        async def sign_in(world: World) -> Outcome:
            engine = world.processes[process]
            try:
                issued = await engine.create(
                    user, client=client(browser), remember=remember, replaces=replaces
                )
            except LoginRefused as exc:
                return Outcome(ok=False, reason=exc.reason)
            return _issued(issued)

        outcome = self._same(sign_in)
        assert outcome.ok is (user not in self.disabled), f"sign-in: {outcome}"
        if outcome.ok:
            if replaces is not None:
                self.families[replaces].end(self.now, process)
            family = self._open(outcome, user, browser, remember)
            self.browsers[browser] = Browser(browser, family.chain[0])
        self._look()

    def _open(self, outcome: Outcome, user: str, by: int, remember: bool) -> Family:
        assert outcome.session_id is not None
        assert outcome.tokens is not None
        longest = self.policy.lifetime(remember=remember)
        family = Family(
            id=outcome.session_id,
            user_id=user,
            opened_by=by,
            created_at=self.now,
            remember=remember,
            policy=self.policy,
            chain=[Pair(outcome.session_id, 0, *outcome.tokens)],
            rotated_at=self.now,
            expires_at=self.now + self.policy.session_ttl,
            refresh_expires_at=self.now + min(self.policy.refresh_ttl, longest),
            first_dated=[self.now],
            active_at=self.now,
        )
        self.families[family.id] = family
        return family

    @precondition(_has_jar)
    @rule(
        data=st.data(),
        process=some_process,
        response=some_response,
        part=some_part,
        passive=seldom,
    )
    def use(
        self, data: st.DataObject, process: int, response: str, part: str, passive: bool
    ) -> None:
        """One request of a browser; its response arrives, is lost, or comes later."""
        browser = data.draw(st.sampled_from(self._jars()))
        assert browser.jar is not None
        self._mind_early_refresh(browser, part)
        outcome = self._present(
            browser.jar, process, browser.number, part=part, passive=passive
        )
        self._answered(browser, outcome, response)

    def _mind_early_refresh(self, browser: Browser, part: str) -> None:
        """Who refreshes before its time awaits no older answer: a browser does not, and
        a program has one refresh under way."""
        if part == "refresh":
            browser.coming = None

    @precondition(_has_jar)
    @rule(
        data=st.data(),
        process=some_process,
        off=st.sampled_from([timedelta(0), TICK, SECOND, 400 * SECOND + 7 * TICK]),
        response=some_response,
    )
    def turn(
        self, data: st.DataObject, process: int, off: timedelta, response: str
    ) -> None:
        """A browser comes back when its session token has expired."""
        browser = data.draw(st.sampled_from(self._jars()))
        assert browser.jar is not None
        family = self.families[browser.jar.session_id]
        self.clock.advance(max(timedelta(0), family.expires_at + off - self.now))
        outcome = self._present(browser.jar, process, browser.number)
        self._answered(browser, outcome, response)

    @precondition(_has_jar)
    @rule(
        data=st.data(),
        process=some_process,
        passive=seldom,
        off=st.sampled_from([None, TICK, SECOND]),
    )
    def settle(
        self, data: st.DataObject, process: int, passive: bool, off: timedelta | None
    ) -> None:
        """A browser uses its newest token, which is written down; perhaps grace ends."""
        browser = data.draw(st.sampled_from(self._jars()))
        assert browser.jar is not None
        family = self.families[browser.jar.session_id]
        self._present(browser.jar, process, browser.number, passive=passive)
        self._flush(process)
        if off is not None:
            end = family.rotated_at + self.policy.grace + off
            self.clock.advance(max(timedelta(0), end - self.now))

    @precondition(_has_jar)
    @rule(data=st.data(), process=some_process, late=st.booleans(), off=whole)
    def poll(self, data: st.DataObject, process: int, late: bool, off: timedelta) -> None:
        """A page polls with the refresh token alone, which is written down."""
        browser = data.draw(st.sampled_from(self._jars()))
        assert browser.jar is not None
        self._poll(browser, process)
        if late:
            self.clock.advance(off)

    def _poll(self, browser: Browser, process: int) -> None:
        assert browser.jar is not None
        self._present(browser.jar, process, browser.number, part="refresh", passive=True)
        self._flush(process)

    @precondition(_has_jar)
    @rule(
        data=st.data(),
        process=some_process,
        expired=st.booleans(),
        answered=st.booleans(),
        frame=st.booleans(),
    )
    def open_socket(
        self,
        data: st.DataObject,
        process: int,
        expired: bool,
        answered: bool,
        frame: bool,
    ) -> None:
        """A browser opens a WebSocket; the answer arrives or is lost. If it arrived, a
        frame of the client says so."""
        browser = data.draw(st.sampled_from(self._jars()))
        assert browser.jar is not None
        if expired:
            self._run_out(browser.jar)
        self._open_socket(browser, process, answered=answered, frame=frame)

    def _run_out(self, pair: Pair) -> None:
        family = self.families[pair.session_id]
        self.clock.advance(max(timedelta(0), family.expires_at - self.now))

    def _open_socket(
        self, browser: Browser, process: int, *, answered: bool, frame: bool
    ) -> None:
        assert browser.jar is not None
        family = self.families[browser.jar.session_id]
        issued: list[Issued] = []
        outcome = self._present(browser.jar, process, browser.number, issued=issued)
        self._answered(browser, outcome, "taken" if answered else "lost")
        if issued and answered and frame:
            for world, given in zip(self.worlds, issued, strict=True):
                world.processes[process].mark_seen(given)
            self._proven(family, process)

    @precondition(_has_jar)
    @rule(
        data=st.data(),
        requests=st.lists(st.tuples(some_process, some_response), min_size=2, max_size=3),
    )
    def tabs(self, data: st.DataObject, requests: list[tuple[int, str]]) -> None:
        """Requests that left with the same cookies, before any answer came."""
        browser = data.draw(st.sampled_from(self._jars()))
        pair = browser.jar
        assert pair is not None
        for process, response in requests:
            outcome = self._present(pair, process, browser.number)
            self._answered(browser, outcome, response)

    @precondition(_has_jar)
    @rule(data=st.data(), process=some_process, response=some_response)
    def refresh(self, data: st.DataObject, process: int, response: str) -> None:
        """A program exchanges its refresh token, before it has to or after."""
        browser = data.draw(st.sampled_from(self._jars()))
        pair = browser.jar
        assert pair is not None
        self._mind_early_refresh(browser, "refresh")
        family = self.families[pair.session_id]
        replays = [len(world.replayed(family.id)) for world in self.worlds]

        async def exchange(world: World) -> Outcome:
            issued = await world.processes[process].refresh(
                pair.refresh, client=client(browser.number)
            )
            return Outcome(ok=False) if issued is None else _issued(issued)

        outcome = self._same(exchange)
        self._judge_refresh(family, pair, process, browser.number, False, outcome, replays)
        if not outcome.ok and family.honest:
            assert not family.is_live(self.now), "an honest program was refused"
        self._look()
        self._answered(browser, outcome, response)

    @precondition(_has_jar)
    @rule(
        data=st.data(),
        process=some_process,
        level=st.integers(1, 3),
        answered=st.booleans(),
        really=seldom,
    )
    def step_up(
        self,
        data: st.DataObject,
        process: int,
        level: int,
        answered: bool,
        really: bool,
    ) -> None:
        """A user proves more: other tokens, which no old one leads to. If the answer is
        lost, the session is."""
        browser = data.draw(st.sampled_from(self._jars()))
        pair = browser.jar
        assert pair is not None
        if not really:
            return
        family, now = self.families[pair.session_id], self.now
        reached = family.level >= level

        async def raise_level(world: World) -> Outcome:
            answer = await world.processes[process].step_up(family.id, level)
            if answer is None:
                return Outcome(ok=False)
            assert answer.session.level == max(level, family.level), "another level"
            if answer.issued is None:
                return Outcome(ok=True, session_id=answer.session.id)
            return _issued(answer.issued)

        outcome = self._same(raise_level)
        assert outcome.ok is family.is_live(now), f"step-up: {outcome}"
        if not outcome.ok:
            return
        assert (outcome.tokens is None) is reached, "new tokens, or none"
        if outcome.tokens is not None:
            self._stepped_up(family, outcome.tokens, level, process)
            browser.coming = None  # what is on its way leaves without its cookies
            if answered:
                browser.jar = family.chain[-1]
            else:
                family.honest = False
        self._look()

    def _stepped_up(
        self, family: Family, tokens: tuple[str, str], level: int, process: int
    ) -> None:
        self._new(family, tokens)
        pair = Pair(family.id, family.generation + 1, *tokens)
        family.step_up(pair, self.now, process)
        family.level = level
        old = {p.refresh for p in family.chain[:-1]}
        self.cached_pairs = {
            k: v for k, v in self.cached_pairs.items() if k[0] != process or k[1] not in old
        }

    @precondition(lambda self: any(b.coming for b in self.browsers))
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """A slow response arrives; the cookies are on it unless it started too late."""
        browser = data.draw(st.sampled_from([b for b in self.browsers if b.coming]))
        assert browser.coming
        pair, until = browser.coming.pop(data.draw(st.integers(0, len(browser.coming) - 1)))
        if self.clock() <= until:
            browser.jar = pair

    # -- rules: processes and time ---------------------------------------------------

    @rule(processes=st.sampled_from([[0], [1], [2], [0, 1, 2]]))
    def flush(self, processes: list[int]) -> None:
        """These processes write down what they noticed."""
        for process in processes:
            self._flush(process)

    def _flush(self, process: int) -> None:
        self._same(lambda world: world.processes[process].flush())
        noticed, self.pending[process] = self.pending[process], {}
        for (session_id, generation), (at, sure) in noticed.items():
            self._noted(self.families[session_id], generation, at, sure)
        self._look()

    def _noted(
        self, family: Family, generation: int, at: datetime | None, sure: bool
    ) -> None:
        if generation != family.generation or family.revoked_at is not None:
            return
        if family.seen is not True:
            family.seen = True if sure else None
        if at is None:
            return
        rows = self._run(self.worlds[0].base.rows())
        slack = self.policy.touch_interval
        active = rows[family.id].last_activity_at
        assert active >= at - slack, f"used at {at}, written down as {active}"

    @precondition(_has_jar)
    @rule(data=st.data(), processes=st.permutations(range(PROCESSES)), gap=small | whole)
    def overlap(
        self, data: st.DataObject, processes: Sequence[int], gap: timedelta
    ) -> None:
        """Two processes notice the same session and write it down in the wrong order."""
        early, late, _ = processes
        browser = data.draw(st.sampled_from(self._jars()))
        assert browser.jar is not None
        self._present(browser.jar, early, browser.number, part="session")
        self.clock.advance(gap)
        self._present(browser.jar, late, browser.number, part="session")
        self._flush(late)
        self._flush(early)

    @precondition(lambda self: any(self.pending))
    @rule(process=some_process)
    def kill(self, process: int) -> None:
        """kill -9: what this process noticed is lost, its successor knows nothing."""
        for world in self.worlds:
            self._run(world.kill(process))
        self.pending[process] = {}
        self.cached_pairs = {k: v for k, v in self.cached_pairs.items() if k[0] != process}
        self._look()

    @rule(by=small | whole)
    def wait(self, by: timedelta) -> None:
        """A moment passes."""
        self.clock.advance(by)

    @precondition(lambda self: bool(self._living()))
    @rule(data=st.data(), off=around)
    def wait_for_a_boundary(self, data: st.DataObject, off: timedelta) -> None:
        """Time passes to about the end of a grace or of a session token."""
        family = data.draw(st.sampled_from(self._living()))
        ends = [family.rotated_at + self.policy.grace, family.expires_at]
        end = data.draw(st.sampled_from(ends)) + off
        if end > self.now:
            self.clock.advance(end - self.now)

    @precondition(_has_jar)
    @rule(by=long, really=seldom)
    def sleep(self, by: timedelta, really: bool) -> None:
        """Hours and days pass, but rarely: sessions must not all end."""
        if really:
            self.clock.advance(by)

    # -- rules: thieves --------------------------------------------------------------

    @precondition(_has_jar)
    @rule(data=st.data(), thief=some_browser, really=seldom)
    def steal(self, data: st.DataObject, thief: int, really: bool) -> None:
        """Somebody copies a jar."""
        victim = data.draw(st.sampled_from(self._jars()))
        if victim.number == thief or victim.jar is None or not really:
            return
        self.families[victim.jar.session_id].honest = False
        self.browsers[thief] = Browser(thief, victim.jar)

    @precondition(_has_jar)
    @rule(
        data=st.data(),
        process=some_process,
        way=st.sampled_from(["poll", "socket"]),
        off=st.sampled_from([TICK, SECOND, timedelta(hours=5)]),
        really=seldom,
    )
    def lurk(
        self, data: st.DataObject, process: int, way: str, off: timedelta, really: bool
    ) -> None:
        """A thief goes one rotation ahead and from then on only polls with the refresh
        token, or only keeps a socket open; then the victim comes back."""
        victim = data.draw(st.sampled_from(self._jars()))
        assert victim.jar is not None
        if not really:
            return
        family = self.families[victim.jar.session_id]
        family.honest = False
        thief = Browser(BROWSERS, victim.jar)
        self._run_out(victim.jar)
        if way == "poll":
            outcome = self._present(victim.jar, process, thief.number)
            self._answered(thief, outcome, "taken")
            self._poll(thief, process)
        else:
            self._open_socket(thief, process, answered=True, frame=True)
            self._flush(process)
        end = family.rotated_at + self.policy.grace + off
        self.clock.advance(max(timedelta(0), end - self.now))
        self._present(victim.jar, process, victim.number)

    @precondition(lambda self: any(f.generation for f in self.families.values()))
    @rule(
        data=st.data(),
        back=st.integers(1, 3),
        process=some_process,
        by=some_browser,
        part=some_part,
        passive=seldom,
    )
    def replay(
        self,
        data: st.DataObject,
        back: int,
        process: int,
        by: int,
        part: str,
        passive: bool,
    ) -> None:
        """Somebody shows a token of one to three generations ago."""
        aged = [f for f in self.families.values() if f.generation]
        living = [f for f in aged if f.is_live(self.now)]
        family = data.draw(st.sampled_from(living or aged))
        pair = family.chain[max(0, family.generation - back)]
        family.honest = False
        outcome = self._present(pair, process, by, part=part, passive=passive)
        if outcome.ok and outcome.tokens is not None:
            self._answered(self.browsers[by], outcome, "taken")

    @precondition(lambda self: bool(self.families))
    @rule(
        data=st.data(),
        process=some_process,
        way=st.sampled_from(["signature", "mutated", "wrong key", "other session"]),
        passive=seldom,
    )
    def forge(self, data: st.DataObject, process: int, way: str, passive: bool) -> None:
        """Somebody makes tokens up: no query, no write, whatever the session."""
        family = data.draw(st.sampled_from(list(self.families.values())))
        position = data.draw(st.integers(0, 42))
        session, refresh = _forged(family.chain[-1], way, position)
        credentials = Credentials(session=(session,), refresh=(refresh,), sent=True)
        before = [world.base.store.queries for world in self.worlds]

        async def ask(world: World) -> Outcome:
            engine = world.processes[process]
            answer = await engine.authenticate(credentials, client(9), passive=passive)
            return _outcome(answer)

        outcome = self._same(ask)
        assert not outcome.ok, "a forged token was believed"
        after = [world.base.store.queries for world in self.worlds]
        assert before == after, "a forged token caused a query"
        rows = self.rows
        self._look()
        assert rows == self.rows, "a forged token changed a row"

    # -- rules: ends -----------------------------------------------------------------

    @precondition(lambda self: bool(self._living()))
    @rule(
        data=st.data(),
        process=some_process,
        how=st.sampled_from(["revoke", "revoke_user", "logout", "disable", "own"]),
        really=seldom,
    )
    def end(self, data: st.DataObject, process: int, how: str, really: bool) -> None:
        """Somebody ends a session; not too often, for dead sessions teach little."""
        if not really:
            return
        family = data.draw(st.sampled_from(self._living()))
        if how == "disable":
            self._disable(family.user_id)
        elif how == "logout":
            self._logout(family, process)
        elif how == "revoke_user":
            self._revoke_user(family, process, keep=data.draw(st.booleans()))
        else:
            self._revoke(family, process, own=how == "own")
        self._look()

    def _disable(self, user_id: str) -> None:
        self._each(lambda world: world.base.enable(user_id, False))
        self.disabled.add(user_id)
        for family in self.families.values():
            if family.user_id == user_id:
                family.disabled_at = self.now

    def _logout(self, family: Family, process: int) -> None:
        jars = [b for b in self._jars() if b.jar and b.jar.session_id == family.id]
        if not jars or jars[0].jar is None:
            return
        outcome = self._present(jars[0].jar, process, jars[0].number)
        if outcome.ok:
            self._revoke(family, process, own=False)
        jars[0].jar = jars[0].coming = None

    def _revoke(self, family: Family, process: int, *, own: bool) -> None:
        other_user = next(u for u in self.bases[0].names.users if u != family.user_id)
        ids = {"user_id": family.user_id} if own else {}

        async def revoke(world: World) -> tuple[bool, bool]:
            engine = world.processes[process]
            stolen = await engine.revoke(family.id, user_id=other_user)
            return stolen, await engine.revoke(
                family.id, reason="by an administrator", **ids
            )

        was_live = family.revoked_at is None
        assert self._same(revoke) == (False, was_live), "ended by the wrong user"
        family.end(self.now, process)

    def _revoke_user(self, family: Family, process: int, *, keep: bool) -> None:
        kept = family.id if keep else None
        self._same(
            lambda world: world.processes[process].revoke_user(family.user_id, keep=kept)
        )
        for other in self.families.values():
            if other.user_id == family.user_id and other.id != kept:
                other.end(self.now, process)
                other.known_dead_at.add(process)

    @precondition(lambda self: bool(self.disabled))
    @rule()
    def enable(self) -> None:
        """An administrator enables every user again."""
        for user_id in self.disabled:
            self._each(lambda world, u=user_id: world.base.enable(u, True))
        self.disabled.clear()
        for family in self.families.values():
            family.disabled_at = None
        # A sign-in that was refused for good is refused from now on by no clock.
        self.clock.advance(self.policy.max_staleness)
        self._look()

    # -- rules: races ----------------------------------------------------------------

    @precondition(_has_jar)
    @rule(data=st.data(), pauses=turns, early=st.booleans())
    def race_refreshes(self, data: st.DataObject, pauses: list[int], early: bool) -> None:
        """Every process refreshes the same token at once: one rotation, one successor."""
        browser = data.draw(st.sampled_from(self._jars()))
        pair = browser.jar
        assert pair is not None
        family = self.families[pair.session_id]
        fate = family.fate(pair.generation, self.now)
        if fate not in (Fate.ROTATE, Fate.REISSUE, Fate.REDATE):
            return
        browser.coming = None
        outcomes = self._race(pair, browser, pauses, twice=early)
        assert len(set(outcomes)) == 1, f"a race ended in {set(outcomes)}"
        outcome = outcomes[0]
        self._judge_reissue(family, pair, 0, fate, False, outcome)
        self._look()
        until = self.clock() + self.policy.grace.total_seconds()
        outcome = replace(outcome, deliver_until=until)
        self._answered(browser, outcome, "taken" if early else "lost")

    def _race(
        self, pair: Pair, browser: Browser, pauses: list[int], *, twice: bool
    ) -> list[Outcome]:
        credentials = _credentials(pair, "refresh")

        async def ask(world: World, process: int) -> Outcome:
            engine = world.processes[process]
            answer = await engine.authenticate(credentials, client(browser.number))
            return replace(_outcome(answer), deliver_until=None)

        async def all_at_once(world: World) -> list[Outcome]:
            _dawdle(world, pauses)
            runners = list(range(PROCESSES)) * (1 + twice)
            return list(await asyncio.gather(*(ask(world, p) for p in runners)))

        return [outcome for outcomes in self._each(all_at_once) for outcome in outcomes]

    @precondition(_has_jar)
    @rule(
        data=st.data(),
        process=some_process,
        pauses=overtaken,
        part=st.sampled_from(["session", "refresh"]),
        really=st.booleans(),
    )
    def race_revocation(
        self,
        data: st.DataObject,
        process: int,
        pauses: list[int],
        part: str,
        really: bool,
    ) -> None:
        """A request races the revocation of its session in the same process: whoever
        wins, the session is over once the revocation has returned."""
        browser = data.draw(st.sampled_from(self._jars()))
        pair = browser.jar
        assert pair is not None
        family = self.families[pair.session_id]
        if not really or family.fate(pair.generation, self.now) is not Fate.ROTATE:
            return
        if part == "session" and self.now + self.policy.max_staleness < family.expires_at:
            self.clock.advance(self.policy.max_staleness)  # so that it must be read

        async def race(world: World) -> set[str]:
            _dawdle(world, pauses)
            engine = world.processes[process]
            answer, _ = await asyncio.gather(
                engine.authenticate(_credentials(pair, part), client(browser.number)),
                engine.revoke(family.id),
            )
            issued = _outcome(answer).tokens
            return {pair.session, pair.refresh, *(issued or ())}

        given = self._each(race)
        family.blind = True  # how far it came is the race's own affair
        family.end(self.now, process)
        self._look()
        for world, texts in zip(self.worlds, given, strict=True):
            self._run(self._all_refused(world, process, texts))

    async def _all_refused(self, world: World, process: int, texts: set[str]) -> None:
        for text in texts:
            credentials = Credentials(
                session=(text.encode(),), refresh=(text.encode(),), sent=True
            )
            answer = await world.processes[process].authenticate(credentials, client(0))
            assert not _outcome(answer).ok, "revoked, and believed by the same process"


def _dawdle(world: World, pauses: list[int]) -> None:
    for offset, wire in enumerate(world.wires):
        wire.pauses = iter(pauses[offset:])


def _credentials(pair: Pair, part: str) -> Credentials:
    session = () if part == "refresh" else (pair.session.encode(),)
    refresh = () if part == "session" else (pair.refresh.encode(),)
    return Credentials(session=session, refresh=refresh, sent=True, ambient=True)


def _outcome(answer: Answer) -> Outcome:
    if isinstance(answer, Unknown):
        return Outcome(ok=False, reason=f"unknown: {answer.cause}")
    if isinstance(answer, Invalid):
        return Outcome(ok=False, reason=answer.reason)
    if answer.issued is None:
        return Outcome(ok=True, session_id=answer.session.id)
    return _issued(answer.issued)


def _issued(issued: Issued) -> Outcome:
    return Outcome(
        ok=True,
        session_id=issued.session.id,
        tokens=(issued.session_token, issued.refresh_token),
        deliver_until=issued.deliver_until,
    )


def _forged(pair: Pair, way: str, position: int) -> tuple[bytes, bytes]:
    session, refresh = pair.session.encode(), pair.refresh.encode()
    if way == "wrong key":
        made = forgers_tokens().mint(pair.session_id, bytes(64), remember=True)
        return made.session.encode(), made.refresh.encode()
    if way == "other session":
        other = f"01JGQ{999:021d}".encode()
        return session[::-1], other + refresh[len(other) :]
    if way == "signature":
        return _changed(session, -1 - position), _changed(refresh, -1 - position)
    return _changed(session, position), _changed(refresh, 29 + position)


def _changed(text: bytes, position: int) -> bytes:
    position %= len(text)
    other = b"B" if text[position : position + 1] == b"A" else b"A"
    return text[:position] + other + text[position + 1 :]
