"""The reference implementation: the contract of ``base.py`` as plain Python.

It is the oracle of the model tests, and the store for fast unit tests of an application. It
has the rules and no I/O. Its clock is a parameter, so that a test can move it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from handstamp.config import Policy
from handstamp.core.lifetime import judge_family
from handstamp.core.models import (
    LOWEST,
    Invalid,
    NewSession,
    Record,
    Rotation,
    StepUp,
    Touch,
    shift,
)
from handstamp.core.rotation import seen_at, was_seen
from handstamp.core.tokens import normalize_text
from handstamp.errors import LoginRefused, SessionsUnavailable
from handstamp.stores.base import Capabilities, Channel, Created, Ended, ListenConnection
from handstamp.stores.notify.sql import Kind

_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(slots=True, kw_only=True)
class MemoryUser:
    """What a session depends on of its user."""

    is_active: bool = True
    locked_until: datetime | None = None
    password_changed_at: datetime | None = None


class MemoryStore:
    """Sessions in a dict. ``now`` returns an aware datetime; ``down`` simulates an outage.
    A user that is not in ``users`` exists and is active."""

    def __init__(self, now: Callable[[], datetime] | None = None) -> None:
        self._now = now or (lambda: datetime.now(UTC))
        self.rows: dict[str, Record] = {}
        self.users: dict[str, MemoryUser] = {}
        self.down = False
        self._queries = 0
        self._channel = MemoryChannel(self._check)

    @property
    def channel(self) -> Channel:
        """See :attr:`ListeningStore.channel`; every engine on this store listens to it."""
        return self._channel

    @property
    def capabilities(self) -> Capabilities:
        """Everything but plaintext tokens."""
        return Capabilities(level=True)

    @property
    def queries(self) -> int:
        """See :attr:`Store.queries`; calls that would have been statements."""
        return self._queries

    async def open(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do; the rows stay."""

    async def ready(self) -> Capabilities:
        """See :meth:`Store.ready`."""
        return self.capabilities

    async def normalize_session_id(self, session_id: str) -> str | None:
        """See :meth:`Store.normalize_session_id`; ids are texts here."""
        return normalize_text(session_id)

    async def normalize_user_id(self, user_id: str) -> str | None:
        """See :meth:`Store.normalize_user_id`."""
        return normalize_text(user_id)

    async def new_id(self, make: Callable[[], str]) -> str | None:
        """See :meth:`CreatingStore.new_id`."""
        return normalize_text(make())

    async def replace_tokens(self, step: StepUp) -> Record | None:
        """See :meth:`StepUpStore.replace_tokens`."""
        row = next((r for r in self._read() if r.id == step.id), None)
        if row is None or not self._is_refreshable(row):
            return None
        if step.level is not None and (row.level or LOWEST) >= step.level:
            return None
        level = row.level if step.level is None else step.level
        record = self._renew(row, step, level=level)
        if record is not None:
            self._channel.send(Kind.SESSION_CHANGED.payload(row.id))
        return record

    def reset_after_fork(self) -> None:
        """See :meth:`Store.reset_after_fork`; a child has a copy of the rows."""

    async def find(self, digests: Sequence[str]) -> Sequence[Record]:
        """See :meth:`Store.find`."""
        return [r for r in self._read() if r.token_digest in digests]

    async def find_by_id(self, session_id: str) -> Record | None:
        """See :meth:`Store.find_by_id`."""
        return next((r for r in self._read() if r.id == session_id), None)

    async def find_many(self, session_ids: Sequence[str]) -> Sequence[Record]:
        """See :meth:`Store.find_many`."""
        return [r for r in self._read() if r.id in session_ids]

    async def find_by_refresh(self, digest: str) -> Record | None:
        """See :meth:`RotatingStore.find_by_refresh`."""
        return next((r for r in self._read() if r.refresh_digest == digest), None)

    async def create(self, new: NewSession, policy: Policy) -> Created:
        """See :meth:`CreatingStore.create`."""
        rows, ending = self._read(), list(new.replaces)
        user = self._user(new.user_id)
        if not user.is_active:
            raise LoginRefused("user_disabled")
        if user.locked_until is not None and user.locked_until > self._now():
            raise LoginRefused("user_locked")
        if any(r.id == new.id or r.token_digest == new.token_digest for r in rows):
            raise SessionsUnavailable("UniqueViolationError")
        if new.limit is not None:
            others = [r for r in rows if r.user_id == new.user_id and r.id not in ending]
            ending += self._surplus(others, new, policy)
        ended = tuple(self._end(ending, "replaced by a new login"))
        record = self._row(new)
        self.rows[new.id] = record
        return Created(record=self._with_user(record), ended=ended)

    def _surplus(
        self, rows: Sequence[Record], new: NewSession, policy: Policy
    ) -> list[str]:
        assert new.limit is not None  # noqa: S101 - the caller asked
        live = [r for r in rows if not isinstance(judge_family(r, policy), Invalid)]
        surplus = max(0, len(live) - new.limit + 1)
        if surplus and not new.evict:
            raise LoginRefused("too_many")
        live.sort(key=lambda r: (r.created_at or r.read_at, r.id))
        return [r.id for r in live[:surplus]]

    def _row(self, new: NewSession) -> Record:
        now = self._now()
        return Record(
            id=new.id,
            user_id=new.user_id,
            token_digest=new.token_digest,
            refresh_digest=new.refresh_digest,
            created_at=now,
            expires_at=now + new.session_ttl,
            refresh_expires_at=now + min(new.refresh_ttl, new.longest),
            last_activity_at=now,
            is_active=True,
            read_at=now,
            address=new.client.address,
            user_agent_hash=new.client.user_agent_hash,
            fingerprint=new.client.fingerprint,
            level=LOWEST,
        )

    async def rotate(self, step: Rotation) -> Record | None:
        """See :meth:`RotatingStore.rotate`."""
        row = self._current(step)
        return None if row is None else self._renew(row, step)

    def _renew(
        self, row: Record, step: Rotation | StepUp, **changes: object
    ) -> Record | None:
        """The row with new tokens, dated now; None if it has reached its longest life."""
        now = self._now()
        if row.created_at is None or shift(row.created_at, step.longest) <= now:
            return None
        date = self._rotation_date(row)
        return self._write(
            row,
            token_digest=step.token_digest,
            refresh_digest=step.refresh_digest,
            last_activity_at=date,
            expires_at=date + step.session_ttl,
            refresh_expires_at=min(
                now + step.refresh_ttl, shift(row.created_at, step.longest)
            ),
            **changes,
        )

    async def redate(self, step: Rotation) -> Record | None:
        """See :meth:`RotatingStore.redate`."""
        row = self._current(step)
        if row is None or was_seen(row, step.session_ttl):
            return None
        date = self._rotation_date(row)
        return self._write(row, last_activity_at=date, expires_at=date + step.session_ttl)

    def _current(self, step: Rotation) -> Record | None:
        row = next((r for r in self._read() if r.id == step.id), None)
        if (
            row is None
            or row.refresh_digest != step.presented
            or not self._is_refreshable(row)
        ):
            return None
        return row

    def _is_refreshable(self, row: Record) -> bool:
        if not row.is_active or not row.user_is_active or row.refresh_expires_at is None:
            return False
        return row.refresh_expires_at > self._now()

    def _rotation_date(self, row: Record) -> datetime:
        now = self._now()
        if row.last_activity_at is None:
            return now
        return max(now, min(row.last_activity_at, now + timedelta(minutes=1)))

    async def revoke(
        self, session_id: str, *, reason: str, user_id: str | None = None
    ) -> Ended | None:
        """See :meth:`Store.revoke`."""
        row = await self.find_by_id(session_id)
        if row is None or user_id not in (None, row.user_id):
            return None
        return next(self._end([session_id], reason), None)

    async def revoke_user(
        self, user_id: str, *, reason: str, keep: str | None = None
    ) -> Sequence[Ended]:
        """See :meth:`Store.revoke_user`."""
        ids = [r.id for r in self._read() if r.user_id == user_id and r.id != keep]
        return list(self._end(ids, reason))

    async def list_for_user(self, user_id: str) -> Sequence[Record]:
        """See :meth:`Store.list_for_user`."""
        rows = [r for r in self._read() if r.user_id == user_id and r.is_active]
        return sorted(rows, key=lambda r: r.last_activity_at or _LONG_AGO, reverse=True)

    async def touch(self, touches: Sequence[Touch], policy: Policy) -> int:
        """See :meth:`ActivityStore.touch`."""
        self._count_query()
        return sum(self._touch(touch, policy.session_ttl) for touch in touches)

    def _touch(self, touch: Touch, session_ttl: timedelta) -> bool:
        row = self.rows.get(touch.session_id)
        if row is None or row.token_digest != touch.token_digest or not row.is_active:
            return False
        stamp = seen_at(touch.at, replace(row, read_at=self._now()), session_ttl)
        if row.last_activity_at is not None and row.last_activity_at >= stamp:
            return False
        self._write(row, last_activity_at=stamp)
        return True

    async def prune(self, policy: Policy, *, batch: int) -> int:
        """See :meth:`Store.prune`."""
        late = self._now() - policy.retention
        dead = [r.id for r in self._read() if _died(r, policy) < late]
        for session_id in dead[:batch]:
            del self.rows[session_id]
        return len(dead[:batch])

    async def ping(self) -> None:
        """See :meth:`Store.ping`."""
        self._count_query()

    def _check(self) -> None:
        if self.down:
            raise SessionsUnavailable("simulated outage")

    def _count_query(self) -> None:
        self._check()
        self._queries += 1

    def _read(self) -> list[Record]:
        self._count_query()
        return [self._with_user(row) for row in self.rows.values()]

    def _with_user(self, row: Record) -> Record:
        user = self._user(row.user_id)
        return replace(
            row,
            read_at=self._now(),
            user_is_active=user.is_active,
            password_changed_at=user.password_changed_at,
        )

    def _user(self, user_id: str) -> MemoryUser:
        return self.users.get(user_id) or MemoryUser()

    def _write(self, row: Record, **changes: object) -> Record:
        self.rows[row.id] = replace(row, **changes)  # type: ignore[arg-type]
        return self._with_user(self.rows[row.id])

    def _end(self, ids: Sequence[str], reason: str) -> Iterator[Ended]:
        for session_id in ids:
            row = self.rows.get(session_id)
            if row is None or not row.is_active:
                continue
            self._write(row, is_active=False, revoked_at=self._now(), revoked_reason=reason)
            self._channel.send(Kind.SESSION_ENDED.payload(row.id))
            yield Ended(id=row.id, user_id=row.user_id)


