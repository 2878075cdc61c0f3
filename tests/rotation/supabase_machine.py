"""The state machine of Supabase: browsers that lose responses, thieves, dying processes.

Every response, event and row is predicted: see :mod:`tests.rotation.supabase_stage`.
"""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from handstamp.core.models import Issued
from handstamp.errors import LoginRefused
from handstamp.events import Revoked
from tests.rotation.supabase_families import MARGIN, AuthFamily, Fate, Settings, is_row
from tests.rotation.supabase_stage import (
    BROWSERS,
    PROCESSES,
    SETTINGS,
    TEN,
    TOLD,
    AuthBrowser,
    Jar,
    SupabaseStage,
    jar_of,
)
from tests.rotation.supabase_worlds import USERS, all_at_once, client
from tests.support.supabase import HOUR, SECOND, STEP

MAX_FAMILIES = 2
some_process = st.integers(0, PROCESSES - 1)
some_browser = st.integers(0, BROWSERS - 1)
some_user = st.sampled_from(USERS)
some_response = st.sampled_from(["taken", "taken", "lost", "lost", "delayed"])
seldom = st.sampled_from([False, False, False, True])
around = st.sampled_from([-SECOND, -STEP, timedelta(0), STEP, SECOND])
some_visit = st.tuples(
    some_process,
    st.booleans(),
    st.sampled_from([STEP, SECOND, TEN, 60 * SECOND]),
    some_response,
)
moments = st.sampled_from([SECOND, 3 * SECOND, TEN, 11 * SECOND, 30 * SECOND, 121 * SECOND])
ages = st.sampled_from([301 * SECOND, 3 * HOUR, timedelta(days=40)])


Deployment = tuple[Settings, int, int]
"""GoTrue's settings, its algorithm, and how many processes upgrade what they find."""
DEPLOYMENTS: list[Deployment] = [
    (settings, *kind) for settings in SETTINGS for kind in ((0, 0), (0, 1), (0, 2), (2, 0))
]


