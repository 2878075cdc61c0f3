"""Planted bugs: each breaks one rule of rotation, as real software has done.

A bug is a store for :class:`~tests.rotation.worlds.MemoryBase`, and a context in which
one function of the engine is replaced.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from handstamp.core import rotation
from handstamp.core.models import Invalid, Reason, Record, Rotation, StepUp, Touch
from handstamp.core.rotation import Reissue
from handstamp.core.tokens import RefreshToken, TokenPair, Tokens
from handstamp.engine import refresh as refreshing
from handstamp.engine.cache import Cache, _Fence
from handstamp.engine.refresh import Refresher
from handstamp.engine.sessions import Sessions
from handstamp.stores.memory import MemoryStore
from tests.rotation.worlds import patched


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A planted bug, and the symptom in real software."""

    name: str
    story: str
    store: type[MemoryStore] = MemoryStore
    patch: Callable[[], AbstractContextManager[None]] = nullcontext


class UntiedTouch(MemoryStore):
    """Activity of an old token counts for the new one."""

    def _touch(self, touch: Touch, session_ttl: Any) -> bool:
        row = self.rows.get(touch.session_id)
        if row is None:
            return False
        return super()._touch(replace(touch, token_digest=row.token_digest), session_ttl)


class ResurrectingTouch(MemoryStore):
    """An upsert of activity makes the row active again."""

    def _touch(self, touch: Touch, session_ttl: Any) -> bool:
        row = self.rows.get(touch.session_id)
        if row is not None and not row.is_active:
            self.rows[row.id] = replace(row, is_active=True, revoked_at=None)
        return super()._touch(touch, session_ttl)


class LastWriteWins(MemoryStore):
    """Activity is written without looking at what is there."""

    def _touch(self, touch: Touch, session_ttl: Any) -> bool:
        row = self.rows.get(touch.session_id)
        if row is None or row.token_digest != touch.token_digest or not row.is_active:
            return False
        row = replace(row, read_at=self._now())
        stamp = rotation.seen_at(touch.at, row, session_ttl)
        self._write(row, last_activity_at=stamp)
        return True


class ReadThenWrite(MemoryStore):
    """A rotation reads the row, thinks, and writes it back whole."""

    async def rotate(self, step: Rotation) -> Record | None:
        row = self._current(step)
        if row is None:
            return None
        await asyncio.sleep(0)
        self.rows[row.id] = row
        self._current = lambda _: row  # type: ignore[method-assign]
        try:
            return await super().rotate(step)
        finally:
            del self._current


class DatedBack(MemoryStore):
    """A rotation is dated by the clock alone, before activity that is recorded."""

    def _rotation_date(self, row: Record) -> Any:
        return self._now()


class Unending(MemoryStore):
    """A rotation extends a session beyond its absolute limit."""

    async def rotate(self, step: Rotation) -> Record | None:
        return await super().rotate(replace(step, longest=step.longest * 10))


class KeepsToken(MemoryStore):
    """A step-up raises the level of the tokens that are out."""

    async def replace_tokens(self, step: StepUp) -> Record | None:
        old = self.rows[step.id]
        raised = await super().replace_tokens(step)
        if raised is not None:
            self._write(
                self.rows[step.id],
                token_digest=old.token_digest,
                refresh_digest=old.refresh_digest,
            )
        return raised


async def _no_revocation(self: Refresher, record: Record, client: Any) -> Invalid:
    return Invalid(Reason.REPLAYED)


_judge = refreshing.judge_refresh
_reissue = Refresher._reissue
_reads = Tokens.read_refresh
_draws = itertools.count()


def _without_redating(*arguments: Any, **options: Any) -> Any:
    verdict = _judge(*arguments, **options)
    return replace(verdict, redate=False) if isinstance(verdict, Reissue) else verdict


async def _stepping_again(
    self: Refresher, finding: Any, pair: TokenPair, client: Any, redate: bool
) -> Any:
    if not redate:
        return await _reissue(self, finding, pair, client, redate)
    token = self._tokens.read_refresh(pair.refresh.encode())
    assert token is not None
    following = next(self._tokens.successors(token, finding.record.id))
    return await self._rotate(replace(finding, token=token), following, client)


