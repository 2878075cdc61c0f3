"""What happened: one frozen value per fact, for hooks, logs and metrics.

Subscribe with ``sessions.on(Replayed, callback)``. An event is published after the
change is committed, so a failing callback can undo nothing; what it raises is logged. No
event holds a token or a digest, and a log shows only the network of a client.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from handstamp.core.models import Client
from handstamp.errors import RefusedReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The root of all events. ``action`` is its stable name in logs and metrics.

    ``unauthenticated`` events can be caused by a client without any genuine token: one a
    second of each kind is logged.
    """

    action: ClassVar[str] = "event"
    alarming: ClassVar[bool] = False
    unauthenticated: ClassVar[bool] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEvent(Event):
    """An event of one session."""

    session_id: str
    user_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedIn(SessionEvent):
    """A session was created."""

    action: ClassVar[str] = "logged_in"
    client: Client
    remember: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginWasRefused(Event):
    """A new session was refused, for a reason that the database holds."""

    action: ClassVar[str] = "login_refused"
    user_id: str
    reason: RefusedReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Refreshed(SessionEvent):
    """Both tokens were replaced."""

    action: ClassVar[str] = "refreshed"
    client: Client


@dataclass(frozen=True, slots=True, kw_only=True)
class Reissued(SessionEvent):
    """The same successor was sent again; ``redated`` if its first response was lost."""

    action: ClassVar[str] = "reissued"
    client: Client
    redated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed(SessionEvent):
    """A stale refresh token proved that two parties hold one session: it is revoked.

    ``presented_by`` sent the stale token, ``signed_in_by`` is the client that the row
    keeps. It cannot be known which of them is the thief: both are signed out.
    """

    action: ClassVar[str] = "replayed"
    alarming: ClassVar[bool] = True
    presented_by: Client
    signed_in_by: Client


@dataclass(frozen=True, slots=True, kw_only=True)
class LateRefresh(SessionEvent):
    """An old token was refused, and the session kept: it came within grace, or the rules
    of its table do not take it for theft."""

    action: ClassVar[str] = "late_refresh"
    client: Client


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked(SessionEvent):
    """A session was ended."""

    action: ClassVar[str] = "revoked"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BindingChanged(SessionEvent):
    """A session is used from another network or browser than it was opened from.

    A signal and no verdict: phones change networks all day. Once for each change, as far as
    one process sees it. A cached session is looked at once a second, with the request that
    comes then; requests that follow within that second are not compared.
    """

    action: ClassVar[str] = "binding_changed"
    was: Client
    now: Client
    address_changed: bool
    user_agent_changed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicateCookies(Event):
    """Several genuine tokens in different cookies of one name, or a session token beside
    the refresh token of another session. ``candidates`` is their number; what anybody can
    make up is not counted. ``conflict`` when more than one of them was valid and they
    belong to different sessions: then none counted."""

    action: ClassVar[str] = "duplicate_cookie"
    alarming: ClassVar[bool] = True
    candidates: int
    conflict: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSwapped(Event):
    """A genuine token came in the other token's cookie: a client never does that."""

    action: ClassVar[str] = "token_swap"
    alarming: ClassVar[bool] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossSiteRefused(Event):
    """A write made by another site's page was refused: a request with our cookie, or a
    login, a logout and the like with or without."""

    action: ClassVar[str] = "cross_site_refused"
    unauthenticated: ClassVar[bool] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CookieOverridden(Event):
    """The application set a cookie of our name itself. ``dropped`` if ours replaced it."""

    action: ClassVar[str] = "cookie_overridden"
    alarming: ClassVar[bool] = True
    unauthenticated: ClassVar[bool] = True
    dropped: bool