class SupabaseMachine(SupabaseStage):
    """Everybody who has a token of one Supabase Auth, and everything they do."""

    def _living(self) -> list[AuthFamily]:
        return [f for f in self.families.values() if self.is_live(f)]

    def _jars(self) -> list[AuthBrowser]:
        """Who has a cookie; of those only the ones that are worth something, if any."""
        jars = [b for b in self.browsers if b.jar is not None]
        living = {family.id for family in self._living()}
        return [b for b in jars if b.jar and b.jar.session_id in living] or jars

    def _draw(self, data: st.DataObject) -> tuple[AuthBrowser, Jar, AuthFamily]:
        browser = data.draw(st.sampled_from(self._jars()))
        assert browser.jar is not None
        return browser, browser.jar, self.families[browser.jar.session_id]

    # -- signing in, using, losing -----------------------------------------------------

    deployments: Sequence[Deployment] = DEPLOYMENTS

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        """Fresh processes, the last of them perhaps deployed anew, and two browsers."""
        settings, version, upgraded = data.draw(st.sampled_from(self.deployments))
        self.deploy(settings, version)
        for process in range(PROCESSES - upgraded, PROCESSES):
            self.restart(process, upgrades=True)
        for browser, user in enumerate(USERS):
            self._sign_in(browser, process=0, user=user)

    @precondition(lambda self: len(self._living()) < MAX_FAMILIES)
    @rule(browser=some_browser, process=some_process, user=some_user)
    def login(self, browser: int, process: int, user: str) -> None:
        """Sign in, in place of what this browser was signed in as."""
        self._sign_in(browser, process, user)

    def _sign_in(self, browser: int, process: int, user: str) -> None:
        jar, sessions = self.browsers[browser].jar, self.processes[process].sessions
        replaces = None if jar is None else jar.session_id
        signing_in = sessions.create(user, client=client(browser), replaces=replaces)
        if self.is_banned(user):
            with pytest.raises(LoginRefused, match="user disabled"):
                self.run(signing_in)
            self.nothing_happened([])
            return
        held = jar_of(self.run(signing_in))
        if replaces is not None:
            self._ended(self.families[replaces], process)
        self.families[held.session_id] = AuthFamily(
            id=held.session_id,
            user_id=user,
            created_at=self.now,
            by=browser,
            settings=self.settings,
            chain=[held.text],
        )
        self.bodies[held.text] = held
        self.browsers[browser] = AuthBrowser(browser, held)
        self.look()

    def _ended(self, family: AuthFamily, process: int) -> None:
        """A process that ends a session believes no token of its user any more."""
        family.gone = True
        for other in self.families.values():
            if other.user_id == family.user_id:
                self.believed.pop((process, other.id), None)

    @precondition(lambda self: self._jars())
    @rule(data=st.data(), process=some_process, response=some_response, passive=seldom)
    def use(self, data: st.DataObject, process: int, response: str, passive: bool) -> None:
        """One request of a browser; its response arrives, is lost, or comes later."""
        browser, jar, _ = self._draw(data)
        issued = self.ask(jar, process, browser.number, passive=passive)
        browser.expect(issued, response)

    @precondition(lambda self: self._jars())
    @rule(data=st.data(), visits=st.lists(some_visit, min_size=1, max_size=4))
    def turn(
        self, data: st.DataObject, visits: list[tuple[int, bool, timedelta, str]]
    ) -> None:
        """A browser comes back whenever its access token wants to be replaced, or later."""
        browser, _, _ = self._draw(data)
        for process, dead, off, response in visits:
            assert browser.jar is not None
            due = browser.jar.expires_at - (timedelta(0) if dead else MARGIN)
            self._wait_until(due + off)
            browser.expect(self.ask(browser.jar, process, browser.number), response)

    @precondition(lambda self: self._jars())
    @rule(
        data=st.data(),
        requests=st.lists(st.tuples(some_process, some_response), min_size=2, max_size=3),
    )
    def tabs(self, data: st.DataObject, requests: list[tuple[int, str]]) -> None:
        """Requests that left with the same cookie, before any answer came."""
        browser, jar, _ = self._draw(data)
        for process, response in requests:
            browser.expect(self.ask(jar, process, browser.number), response)

    @precondition(lambda self: self._jars())
    @rule(data=st.data(), process=some_process, response=some_response)
    def refresh(self, data: st.DataObject, process: int, response: str) -> None:
        """A program refreshes before it has to, with no older answer under way."""
        self._refresh_as(data, process, "lost" if response == "delayed" else response)

    def _refresh_as(self, data: st.DataObject, process: int, response: str) -> None:
        browser, jar, family = self._draw(data)
        browser.coming.clear()
        issued = self.exchange(jar.text, family, process, browser.number)
        browser.expect(issued, response)

    @precondition(lambda self: any(b.coming for b in self.browsers))
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """A slow response arrives; the cookie is on it unless it started too late."""
        browser = data.draw(st.sampled_from([b for b in self.browsers if b.coming]))
        jar, until = browser.coming.pop(data.draw(st.integers(0, len(browser.coming) - 1)))
        if self.clock() <= until:
            browser.jar = jar

    # -- time, and processes -----------------------------------------------------------

    @rule(by=moments)
    def wait(self, by: timedelta) -> None:
        """A moment passes."""
        self.clock.advance(by)

    def _wait_until(self, end: datetime) -> None:
        self.clock.advance(max(timedelta(0), end - self.now))

    @precondition(lambda self: bool(self._living()))
    @rule(data=st.data(), off=around)
    def wait_for_a_boundary(self, data: st.DataObject, off: timedelta) -> None:
        """Time passes to about the end of an interval, of a limit or of a ban."""
        family = data.draw(st.sampled_from(self._living()))
        used = [row.updated_at for row in family.rows[-3:]] + [family.last_refreshed_at]
        ends = [at + self.settings.interval for at in used] + family.limits()
        end = data.draw(st.sampled_from([*ends, *self.banned.values()]))
        self._wait_until(end + off)

    @rule(by=ages, really=seldom)
    def sleep(self, by: timedelta, really: bool) -> None:
        """Hours and days pass, but rarely: sessions must not all end."""
        if really:
            self.clock.advance(by)

    @rule(process=some_process, upgrades=seldom, really=seldom)
    def kill(self, process: int, upgrades: bool, really: bool) -> None:
        """kill -9: its successor goes on with what is in the tables, and is perhaps one
        that makes counters of rows, beside others that do not."""
        if really:
            self.restart(process, upgrades=upgrades)

    # -- thieves -----------------------------------------------------------------------

    @precondition(lambda self: self._jars())
    @rule(data=st.data(), thief=some_browser, really=seldom)
    def steal(self, data: st.DataObject, thief: int, really: bool) -> None:
        """Somebody copies a jar."""
        victim, jar, family = self._draw(data)
        if really and victim.number != thief:
            family.honest = False
            self.browsers[thief] = AuthBrowser(thief, jar)

    @precondition(lambda self: self._jars())
    @rule(
        data=st.data(),
        hurry=st.lists(some_process, min_size=2, max_size=2) | st.just([]),
        off=st.sampled_from([TEN, timedelta(0), SECOND, TEN - STEP, TEN + STEP]),
        back=st.sampled_from([2, 1, 3]),
        process=some_process,
        by=some_browser,
        program=st.booleans(),
    )
    def replay(
        self,
        data: st.DataObject,
        hurry: list[int],
        off: timedelta,
        back: int,
        process: int,
        by: int,
        program: bool,
    ) -> None:
        """A program refreshes as often as it likes, and somebody shows a token of one to
        three answers ago."""
        for one in hurry:
            self._refresh_as(data, one, "taken")
        _, _, family = self._draw(data)
        text = family.chain[max(0, len(family.chain) - 1 - back)]
        family.honest = False
        self.clock.advance(off)
        if program:
            self.exchange(text, family, process, by)
        else:
            self.ask(self.bodies[text], process, by)

    @precondition(lambda self: bool(self.families))
    @rule(
        data=st.data(),
        process=some_process,
        way=st.sampled_from(["no row", "signature", "other session", "malformed"]),
    )
    def forge(self, data: st.DataObject, process: int, way: str) -> None:
        """A forged token is presented: it is refused, without an event."""
        families = list(self.families.values())
        text = data.draw(st.sampled_from(families)).chain[-1]
        other = data.draw(st.sampled_from(families)).id
        engine = self.processes[process]
        engine.events.clear()
        forged = _forged(text, way, other)
        assert self.run(engine.sessions.refresh(forged)) is None, "a forgery was believed"
        self.nothing_happened(engine.events)

    # -- ends --------------------------------------------------------------------------

    @precondition(lambda self: bool(self._living()))
    @rule(
        data=st.data(),
        process=some_process,
        how=st.sampled_from(["logout", "others", "gotrue"]),
        really=seldom,
    )
    def end(self, data: st.DataObject, process: int, how: str, really: bool) -> None:
        """Somebody ends a session; not too often, for dead sessions teach little."""
        if not really:
            return
        family = data.draw(st.sampled_from(self._living()))
        sessions, user = self.processes[process].sessions, family.user_id
        if how == "logout":
            assert not self.run(sessions.revoke(family.id, user_id=_not(user)))
            assert self.run(sessions.revoke(family.id, user_id=user))
            self._ended(family, process)
        elif how == "others":
            self.run(sessions.revoke_user(user, keep=family.id))
            for other in self.families.values():
                if other.user_id == user and other is not family:
                    self._ended(other, process)
            self.believed.pop((process, family.id), None)
        else:
            self.run(self.base.delete(family.id))
            family.gone = True
        self.look()
        if not self.is_live(family):
            self._come_back(family, process)

    def _come_back(self, family: AuthFamily, process: int) -> None:
        """Whoever holds it tries at once, and in two ways."""
        text = family.chain[-1]
        self.ask(self.bodies[text], process, family.by)
        self.exchange(text, family, process, family.by)

    @precondition(lambda self: bool(self._living()))
    @rule(
        data=st.data(),
        process=some_process,
        lasts=st.sampled_from([SECOND, TEN, HOUR]),
        pardoned=st.sampled_from([True, True, False]),
    )
    def ban(
        self, data: st.DataObject, process: int, lasts: timedelta, pardoned: bool
    ) -> None:
        """An administrator shuts a user out, mostly by mistake."""
        family = data.draw(st.sampled_from(self._living()))
        self.banned[family.user_id] = self.now + lasts
        self.run(self.base.ban(family.user_id, self.now + lasts))
        self.look()
        self._come_back(family, process)
        if pardoned:
            self._pardon()

    def _pardon(self) -> None:
        """Enable every user again, at once."""
        for user in self.banned:
            self.run(self.base.ban(user, None))
        self.banned.clear()
        self.look()

    # -- races -------------------------------------------------------------------------

    @precondition(lambda self: self._jars())
    @rule(data=st.data(), process=some_process, back=st.sampled_from([0, 0, 1]))
    def race(self, data: st.DataObject, process: int, back: int) -> None:
        """Processes of one deployment refresh one token at once, twice each: in whatever
        order they come, it ends as if they had come one after the other."""
        browser, jar, family = self._draw(data)
        if not self.is_live(family):
            return
        text = jar.text if not back else family.chain[max(0, len(family.chain) - 3)]
        browser.coming.clear()
        promised = not back and self.promised(family, text)
        racers = self._alike(process)
        given = self._race(text, racers, browser.number)
        fates = [self.settle(family, text, process, browser.number, i) for i in given]
        reported = Counter(kind for fate in fates for kind in TOLD[fate])
        reported[Revoked] += sum(fate is Fate.ENDS for fate in fates) * (not is_row(text))
        events = [event for racer in racers for event in self.processes[racer].events]
        assert Counter(map(type, events)) == +reported, f"{fates}, but events {events}"
        family.honest = family.honest and not (back or family.was_upgraded(text))
        assert all(given) or not promised, "an honest browser was signed out"
        for racer in racers:
            self.believed.pop((racer, family.id), None)
        self.look()
        browser.expect(given[-1], "taken")

    def _alike(self, process: int) -> list[int]:
        upgrades = self.processes[process].upgrades
        return [n for n, other in enumerate(self.processes) if other.upgrades is upgrades]

    def _race(self, text: str, racers: list[int], by: int) -> list[Issued | None]:
        """The answers, in an order in which they may have been made."""
        work: list[Any] = []
        for racer in racers:
            self.processes[racer].events.clear()
            sessions = self.processes[racer].sessions
            work += [sessions.refresh(text, client=client(by)) for _ in range(2)]
        given: list[Issued | None] = self.run(all_at_once(*work))
        return sorted(given, key=_age)

    @precondition(lambda self: self._jars())
    @rule(data=st.data(), process=some_process, really=st.booleans())
    def race_logout(self, data: st.DataObject, process: int, really: bool) -> None:
        """A refresh races the end of its session: the session has ended in either case."""
        browser, jar, family = self._draw(data)
        if not really or family.gone:
            return
        others = [p.sessions for n, p in enumerate(self.processes) if n != process]
        work = [s.refresh(jar.text, client=client(browser.number)) for s in others]
        end = self.processes[process].sessions.revoke(family.id)
        *given, ended = self.run(all_at_once(*work, end))
        assert ended is True
        self._ended(family, process)
        self.look()
        for text in {jar.text, *(i.refresh_token for i in given if i is not None)}:
            for sessions in others:
                assert self.run(sessions.refresh(text)) is None, "it came back"


def _age(issued: Issued | None) -> tuple[bool, int]:
    """Counters in the order of their making; what was refused came before or after."""
    text = "" if issued is None else issued.refresh_token or ""
    return issued is None, 0 if is_row(text) or not text else _raw(text)[17]


def _not(user: str) -> str:
    return next(other for other in USERS if other != user)


def _raw(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _forged(text: str, way: str, other: str) -> str:
    """A token that looks right, and that no server has issued."""
    if way == "malformed":
        return text[:-1] + "!"
    if is_row(text) or way == "no row":
        return hashlib.md5(text.encode()).hexdigest()[:12]
    body = bytearray(_raw(text)[:-4])
    if way == "signature":
        body[-1] ^= 1
    else:
        body[1:17] = bytes.fromhex(other.replace("-", ""))
        body[17] += 1
    checksum = hashlib.sha256(body).digest()[:4]
    return urlsafe_b64encode(bytes(body) + checksum).rstrip(b"=").decode()
