"""Everything handstamp raises, in one tree.

    HandstampError                      the root: catch this to catch us all
    ├── ConfigError                     the operator's fault: refused at construction
    ├── LoginRefused                    the user may not log in now             403
    ├── AuthenticationRequired          the client's fault: not signed in       401
    │   └── FreshLoginRequired          signed in, but too long ago             401
    ├── StepUpRequired                  signed in, at too low a trust level     403
    ├── CrossSiteRequest                another site's page made this request   403
    └── SessionsUnavailable             nobody's fault here: no answer from the
                                        database, so nobody can say             503

``status`` is a hint for whoever turns the exception into a response; the framework
modules do so. Evidence is in attributes, never only in the text, and no message ever
holds a token, a digest or a full address.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Literal


class HandstampError(Exception):
    """The root of everything handstamp raises."""

    status: int = 500

    @property
    def public_message(self) -> str:
        """What a client may read of it: the text where that is the client's business."""
        return str(self) if self.status < 500 else "temporarily unavailable"

    @property
    def headers(self) -> dict[str, str]:
        """The headers that belong to an answer of it."""
        return {}


class ConfigError(HandstampError):
    """A setting that cannot work, found before the first request."""


RefusedReason = Literal["unknown_user", "user_disabled", "user_locked", "too_many"]


class LoginRefused(HandstampError):
    """The database holds a reason not to open a session for this user.

    ``reason`` is one of ``unknown_user``, ``user_disabled``, ``user_locked`` and
    ``too_many`` (``Policy.max_sessions`` with ``on_limit="refuse"``).
    """

    status = 403

    def __init__(self, reason: RefusedReason) -> None:
        self.reason: RefusedReason = reason
        super().__init__(
            f"no session was opened: {reason.replace('_', ' ')}; "
            "answer the sign-in form with a refusal"
        )


class AuthenticationRequired(HandstampError):
    """The request carries no valid session."""

    status = 401

    def __init__(self, message: str = "sign in first") -> None:
        super().__init__(message)


class FreshLoginRequired(AuthenticationRequired):
    """The session is valid, but its sign-in is older than this route allows."""

    def __init__(self, *, within: timedelta, age: timedelta) -> None:
        self.within = within
        self.age = age
        super().__init__(
            f"the sign-in is {int(age.total_seconds())} s old and this needs one "
            f"within {int(within.total_seconds())} s: sign in again"
        )


class StepUpRequired(HandstampError):
    """The session's trust level is lower than this route asks for."""

    status = 403

    def __init__(self, *, required: int, level: int | None) -> None:
        self.required = required
        self.level = level
        super().__init__(
            f"this needs trust level {required} and the session has "
            f"{'none' if level is None else level}"
        )


class CrossSiteRequest(HandstampError):
    """A page of another site made this request, as the browser itself reports."""

    status = 403

    def __init__(self) -> None:
        super().__init__(
            "refused: the request was made by another site; if that site is yours, "
            "list it in trusted_origins"
        )


class SessionsUnavailable(HandstampError):
    """The database gave no answer, so the session is neither valid nor invalid.

    ``retry_after`` is a whole number of seconds, for the header of that name.
    """

    status = 503

    def __init__(self, cause: str = "no answer from the database") -> None:
        self.cause = cause
        self.retry_after = 1
        super().__init__(f"sessions cannot be checked now ({cause}); try again shortly")

    @property
    def headers(self) -> dict[str, str]:
        """``Retry-After``, in seconds (RFC 9110, section 10.2.3)."""
        return {"Retry-After": str(self.retry_after)}
