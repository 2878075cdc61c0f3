"""The model of a session in the state machine: a second, simple statement of the rules.

It shares nothing with the code under test. A family records the chain of tokens that were
handed out, counts its generations, and predicts the result for a token that is presented.
Where two results are right (an entry may still be in a cache) it returns both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Any

from handstamp import Policy

BLUR = timedelta(microseconds=20)
"""A first use is dated a step after its rotation, and the next rotation not before
that: rows may be dated this much ahead of the clock."""


class Fate(Enum):
    """What must become of a refresh token."""

    ROTATE = auto()
    REISSUE = auto()
    REDATE = auto()
    REPLAY = auto()
    LATE = auto()
    DEAD = auto()
    EITHER = auto()


@dataclass(frozen=True)
class Pair:
    """The tokens of one generation, as a jar holds them."""

    session_id: str
    generation: int
    session: str = field(repr=False)
    refresh: str = field(repr=False)


@dataclass(kw_only=True, repr=False)
class Family:
    """One session and all tokens it ever had."""

    id: str
    user_id: str
    opened_by: int
    created_at: datetime
    remember: bool
    policy: Policy
    chain: list[Pair]
    rotated_at: datetime
    expires_at: datetime
    refresh_expires_at: datetime
    first_dated: list[datetime]
    active_at: datetime
    seen: bool | None = True
    honest: bool = True
    revoked_at: datetime | None = None
    disabled_at: datetime | None = None
    blind: bool = False
    known_dead_at: set[int] = field(default_factory=set)
    level: int = 0
    step_ups: list[tuple[int, datetime, int]] = field(default_factory=list)
    """The generation that each step-up made, when, and in which process."""

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(f"<family {self.id[-2:]} at generation {self.generation}>")

    @property
    def generation(self) -> int:
        """The current one."""
        return len(self.chain) - 1

    @property
    def limit(self) -> timedelta:
        """The absolute limit of this session."""
        return self.policy.lifetime(remember=self.remember)

    def is_live(self, now: datetime) -> bool:
        """Whether the table says that this session lives."""
        if self.revoked_at is not None or self.disabled_at is not None:
            return False
        idle = self.policy.idle_ttl
        if idle is not None and now >= self.active_at + idle:
            return False
        return now < self.refresh_expires_at and now < self.created_at + self.limit

    def fate(self, generation: int, now: datetime) -> Fate:
        """What the refresh token of this generation is worth now."""
        if not self.is_live(now):
            return Fate.DEAD
        if generation == self.generation:
            return Fate.ROTATE
        in_grace = now - self.rotated_at <= self.policy.grace
        broken = self.step_ups and generation < self.step_ups[-1][0]
        if generation < self.generation - 1 or broken:
            return Fate.LATE if in_grace else Fate.REPLAY
        if in_grace:
            return Fate.REISSUE
        if self.seen is None:
            return Fate.EITHER
        return Fate.REPLAY if self.seen else Fate.REDATE

    def may_enter(self, generation: int, process: int, now: datetime) -> bool:
        """Whether this session token may still be believed by some cache."""
        if now >= min(self.refresh_expires_at, self.created_at + self.limit):
            return False
        if generation == self.generation:
            if now >= self.expires_at + BLUR:
                return False
        elif now >= self.first_dated[generation + 1] + self.policy.grace + BLUR:
            return False
        for made, at, by in self.step_ups:
            known = process == by or now >= at + self.policy.max_staleness
            if generation < made and known:
                return False
        return not self._must_know(process, now)

    def _must_know(self, process: int, now: datetime) -> bool:
        if self.revoked_at is not None and process in self.known_dead_at:
            return True
        ends = [at for at in (self.revoked_at, self.disabled_at) if at is not None]
        return any(now >= at + self.policy.max_staleness for at in ends)

    def must_enter(self, generation: int, now: datetime) -> bool:
        """Whether refusing this session token would be wrong."""
        return (
            generation == self.generation
            and now < self.expires_at - BLUR
            and self.is_live(now)
        )

    def rotate(self, pair: Pair, now: datetime) -> None:
        """A new generation was handed out."""
        self.chain.append(pair)
        self.first_dated.append(now)
        self.redate(now)
        self.refresh_expires_at = min(
            now + self.policy.refresh_ttl, self.created_at + self.limit
        )

    def step_up(self, pair: Pair, now: datetime, process: int) -> None:
        """A generation was handed out that no other one leads to."""
        self.rotate(pair, now)
        self.step_ups.append((self.generation, now, process))

    def redate(self, now: datetime) -> None:
        """The current generation was handed out once more, after grace."""
        self.rotated_at = now
        self.expires_at = now + self.policy.session_ttl
        self.seen = False

    def dated(self, expires_at: datetime) -> None:
        """The row's own date of the rotation, which is to the microsecond."""
        self.expires_at = expires_at
        self.rotated_at = expires_at - self.policy.session_ttl

    def end(self, now: datetime, process: int) -> None:
        """It is revoked by this process, which therefore knows; a revocation that found
        nothing to end teaches its process nothing."""
        if self.revoked_at is None:
            self.revoked_at = now
            self.known_dead_at.add(process)
