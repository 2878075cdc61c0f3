"""Channel.

The contract between the engine and a table.

A store finds, creates, rotates, revokes and touches; it never decides. What it must
keep, whatever the table looks like:

1. Absence is None or an empty list. An exception is a fault of the system, and every
   one that means "no answer" is a :class:`SessionsUnavailable`. Its text never quotes
   the driver, whose messages can hold row data.
2. Every time it writes is its own clock's; callers pass durations. Every record carries
   the clock's reading at the read (``read_at``), taken in the same statement.
3. ``create`` inserts and never overwrites. No method makes a dead session live.
4. ``rotate`` and ``redate`` are one conditional write: only if the row still has the
   digest the caller judged, is active and its user may sign in. None means that somebody
   else was first; the caller reads and judges again.
5. A rotation leaves ``last_activity_at`` at its own date, exactly ``session_ttl`` before
   ``expires_at``. A touch never leaves a whole number of seconds there
   (:func:`handstamp.core.rotation.seen_at`), counts only for the token it was made with,
   and never moves ``last_activity_at`` back.
6. Whoever locks several rows locks them in the order of their ids.
7. What a method returned has been committed.
8. What counts as an id is the table's business, by the type of its column. Every id that
leaves a store has the column's one spelling; every method takes any spelling of it, and
finds nothing for what the column could not hold.
9. A session that ``revoke`` or ``revoke_user`` were asked to end has ended when they
return. Where the database kept its row as it was, they raise :class:`ConfigError`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

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


STANDS = (
    "a session in {table} is still live after it was ended: a policy of row level security"
    " or a BEFORE trigger keeps its row as it is. Let the role of the application change"
    " the row; handstamp doctor says whether there are policies, and names the triggers"
)
"""Rule 9, for whoever operates the database."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a table can do; a missing column switches a feature off, and it shows here.

    ``sliding`` says that ``expires_at`` moves ahead with activity, since nothing rotates;
    ``absolute`` that a session knows when it was created; ``plain`` that rows may hold
    tokens in clear. ``longest_id`` is how many characters the id of a session may have.
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
    """A new row, and the sessions that made room for it."""

    record: Record
    ended: tuple[Ended, ...] = ()


class Store(Protocol):
    """One table of sessions. The rules above are part of every signature."""

    @property
    def capabilities(self) -> Capabilities:
        """What this table can do."""
        ...

    @property
    def queries(self) -> int:
        """Statements sent so far, for figures and for tests that count them."""
        ...

    @property
    def channel(self) -> Channel | None:
        """Where revocations are notified; None if this store has no channel.

        Every method that ends sessions notifies there, in its own transaction, once for
        each session or once for a user. Nothing else is sent there.
        """
        ...

    async def open(self) -> None:
        """Get ready on the running event loop. A database that is down is no error."""
        ...

    async def close(self) -> None:
        """Let go of every connection; idempotent."""
        ...

    def reset_after_fork(self) -> None:
        """In a forked child: use nothing of the parent's, and close nothing of it."""

    async def ready(self) -> Capabilities:
        """What this table can do, once that is certain.

        Raises :class:`SessionsUnavailable`, or :class:`ConfigError` for a table that
        must not be used.
        """
        ...

    async def normalize_session_id(self, session_id: str) -> str | None:
        """The column's one spelling of an id (rule 8); None for what no row can have.

        Raises as :meth:`ready` does, while the table has not been looked at.
        """
        ...

    async def normalize_user_id(self, user_id: str) -> str | None:
        """The same for the id of a user."""
        ...

    async def find(
        self, digests: Sequence[str], texts: Sequence[str] = ()
    ) -> Sequence[Record]:
        """The rows whose current session token has one of these digests, any order.

        ``texts`` are tokens that may stand in a row as they are (``plain``).
        """
        ...

    async def new_id(self) -> str | None:
        """The id of a session to be, where they come from the table; else None."""
        ...

    async def find_by_id(self, session_id: str) -> Record | None:
        """The row with this id."""
        ...

    async def find_many(self, session_ids: Sequence[str]) -> Sequence[Record]:
        """The rows with these ids, any order."""
        ...

    async def find_by_refresh(self, digest: str) -> Record | None:
        """The row whose current refresh token has this digest. Asked only for tokens
        from before handstamp, which do not name their session."""
        ...

    async def create(self, new: NewSession, policy: Policy) -> Created:
        """Insert one session, ending ``new.replaces`` and keeping to ``new.limit``.

        Raises :class:`LoginRefused`, in which case nothing was written.
        """
        ...

    async def rotate(self, step: Rotation) -> Record | None:
        """Replace both tokens (rule 4), or None."""
        ...

    async def redate(self, step: Rotation) -> Record | None:
        """Date the last rotation to now while its tokens are unseen (rule 4), or None.

        ``step.presented`` is the current refresh digest here.
        """
        ...

    async def revoke(
        self, session_id: str, *, reason: str, user_id: str | None = None
    ) -> Ended | None:
        """End one session, only if it is ``user_id``'s where that is given."""
        ...

    async def revoke_user(
        self, user_id: str, *, reason: str, keep: str | None = None
    ) -> Sequence[Ended]:
        """End every session of a user but ``keep``."""
        ...

    async def list_for_user(self, user_id: str) -> Sequence[Record]:
        """The user's active rows, most recently active first."""
        ...

    async def touch(self, touches: Sequence[Touch], policy: Policy) -> int:
        """Record activity in one write (rule 5); how many rows moved. Moves an expiry
        that slides, up to what ``policy`` allows."""
        ...

    async def raise_level(self, step: StepUp) -> Record | None:
        """Raise the trust level of a session and replace its tokens, in one conditional
        write: only if it is live, its user may sign in, and its level is lower. None
        otherwise, or if the table has no levels. Without a level in ``step`` the tokens
        alone are replaced, in any table.

        Where there is a refresh token, this is dated like a rotation (rule 5). Says so on
        the channel: a doubt, for the session is not over; an end where its id is its token.
        """
        ...

    async def prune(self, policy: Policy, *, batch: int) -> int:
        """Delete at most ``batch`` rows dead for longer than ``policy.retention``."""
        ...

    async def ping(self) -> None:
        """One round trip; raises :class:`SessionsUnavailable` without an answer."""
        ...
