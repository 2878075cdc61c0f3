"""The values of the core: rows, clients, sessions, tokens for a client, and answers.

Rule 1. All times are aware. A database has times that Python has not: infinite ones, years
after 9999 and before Christ. A store reads such a time as ``EARLIEST`` or ``LATEST``, and
:func:`shift` stops at them: what is too far away to be a date is always, or never, reached.
Rule 2. A row holds digests and never tokens. Tokens, digests and whole addresses are in no
``repr``.
Rule 3. An answer is a value, and no exception: valid, invalid with a reason, or unknown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import NewType, Self

from handstamp.config import Policy
from handstamp.core.tokens import TokenPair

EARLIEST = datetime(1, 1, 2, tzinfo=UTC)
LATEST = datetime(9999, 12, 30, tzinfo=UTC)
"""A day inside the range of ``datetime``, so that they exist in every time zone."""


def shift(time: datetime, by: timedelta) -> datetime:
    """Return ``time + by``, or the nearest time that ``datetime`` can hold (rule 1)."""
    try:
        return time + by
    except OverflowError:
        return LATEST if by > timedelta(0) else EARLIEST


Ticket = NewType("Ticket", int)
"""When a read began, counted in invalidations of the cache."""


LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
"""The creation of a session whose table does not keep it: never fresh."""


LOWEST = 0
"""The trust level of a session that has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """The client of a request, as far as the request shows it. It proves no identity.

    ``address`` is a canonical IP address or None, ``user_agent`` is printable text of
    at most 512 characters, ``fingerprint`` is what the application computes of a device, at
    most 64 characters, ``location`` what it derives from an address.
    ``user_agent_hash`` is a SHA-256 hex digest.
    """

    address: str | None = None
    user_agent: str | None = None
    user_agent_hash: str = hashlib.sha256(b"").hexdigest()
    fingerprint: str | None = None
    location: str | None = None

    def __repr__(self) -> str:
        return f"Client(address={mask_address(self.address)})"


def mask_address(address: str | None) -> str:
    """Return the network of an address, for logs; never the host."""
    if address is None:
        return "unknown"
    separator = ":" if ":" in address else "."
    return separator.join(address.split(separator)[:2]) + separator + "…"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One row as it was read, together with the database's clock at that moment.

    All times are aware. ``token_digest`` and ``refresh_digest`` are SHA-256 hex
    digests, never tokens. ``slides`` says that activity moves ``expires_at`` ahead,
    ``undated`` that the table does not keep when a session was created, ``unlimited``
    that ``expires_at`` is the only limit there is. ``claim`` is no column: it comes from
    the token by which the row was found.
    """

    id: str
    user_id: str
    token_digest: str = field(repr=False)
    refresh_digest: str | None = field(repr=False)
    created_at: datetime | None
    expires_at: datetime
    refresh_expires_at: datetime | None
    last_activity_at: datetime | None
    is_active: bool
    read_at: datetime
    revoked_at: datetime | None = None
    revoked_reason: str | None = None
    address: str | None = field(default=None, repr=False)
    user_agent: str | None = field(default=None, repr=False)
    user_agent_hash: str | None = field(default=None, repr=False)
    fingerprint: str | None = field(default=None, repr=False)
    location: str | None = field(default=None, repr=False)
    user_is_active: bool = True
    password_changed_at: datetime | None = None
    level: int | None = None
    slides: bool = False
    undated: bool = False
    unlimited: bool = False
    claim: str | None = field(default=None, repr=False)

    @property
    def client(self) -> Client:
        """The client that signed in, as far as the row keeps it."""
        agent_hash = self.user_agent_hash
        if not agent_hash:
            agent_hash = hashlib.sha256((self.user_agent or "").encode()).hexdigest()
        return Client(
            address=self.address,
            user_agent=self.user_agent,
            user_agent_hash=agent_hash,
            fingerprint=self.fingerprint,
            location=self.location,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSession:
    """What a store needs to write one new row; lifetimes are added to its own clock.

    ``longest`` caps the refresh token, counted from the creation. ``replaces`` are the ids
    of sessions that end in the same transaction.
    """

    id: str
    user_id: str
    token_digest: str = field(repr=False)
    refresh_digest: str | None = field(repr=False)
    client: Client
    session_ttl: timedelta
    refresh_ttl: timedelta
    longest: timedelta
    replaces: tuple[str, ...] = ()
    limit: int | None = None
    evict: bool = True

    @classmethod
    def of(
        cls,
        facts: tuple[str, str, Client],
        pair: TokenPair,
        policy: Policy,
        *,
        remember: bool,
        replaces: tuple[str, ...],
        refreshes: bool,
    ) -> Self:
        """The row of a sign-in: its id, its user and the client that signs in.

        Where the table has no refresh token, its expiry is the session's own.
        """
        id, user_id, client = facts
        longest = policy.lifetime(remember=remember)
        alone = min(policy.refresh_ttl, longest)
        return cls(
            id=id,
            user_id=user_id,
            token_digest=pair.session_digest,
            refresh_digest=pair.refresh_digest if refreshes else None,
            client=client,
            session_ttl=policy.session_ttl if refreshes else alone,
            refresh_ttl=policy.refresh_ttl,
            longest=longest,
            replaces=replaces,
            limit=policy.max_sessions,
            evict=policy.on_limit == "evict",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """One rotation as a store writes it: only if ``presented`` still is the row's."""

    id: str
    presented: str = field(repr=False)
    token_digest: str = field(repr=False)
    refresh_digest: str = field(repr=False)
    session_ttl: timedelta
    refresh_ttl: timedelta
    longest: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class StepUp:
    """New tokens of a session, and the higher trust level that comes with them, as a store
    writes them.

    ``level`` is None where it stays as it is. ``refresh_digest`` is None where the table
    has no refresh token; the durations count only where it has one.
    """

    id: str
    level: int | None
    token_digest: str = field(repr=False)
    refresh_digest: str | None = field(repr=False)
    session_ttl: timedelta
    refresh_ttl: timedelta
    longest: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Touch:
    """Activity of one session at one time, by one generation of its token.

    ``at`` is None where that was no activity, and only shows that the client has its
    tokens: they are then recorded as seen, and as nothing more.
    """

    session_id: str
    token_digest: str = field(repr=False)
    at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session as an application sees it: no token, no digest."""

    id: str
    user_id: str
    created_at: datetime
    expires_at: datetime
    last_activity_at: datetime | None
    address: str | None = field(default=None, repr=False)
    user_agent: str | None = field(default=None, repr=False)
    fingerprint: str | None = field(default=None, repr=False)
    location: str | None = field(default=None, repr=False)
    level: int | None = None
    current: bool = False
    """True for the session that made the request which lists the sessions."""
    claim: str | None = field(default=None, repr=False)
    """What the application bound to the session's tokens, if one of them was shown."""

    @classmethod
    def of(cls, record: Record, *, current: bool = False) -> Session:
        """The public side of ``record``."""
        unknown = LONG_AGO if record.undated else record.read_at
        return cls(
            id=record.id,
            user_id=record.user_id,
            created_at=record.created_at or unknown,
            expires_at=record.expires_at,
            last_activity_at=record.last_activity_at,
            address=record.address,
            user_agent=record.user_agent,
            fingerprint=record.fingerprint,
            location=record.location,
            level=record.level,
            current=current,
            claim=record.claim,
        )


