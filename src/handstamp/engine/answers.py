"""What the engine says about a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from handstamp.core.lifetime import Invalid, Unknown
from handstamp.core.records import Record, Session
from handstamp.core.tokens import TokenPair
from handstamp.engine.cache import Ticket


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A session together with its tokens, as text for the client.

    ``session_lifetime`` and ``refresh_lifetime`` are what the cookies may last; both are
    None for a session that ends with the browser. ``refresh_token`` is None where the table
    has none. After ``deliver_until``, a reading of
    the engine's clock, these tokens must not be sent any more: a newer pair may be on its
    way, and whoever missed this one gets it again.
    """

    session: Session
    session_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    remember: bool
    session_lifetime: timedelta | None
    refresh_lifetime: timedelta | None
    deliver_until: float
    ticket: Ticket | None = field(default=None, repr=False)
    """The moment these tokens were read or written, where they can be had again."""
    body: Mapping[str, object] | None = field(default=None, repr=False)
    """The tokens as an authorization server answers them, where one has its own words."""

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
        """The answer to whoever is to hold ``pair``, which is in ``record``.

        ``longest`` is what the session's cookie may last where its expiry moves ahead
        with activity: the cookie is not sent again each time.
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
