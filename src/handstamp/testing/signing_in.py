"""Signing in a test client without its sign-in form.

A real session is made by the application's own engine, and its cookies go into the
client's jar. Nothing is faked: the client's next request is authenticated, refreshed,
listed and revoked like any other.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, fields
from functools import partial

from handstamp.config import Cookies
from handstamp.core.records import Client
from handstamp.engine.answers import Issued
from handstamp.engine.sessions import Sessions
from handstamp.engine.speech import Speech
from handstamp.errors import ConfigError
from handstamp.testing import carrying
from handstamp.testing.crossing import acall, across, call, cross
from handstamp.testing.doors import find_speech
from handstamp.testing.jars import is_async

_NOBODY = Client()


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedIn(Issued):
    """What :func:`login_as` did: the session, its tokens as text, and its engine."""

    sessions: Sessions = field(repr=False)

    def revoke(self, *, reason: str = "revoked") -> bool:
        """End this session; whether it was live. As :meth:`Sessions.revoke`."""
        return call(self.sessions.revoke, self.session.id, reason=reason)

    async def arevoke(self, *, reason: str = "revoked") -> bool:
        """The same, for a test with await."""
        return await acall(self.sessions.revoke, self.session.id, reason=reason)


def login_as(
    client: object,
    user_id: str,
    *,
    remember: bool = False,
    signed_in_from: Client = _NOBODY,
    sessions: Sessions | None = None,
    cookies: Cookies | None = None,
) -> SignedIn:
    """Sign a test client in, without a request.

    ``client`` is the test client of Starlette, FastAPI, Litestar, Django, Django REST
    framework, Flask or Falcon, a WebTest ``TestApp``, or an ``httpx.Client`` on a WSGI
    application. ``sessions`` and ``cookies`` are found from the wrapped application
    unless they are given. ``signed_in_from`` is what the row remembers of the sign-in's
    address and browser. With :class:`SupabaseSessions` the jar gets the cookie of
    ``@supabase/ssr``, and the user must have their row in ``auth.users``.

    Raises :class:`ConfigError` where the client would not send the cookies or where the
    middleware is not found, and what :meth:`Sessions.create` raises.
    """
    if is_async(client):
        raise ConfigError(f"{type(client).__name__} is async: await alogin_as(…)")
    sessions, speech = find_speech(client, sessions, cookies)
    carrying.check(client, speech)  # before there is a session that nobody has
    create = partial(sessions.create, user_id, client=signed_in_from, remember=remember)
    issued = cross(sessions, create)
    return _give(client, issued, sessions, speech)


async def alogin_as(
    client: object,
    user_id: str,
    *,
    remember: bool = False,
    signed_in_from: Client = _NOBODY,
    sessions: Sessions | None = None,
    cookies: Cookies | None = None,
) -> SignedIn:
    """The same for a client whose requests are awaited.

    ``client`` is an ``httpx.AsyncClient`` on an ``ASGITransport``, Litestar's
    ``AsyncTestClient``, Quart's test client, Django's ``AsyncClient``, or Falcon's
    ``ASGIConductor``. The rest is as for :func:`login_as`.
    """
    if not is_async(client):
        raise ConfigError(f"{type(client).__name__} is not async: call login_as(…)")
    sessions, speech = find_speech(client, sessions, cookies)
    carrying.check(client, speech)  # before there is a session that nobody has
    create = partial(sessions.create, user_id, client=signed_in_from, remember=remember)
    if hasattr(client, "portal"):  # Litestar's serves on a loop of its own
        issued = await asyncio.to_thread(cross, sessions, create)
    else:
        issued = await across(sessions, create)
    return _give(client, issued, sessions, speech)


def _give(client: object, issued: Issued, sessions: Sessions, speech: Speech) -> SignedIn:
    carrying.give(client, issued, speech)
    known = {f.name: getattr(issued, f.name) for f in fields(issued)}
    return SignedIn(**known, sessions=sessions)
