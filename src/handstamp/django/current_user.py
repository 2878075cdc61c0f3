"""``request.user``: whose session it is, as long as it is of their present password.

The hash that a session carries is compared with the user's own whenever a request loads
the user (:mod:`handstamp.django.auth_hash`). Where it is another one, the request is
nobody's and the session is ended: this holds for every writer of the password, whatever
Django knows of it.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from handstamp.core.records import Session
from handstamp.django.auth_hash import is_of
from handstamp.django.loops import later
from handstamp.django.transports import AnyHandle
from handstamp.django.users import anonymous, auser_of, user_of
from handstamp.engine.sessions import Sessions

PASSWORD_CHANGED = "password changed"  # noqa: S105 - the reason of an end
"""The reason by which a session is ended."""


def get_user(request: Any) -> Any:
    """``request.user``, looked up once."""
    if not hasattr(request, "_session_user"):
        request._session_user = _checked(request, user_of(request.handstamp.user_id))
    return request._session_user


async def aget_user(request: Any) -> Any:
    """``await request.auser()``, looked up once, together with the other."""
    if not hasattr(request, "_session_user"):
        user = await auser_of(request.handstamp.user_id)
        request._session_user = _checked(request, user)
    return request._session_user


def _checked(request: Any, user: Any) -> Any:
    handle: AnyHandle = request.handstamp
    session = handle._session
    if session is None or not user.is_authenticated or is_of(session.claim, user):
        return user
    handle._session = None
    later(handle.sessions, _end, handle.sessions, session, _tokens(handle))
    return anonymous()


def _tokens(handle: AnyHandle) -> tuple[bytes, ...]:
    """The session tokens of this request: those it has got, or else those it came with."""
    if handle._issued is not None:
        return (handle._issued.session_token.encode(),)
    return handle._door.reader.read(handle._headers, bearer=handle._door.bearer).session


async def _end(sessions: Sessions, session: Session, tokens: tuple[bytes, ...]) -> None:
    """End a session, unless these are tokens that were replaced: a request that was on its
    way when the password changed here ends nothing."""
    digests = [sha256(token).hexdigest() for token in tokens]
    found = await sessions.store.find(digests) if digests else []
    if any(record.id == session.id for record in found):
        await sessions.revoke(session.id, reason=PASSWORD_CHANGED)
