"""The model of a session of Supabase Auth: a second, simple statement of GoTrue's rules.

It shares nothing with the code under test. A family holds the rows or the counter that the
tables must have, records the tokens that were handed out, and predicts the result for a
token that is presented.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Any
from uuid import UUID

TTL = timedelta(seconds=120)
"""Life of an access token: a browser renews it 30 seconds after it was issued."""
MARGIN = timedelta(seconds=90)
STALENESS = timedelta(seconds=5)
MEMORY = timedelta(seconds=2)
"""How long a process remembers that it has just refused a token."""


class Fate(Enum):
    """What must become of a refresh token."""

    STEP = auto()
    FORK = auto()
    SAME = auto()
    ENDS = auto()
    """It is refused, and ends what it can, with an event."""
    STALE = auto()
    """It is refused, and nothing but the event comes of it."""
    REFUSED = auto()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """GoTrue's settings that the rules below depend on; its defaults."""

    name: str
    interval: timedelta = timedelta(0)
    rotation: bool = True
    reuse: bool = False
    timebox: timedelta | None = None
    inactivity: timedelta | None = None


@dataclass(kw_only=True)
class TokenRow:
    """One row of refresh_tokens; the text of one that was never handed out is unknown."""

    text: str | None = field(repr=False)
    parent: str | None = field(repr=False)
    updated_at: datetime
    revoked: bool = False


@dataclass(kw_only=True, repr=False)
class AuthFamily:
    """One session and all refresh tokens it ever had, in the order of ``chain``."""

    id: str
    user_id: str
    created_at: datetime
    by: int
    settings: Settings
    chain: list[str]
    rows: list[TokenRow] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    counter: int | None = None
    refreshed_at: datetime | None = None
    key: str | None = None
    gone: bool = False
    honest: bool = True
    """Whether only one browser, with its newest tokens, ever presented a token."""
    forked: bool = False

    def __post_init__(self) -> None:
        (first,) = self.chain
        if is_row(first):
            self.rows.append(TokenRow(text=first, parent=None, updated_at=self.created_at))
        else:
            self.counter = self.counters[first] = counter_of(first, self.id)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(f"<family {self.id[:4]}: {len(self.chain)} tokens>")

    @property
    def last_refreshed_at(self) -> datetime:
        """What the inactivity and the interval of a counter are counted from."""
        return self.refreshed_at or self.created_at

    def limits(self) -> list[datetime]:
        """When it is over by time; at that very instant it is not."""
        timebox, inactivity = self.settings.timebox, self.settings.inactivity
        ends = [] if timebox is None else [self.created_at + timebox]
        return ends + ([] if inactivity is None else [self.last_refreshed_at + inactivity])

    def is_over(self, now: datetime) -> bool:
        """Whether it has expired or was ended."""
        return self.gone or any(now > end for end in self.limits())

    def was_upgraded(self, text: str) -> bool:
        """Whether this row's successor is a counter: there is no parent to go by then."""
        return is_row(text) and self.counter is not None

    def active(self) -> TokenRow | None:
        """The newest row that is not revoked."""
        return next((row for row in reversed(self.rows) if not row.revoked), None)

    def fate(self, text: str, now: datetime) -> tuple[Fate, str | None]:
        """What a token ends in, and the one it must be answered with, if it is known."""
        if self.is_over(now):
            return Fate.REFUSED, None
        return self._row_fate(text, now) if is_row(text) else self._fate(text, now)

    def _row_fate(self, text: str, now: datetime) -> tuple[Fate, str | None]:
        row, active = self._row(text), self.active()
        if not row.revoked:
            return Fate.STEP, None
        if active is not None and active.parent == text:
            return Fate.SAME, active.text
        if now <= row.updated_at + self.settings.interval:
            return Fate.FORK, None
        return (Fate.ENDS if self.settings.rotation else Fate.STALE), None

    def _fate(self, text: str, now: datetime) -> tuple[Fate, str | None]:
        assert self.counter is not None
        behind = self.counter - self.counters[text]
        if behind == 0:
            return Fate.STEP, None
        near = abs(now - self.last_refreshed_at) < self.settings.interval
        if behind == 1 or near or self.settings.reuse:
            current = {number: known for known, number in self.counters.items()}
            return Fate.SAME, current[self.counter]
        return (Fate.ENDS if self.settings.rotation else Fate.STALE), None

    def _row(self, text: str) -> TokenRow:
        return next(row for row in self.rows if row.text == text)

    def step(self, text: str, given: str, now: datetime, upgrades: bool) -> None:
        """``text`` was answered with a new token."""
        assert given not in self.chain, "a token was handed out for a second time"
        self.chain.append(given)
        if is_row(text):
            row = self._row(text)
            self.forked |= row.revoked
            row.revoked, row.updated_at = True, now
            fresh = None if upgrades else given
            self.rows.append(
                TokenRow(text=fresh, parent=text, updated_at=now, revoked=upgrades)
            )
        assert is_row(given) is (is_row(text) and not upgrades), "the wrong kind of token"
        if not is_row(given):
            self.counter = 0 if self.counter is None else self.counter + 1
            self.counters[given] = counter_of(given, self.id)
            assert self.counters[given] == self.counter, "it counts wrongly"

    def seen(self, now: datetime, by: int) -> None:
        """It was refreshed, by a new token or the same again."""
        self.refreshed_at, self.by = now, by

    def end(self, text: str, now: datetime) -> None:
        """``text`` came too late: the rows are revoked, or the counted session goes."""
        if not is_row(text):
            self.gone = True
        for row in self.rows:
            if not row.revoked:
                row.revoked, row.updated_at = True, now


def is_row(text: str) -> bool:
    """Whether a token is of version 1, which is stored in a row."""
    return len(text) == 12


def counter_of(text: str, session_id: str) -> int:
    """What a token of the other kind counts, below 128; it must be this session's."""
    raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    assert raw[0] == 0
    assert str(UUID(bytes=raw[1:17])) == session_id, "a token of another session"
    assert len(raw) == 38
    return raw[17]
