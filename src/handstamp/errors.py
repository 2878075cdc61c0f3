"""All exceptions of handstamp, with the HTTP status and the WebSocket close code of each.

    HandstampError                  the root: catch this to catch all   500  1011
    ├── ConfigError                 the operator must change a setting  500  1011
    ├── LoginRefused                the user may not log in now         403  1008
    ├── AuthenticationRequired      the request has no valid session    401  4401
    │   └── FreshLoginRequired      the login is too long ago           401  4401
    ├── StepUpRequired              the trust level is too low          403  1008
    ├── CrossSiteRequest            another site made the request       403  1008
    └── SessionsUnavailable         the database gave no answer         503  1013

Rule 1. ``status`` and ``close_code`` are written here and nowhere else. Every transport and
every framework module reads them, so a new exception needs no other change.
Rule 2. An exception with status 500 is never answered. It is raised again, because the
operator has to read it in the log.
Rule 3. Evidence is in attributes, not only in the text. No text contains a token, a digest
or a full address. A client reads ``public_message``
or ``close_reason``, never ``str(error)``.

Close codes (RFC 6455, section 7.4): 4401 is in the range for applications and corresponds
to HTTP 401; the client should log in. 1008 means that a policy refuses the request; a new
login does not help. 1013 means "try again later". 1011 is an internal error of the server.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Literal


class HandstampError(Exception):
    """The root of all exceptions of handstamp.

    ``status`` is the HTTP status of the response, ``close_code`` the code that closes a
    WebSocket.
    """

    status: int = 500
    close_code: int = 1011

    @property
    def public_message(self) -> str:
        """The text that the client may read."""
        return str(self) if self.status < 500 else "temporarily unavailable"

    @property
    def close_reason(self) -> str:
        """The same text for a close frame of a WebSocket, which has room for 123 bytes
        (RFC 6455, section 5.5)."""
        return self.public_message.encode()[:123].decode(errors="ignore")

    @property
    def headers(self) -> dict[str, str]:
        """The headers that the response must have."""
        return {}


class ConfigError(HandstampError):
    """A setting cannot work. Raised before the first request where that is possible."""


RefusedReason = Literal["unknown_user", "user_disabled", "user_locked", "too_many"]


class LoginRefused(HandstampError):
    """The row of this user, or a limit of the policy, does not allow a new session.

    ``reason`` is one of ``unknown_user``, ``user_disabled``, ``user_locked`` and
    ``too_many`` (``Policy.max_sessions`` with ``on_limit="refuse"``).
    """

    status, close_code = 403, 1008

    def __init__(self, reason: RefusedReason) -> None:
        self.reason: RefusedReason = reason
        super().__init__(
            f"no session was opened: {reason.replace('_', ' ')}; "
            "answer the sign-in form with a refusal"
        )


class AuthenticationRequired(HandstampError):
    """The request carries no valid session."""

    status, close_code = 401, 4401

    def __init__(self, message: str = "sign in first") -> None:
        super().__init__(message)


class FreshLoginRequired(AuthenticationRequired):
    """The session is valid, but its login is older than this route allows.

    ``within`` is the longest age that is allowed, ``age`` the age of the login.
    """

    def __init__(self, *, within: timedelta, age: timedelta) -> None:
        self.within = within
        self.age = age
        super().__init__(
            f"the sign-in is {int(age.total_seconds())} s old and this needs one "
            f"within {int(within.total_seconds())} s: sign in again"
        )


class StepUpRequired(HandstampError):
    """The session's trust level is lower than this route requires.

    ``required`` is the level of the route, ``level`` that of the session; None for a
    session without one.
    """

    status, close_code = 403, 1008

    def __init__(self, *, required: int, level: int | None) -> None:
        self.required = required
        self.level = level
        super().__init__(
            f"this needs trust level {required} and the session has "
            f"{'none' if level is None else level}"
        )


class CrossSiteRequest(HandstampError):
    """A page of another site made this request. The browser's own headers show it."""

    status, close_code = 403, 1008

    def __init__(self) -> None:
        super().__init__(
            "refused: the request was made by another site; if that site is yours, "
            "list it in trusted_origins"
        )


class SessionsUnavailable(HandstampError):
    """The database gave no answer, so the session is neither valid nor invalid.

    ``cause`` is for the log. ``retry_after`` is a whole number of seconds, the value of the
    header ``Retry-After``.
    """

    status, close_code = 503, 1013

    def __init__(self, cause: str = "no answer from the database") -> None:
        self.cause = cause
        self.retry_after = 1
        super().__init__(f"sessions cannot be checked now ({cause}); try again shortly")

    @property
    def headers(self) -> dict[str, str]:
        """``Retry-After``, in seconds (RFC 9110, section 10.2.3)."""
        return {"Retry-After": str(self.retry_after)}