class MemoryChannel:
    """Delivers at once, to every listener. ``check`` raises while the store is down."""

    def __init__(self, check: Callable[[], None]) -> None:
        self.check = check
        self._connections: list[MemoryListenConnection] = []

    async def listen(
        self, receive: Callable[[str], None], lost: Callable[[], None]
    ) -> ListenConnection:
        """See :meth:`Channel.listen`."""
        self.check()
        connection = MemoryListenConnection(self, receive, lost)
        self._connections.append(connection)
        return connection

    async def notify(self, payload: str) -> None:
        """See :meth:`Channel.notify`."""
        self.check()
        self.send(payload)

    def send(self, payload: str) -> None:
        """Deliver a payload."""
        for connection in list(self._connections):
            connection.receive(payload)

    def cut(self) -> None:
        """Simulate the loss of every listening connection."""
        for connection in list(self._connections):
            connection.drop()
            connection.lost()

    def remove(self, connection: MemoryListenConnection) -> None:
        """Deliver nothing to this listener any more."""
        if connection in self._connections:
            self._connections.remove(connection)


class MemoryListenConnection:
    """One listener."""

    def __init__(
        self,
        channel: MemoryChannel,
        receive: Callable[[str], None],
        lost: Callable[[], None],
    ) -> None:
        self._channel = channel
        self.receive = receive
        self.lost = lost

    async def prove(self) -> None:
        """See :meth:`ListenConnection.prove`."""
        self._channel.check()

    async def all_writers_notify(self) -> bool:
        """Only the store writes to the rows."""
        return True

    def drop(self) -> None:
        """See :meth:`ListenConnection.drop`."""
        self._channel.remove(self)


def _died(row: Record, policy: Policy) -> datetime:
    if not row.is_active:
        return row.revoked_at or row.last_activity_at or row.expires_at
    created = row.created_at or row.expires_at
    ends = [row.refresh_expires_at or row.expires_at, shift(created, policy.absolute_ttl)]
    if policy.idle_ttl is not None:
        ends.append(shift(max(created, row.last_activity_at or created), policy.idle_ttl))
    return min(ends)
