"""The contract between the engine and a table of sessions.

A store finds, creates, changes and ends sessions. It never decides whether a session is
valid: the rules in :mod:`handstamp.core` do.

:class:`Store` is what every table can do. What only some tables can do is a protocol of
its own, and a store has its methods only if it implements it:

- :class:`CreatingStore` opens sessions;
- :class:`RotatingStore` keeps refresh tokens in the row, and replaces them;
- :class:`StepUpStore` gives a live session new tokens, and may raise its trust level;
- :class:`ActivityStore` records when a session was used;
- :class:`PlaintextStore` finds rows that still hold a plaintext token;
- :class:`ListeningStore` sends and receives notifications.

One class may serve tables of different shapes. So a feature is there if the store has the
protocol *and* :class:`Capabilities` say that this table can. The engine asks for a feature
through the functions at the end of this module, and calls no method of a feature that is
not there.

The rules of the contract:

1. Absence is None or an empty list. An exception is a fault of the system. Every fault
   that means "the database gave no answer" is a :class:`SessionsUnavailable`. Its text
   never quotes the driver, whose messages can contain data of a row.
2. Every time that a store writes is read from its own clock; callers pass durations. Every
   record has the reading of that clock (``read_at``), taken in the same statement.
3. ``create`` inserts and never overwrites. No method makes an ended session live again.
4. ``rotate`` and ``redate`` are one conditional write: only if the row still has the digest
   that the caller judged, is active, and its user may sign in. None means that another
   request was first; the caller reads and judges again.
5. A rotation sets ``last_activity_at`` to its own date, exactly ``session_ttl`` before
   ``expires_at``. A touch never leaves a whole number of seconds between the two
   (:func:`handstamp.core.rotation.seen_at`). It counts only for the token it was made with,
   and never moves ``last_activity_at`` back.
6. A statement that locks several rows locks them in the order of their ids.
7. What a method returned has been committed.
8. The type of a column decides what counts as an id. Every id that a store returns is in
   the one form that its column has. Every method accepts an id in any form, and finds
   nothing for a text that the column cannot hold.
9. When ``revoke`` or ``revoke_user`` return, the sessions they were asked to end have
   ended. If the database kept such a row as it was, they raise :class:`ConfigError`.
10. Every method that ends sessions sends a notification in its own transaction, one for
   each session or one for the user, if the store is a :class:`ListeningStore`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from handstamp.config import Policy
from handstamp.core.models import NewSession, Record, Rotation, StepUp, Touch
from handstamp.core.tokens import LONGEST_ID


@dataclass(frozen=True, slots=True)
class Notification:
    """What to read again: one session, a user's sessions, or everything (both None).

    ``understood`` is False if the payload is not one that handstamp sends.
    """

    session_id: str | None = None
    user_id: str | None = None
    understood: bool = True


class ListenConnection(Protocol):
    """One connection that listens. Its faults are :class:`SessionsUnavailable`."""

    async def prove(self) -> None:
        """A round trip: what was committed before its start is delivered at its end."""
        ...

    async def all_writers_notify(self) -> bool:
        """Whether everything that writes to the table notifies, as the trigger does."""
        ...

    def drop(self) -> None:
        """Close at once, without a message to a server that may not answer."""
        ...


class Channel(Protocol):
    """Where notifications are sent and received, as payloads
    (:mod:`handstamp.stores.notify`)."""

    async def listen(
        self, receive: Callable[[str], None], lost: Callable[[], None]
    ) -> ListenConnection:
        """Listen from now on: ``receive`` gets every payload, ``lost`` is called once."""
        ...

    async def notify(self, payload: str) -> None:
        """Send a payload the way revocations are sent."""
        ...


STILL_LIVE = (
    "a session in {table} is still live after it was ended: a policy of row level security"
    " or a BEFORE trigger keeps its row as it is. Let the role of the application change"
    " the row; handstamp doctor says whether there are policies, and names the triggers"
)
"""The error of rule 9, for the operator of the database."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What one table can do. A missing column switches a feature off, and it shows here.

    - ``refresh``: refresh tokens are in the row.
    - ``sliding``: nothing rotates, and activity moves ``expires_at`` ahead.
    - ``activity``: the last activity has a column.
    - ``absolute``: a session has the time of its creation.
    - ``user_status``: users can be disabled.
    - ``password_change``: users have the time of their last change of the password.
    - ``level``: sessions have a trust level.
    - ``fingerprint``: a device fingerprint has a column.
    - ``plain``: rows may hold plaintext tokens.
    - ``longest_id``: the most characters that the id of a session may have.
    """

    refresh: bool = True
    sliding: bool = False
    activity: bool = True
    absolute: bool = True
    user_status: bool = True
    password_change: bool = True
    level: bool = False
    fingerprint: bool = True
    plain: bool = False
    longest_id: int = field(default=LONGEST_ID, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """One session that a call ended."""

    id: str
    user_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """A new row, and the sessions that were ended for it."""

    record: Record
    ended: tuple[Ended, ...] = ()


class Store(Protocol):
    """What every table of sessions can do. The rules above hold for every method."""

    @property
    def capabilities(self) -> Capabilities:
        """What this table can do, as far as it is known without asking the database."""
        ...

    @property
    def queries(self) -> int:
        """Statements sent so far, for statistics and tests."""
        ...

    async def open(self) -> None:
        """Prepare for the running event loop. A database that is down is no error."""
        ...

    async def close(self) -> None:
        """Close every connection. May be called twice."""
        ...

    def reset_after_fork(self) -> None:
        """In a forked child: use no connection of the parent, and close none of them."""

    async def ready(self) -> Capabilities:
        """What this table can do, once the database has been asked.

        Raises :class:`SessionsUnavailable`, or :class:`ConfigError` for a table that
        must not be used.
        """
        ...

    async def ping(self) -> None:
        """One round trip. Raises :class:`SessionsUnavailable` without an answer."""
        ...

    async def normalize_session_id(self, session_id: str) -> str | None:
        """The id in the form of its column (rule 8); None for what no row can have.

        Raises as :meth:`ready` does, if the table was not read yet.
        """
        ...

    async def normalize_user_id(self, user_id: str) -> str | None:
        """The same for the id of a user."""
        ...

    async def find(self, digests: Sequence[str]) -> Sequence[Record]:
        """The rows whose current session token has one of these digests, in any order."""
        ...

    async def find_by_id(self, session_id: str) -> Record | None:
        """The row with this id."""
        ...

    async def find_many(self, session_ids: Sequence[str]) -> Sequence[Record]:
        """The rows with these ids, in any order."""
        ...

    async def list_for_user(self, user_id: str) -> Sequence[Record]:
        """The active rows of a user, the most recently active first."""
        ...

    async def revoke(
        self, session_id: str, *, reason: str, user_id: str | None = None
    ) -> Ended | None:
        """End one session; with ``user_id`` only if it is a session of this user.

        Returns None if there was no live session to end.
        """
        ...

    async def revoke_user(
        self, user_id: str, *, reason: str, keep: str | None = None
    ) -> Sequence[Ended]:
        """End every session of a user except the one with the id ``keep``."""
        ...

    async def prune(self, policy: Policy, *, batch: int) -> int:
        """Delete at most ``batch`` rows that ended longer than ``policy.retention`` ago.

        Returns how many rows were deleted.
        """
        ...


@runtime_checkable
class CreatingStore(Protocol):
    """A store that opens sessions from a :class:`NewSession`."""

    async def new_id(self, make: Callable[[], str]) -> str | None:
        """The id for a new session, in the form of its column: the table's own if the
        database makes ids, otherwise one from ``make``.

        Returns None for an id that the column cannot hold.
        """
        ...

    async def create(self, new: NewSession, policy: Policy) -> Created:
        """Insert one session, end those in ``new.replaces``, and keep to ``new.limit``.

        Raises :class:`LoginRefused`; nothing was written then.
        """
        ...


@runtime_checkable
class RotatingStore(Protocol):
    """A store with refresh tokens in the row (``Capabilities.refresh``)."""

    async def find_by_refresh(self, digest: str) -> Record | None:
        """The row whose current refresh token has this digest.

        Called only for tokens that were issued before handstamp: they contain no session
        id.
        """
        ...

    async def rotate(self, step: Rotation) -> Record | None:
        """Replace both tokens (rule 4), or return None."""
        ...

    async def redate(self, step: Rotation) -> Record | None:
        """Set the date of the last rotation to now, if its tokens were not used yet
        (rule 4), or return None.

        ``step.presented`` is the digest of the current refresh token here.
        """
        ...


@runtime_checkable
class StepUpStore(Protocol):
    """A store that gives a live session new tokens."""

    async def replace_tokens(self, step: StepUp) -> Record | None:
        """Replace the tokens of a session, and set its trust level if ``step`` has one.

        One conditional write: only if the session is live, its user may sign in, and its
        level is lower than the new one. Returns None otherwise. ``step.level`` is set only
        if the table has levels (``Capabilities.level``).

        In a table with refresh tokens the write is dated like a rotation (rule 5). It
        sends a notification: that the session changed, or that it ended, where its id
        is its token.
        """
        ...


@runtime_checkable
class ActivityStore(Protocol):
    """A store that records activity (``Capabilities.activity`` or ``sliding``)."""

    async def touch(self, touches: Sequence[Touch], policy: Policy) -> int:
        """Record activity in one write (rule 5). Returns how many rows were changed.

        If the expiry slides, it is moved ahead, up to what ``policy`` allows.
        """
        ...


@runtime_checkable
class PlaintextStore(Protocol):
    """A store whose rows may hold plaintext session tokens (``Capabilities.plain``)."""

    async def find_plaintext(
        self, digests: Sequence[str], tokens: Sequence[str]
    ) -> Sequence[Record]:
        """As :meth:`Store.find`, and the rows that hold one of these ``tokens`` itself."""
        ...


@runtime_checkable
class ListeningStore(Protocol):
    """A store that tells other processes which sessions it ended (rule 10)."""

    @property
    def channel(self) -> Channel:
        """Where notifications are sent and received; only this store sends there."""
        ...


async def rotating(store: Store) -> RotatingStore | None:
    """``store`` if its table has refresh tokens, otherwise None. Raises as
    :meth:`Store.ready` does."""
    able = await store.ready()
    return store if able.refresh and isinstance(store, RotatingStore) else None


async def recording(store: Store) -> ActivityStore | None:
    """``store`` if its table has a place for activity, otherwise None. Raises as
    :meth:`Store.ready` does."""
    able = await store.ready()
    records = able.activity or able.sliding
    return store if records and isinstance(store, ActivityStore) else None


def channel_of(store: Store) -> Channel | None:
    """Where ``store`` sends notifications; None if it sends none."""
    return store.channel if isinstance(store, ListeningStore) else None