def _random_successors(
    self: Tokens, token: RefreshToken, session_id: str
) -> Iterator[TokenPair]:
    entropy = hashlib.shake_256(b"%d" % next(_draws)).digest(64)
    yield self.mint(session_id, entropy, remember=token.remember)


def _gullible(self: Tokens, text: bytes) -> RefreshToken | None:
    """Reads what anybody signed."""
    token = _reads(self, text)
    if token is not None or text.count(b".") < 3:
        return token
    session_id, kind, *_ = text.split(b".")
    return RefreshToken(
        text=text,
        session_id=session_id.decode(),
        state=text,
        remember=kind == b"r",
    )


def _unfenced(self: Any, ticket: Any, session_id: str, user_id: str) -> bool:
    return True


def _no_retirement(self: Cache, session_id: str, *, keep: bytes, until: float) -> None:
    for key in self._by_session.get(session_id, ()):
        entry = self._live[key]
        entry.hard = entry.deadline = entry.confirmed = float("inf")


def _proves_nothing(self: Any, *arguments: Any) -> None:
    """What was presented, or sent, is not taken as proof."""


MUTANTS = (
    Mutant(
        name="unproven_poll",
        story="a thief who only polls is never seen",
        patch=lambda: patched(refreshing, "was_seen", lambda record, ttl: True),
    ),
    Mutant(
        name="unproven_frame",
        story="a thief who only opens sockets is never seen",
        patch=lambda: patched(Sessions, "mark_seen", _proves_nothing),
    ),
    Mutant(
        name="no_grace",
        story="a second tab signs the user out",
        patch=lambda: patched(rotation, "_in_grace", lambda record, policy: False),
    ),
    Mutant(
        name="strict_after_grace",
        story="a lost response signs its client out",
        patch=lambda: patched(rotation, "was_seen", lambda record, ttl: True),
    ),
    Mutant(
        name="lenient_after_grace",
        story="a stale token is good for ever",
        patch=lambda: patched(rotation, "was_seen", lambda record, ttl: False),
    ),
    Mutant(
        name="no_replay_detection",
        story="a replay is refused without an event",
        patch=lambda: patched(Refresher, "_end_replayed", _no_revocation),
    ),
    Mutant(
        name="random_successors",
        story="every process makes up a successor of its own",
        patch=lambda: patched(Tokens, "successors", _random_successors),
    ),
    Mutant(
        name="step_again",
        story="a lost response is answered with a second step",
        patch=lambda: patched(Refresher, "_reissue", _stepping_again),
    ),
    Mutant(
        name="no_redating",
        story="a repeated answer is not dated anew",
        patch=lambda: patched(refreshing, "judge_refresh", _without_redating),
    ),
    Mutant(
        name="gullible",
        story="the signature of a refresh token is not checked",
        patch=lambda: patched(Tokens, "read_refresh", _gullible),
    ),
    Mutant(
        name="no_fence",
        story="a read that raced a revocation puts the session back",
        patch=lambda: patched(_Fence, "allows", _unfenced),
    ),
    Mutant(
        name="no_retirement",
        story="a replaced session token lives on in a cache",
        patch=lambda: patched(Cache, "retire", _no_retirement),
    ),
    Mutant(
        name="remembers_old_tokens",
        story="a session token from before a step-up lives on in a cache",
        patch=lambda: patched(Cache, "forget_session", _proves_nothing),
    ),
    Mutant(name="keeps_token", story=KeepsToken.__doc__ or "", store=KeepsToken),
    Mutant(name="untied_touch", story=UntiedTouch.__doc__ or "", store=UntiedTouch),
    Mutant(
        name="resurrecting_touch",
        story=ResurrectingTouch.__doc__ or "",
        store=ResurrectingTouch,
    ),
    Mutant(name="last_write_wins", story=LastWriteWins.__doc__ or "", store=LastWriteWins),
    Mutant(name="read_then_write", story=ReadThenWrite.__doc__ or "", store=ReadThenWrite),
    Mutant(name="dated_back", story=DatedBack.__doc__ or "", store=DatedBack),
    Mutant(name="unending", story=Unending.__doc__ or "", store=Unending),
)