class Reason(StrEnum):
    """Why a session is invalid. For events and metrics, never for the client."""

    ABSENT = "absent"
    FORGED = "forged"
    NOT_FOUND = "not_found"
    REVOKED = "revoked"
    USER_DISABLED = "user_disabled"
    PASSWORD_CHANGED = "password_changed"  # noqa: S105 - a reason, no password
    EXPIRED = "expired"
    IDLE = "idle"
    ABSOLUTE = "absolute"
    REFRESH_EXPIRED = "refresh_expired"
    REPLAYED = "replayed"
    LATE = "late"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True)
class Valid:
    """Valid for ``remaining``; ``idle_remaining`` is None without an idle limit."""

    remaining: timedelta
    idle_remaining: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Invalid:
    """Denied, on fresh data."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Unknown:
    """No answer: neither allowed nor denied."""

    cause: str


Verdict = Valid | Invalid | Unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A session together with its tokens, as text for the client.

    ``session_lifetime`` and ``refresh_lifetime`` are what the cookies may last; both are
    None for a session that ends with the browser. ``refresh_token`` is None where the table
    has none. After ``deliver_until``, a reading of the engine's clock, these tokens must
    not be sent any more: a newer pair may be on its way. A client that did not receive this
    pair gets it again.
    """

    session: Session
    session_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    remember: bool
    session_lifetime: timedelta | None
    refresh_lifetime: timedelta | None
    deliver_until: float
    ticket: Ticket | None = field(default=None, repr=False)
    """When these tokens were read or written; None where they cannot be sent again."""
    body: Mapping[str, object] | None = field(default=None, repr=False)
    """The response of an authorization server with these tokens, where there is one."""

    @classmethod
    def of(
        cls,
        record: Record,
        pair: TokenPair,
        *,
        remember: bool,
        deliver_until: float,
        ticket: Ticket | None = None,
        longest: timedelta | None = None,
    ) -> Issued:
        """Return what a client gets when ``pair`` was written to ``record``.

        ``longest`` is how long the session cookie lasts where activity moves the expiry
        ahead: the cookie is not sent again each time.
        """
        refresh_ends = record.refresh_expires_at or record.expires_at
        session_lasts = longest or record.expires_at - record.read_at
        return cls(
            session=Session.of(record),
            session_token=pair.session,
            refresh_token=None if record.refresh_digest is None else pair.refresh,
            remember=remember,
            session_lifetime=session_lasts if remember else None,
            refresh_lifetime=refresh_ends - record.read_at if remember else None,
            deliver_until=deliver_until,
            ticket=ticket,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Authenticated:
    """A valid session; ``issued`` where its tokens were replaced or repeated."""

    session: Session
    issued: Issued | None = None


Answer = Authenticated | Invalid | Unknown
