"""Supabase: sessions in its ``auth.sessions`` and ``auth.refresh_tokens``, with its cookie
and its tokens.

    sessions = SupabaseSessions(dsn, url="https://abcd.supabase.co", jwt_secret=…)
    app = wrap(app, sessions)

Works beside a GoTrue server and ``@supabase/ssr`` on the same database and the same cookie.
No column is added and nothing is written that GoTrue would not write.

The way of a request, module by module:

- ``cookies``: the cookie or the bearer token, read from the headers; and Set-Cookie.
- ``jwt``: the signature and the claims of the access token; new access tokens.
- ``authenticate``: the decision. It verifies the access token, reads the row of its session
  and refreshes.
- ``store``: the table of sessions: reading rows, signing in, ending sessions.
- ``refresh``: the transaction of a refresh. ``tokens`` are its refresh tokens and their
  keys.
- ``rules``: what GoTrue's rules say, without I/O.
- ``sql``, ``rows`` and ``schema``: the statements, their results, and what a database has.
- ``doctor``: what ``handstamp doctor`` reports about these tables.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar

from handstamp.config import Cookies, Policy
from handstamp.core.cookies import CookieTransport
from handstamp.core.models import Authenticated, Client, Issued
from handstamp.core.tokens import ids_of
from handstamp.engine.authenticate import Authenticator
from handstamp.engine.clocks import Clock, uptime
from handstamp.engine.sessions import Sessions
from handstamp.engine.state import EngineState
from handstamp.errors import ConfigError, HandstampError, LoginRefused
from handstamp.events import LoggedIn, LoginWasRefused
from handstamp.supabase.authenticate import SupabaseAuthenticator
from handstamp.supabase.cookies import (
    SupabaseCookie,
    SupabaseCookieReader,
    SupabaseCookieWriter,
    storage_key,
)
from handstamp.supabase.jwt import AccessTokens, Claims, Keys, KeySet, TokenIssuer
from handstamp.supabase.rules import SupabaseRules
from handstamp.supabase.store import SupabaseStore
from handstamp.supabase.tokens import KeyRing

_UNKNOWN_CLIENT = Client()


class SupabaseSessions(Sessions):
    """The sessions of one project's Supabase Auth.

    ``url`` is the project's URL, which determines the name of the cookie; or give
    ``cookie``. ``jwt_secret`` is the project's HS256 secret, ``jwt_keys`` its JWK set: with
    a private key to refresh and sign in here, or with public keys to verify only. ``rules``
    are the settings of the GoTrue that writes the same tables, ``encryption`` its database
    encryption keys, ``issuer`` its ``JWT_ISSUER``. ``claims`` is called with the claims of
    each token that is minted here and returns those to sign. Tokens of OAuth clients are
    refused, except for the clients in ``oauth_clients``, by id. ``policy`` sets the bounds
    of the cache and of waiting; lifetimes are GoTrue's. The rest is as for
    :class:`Sessions`. Raises :class:`ConfigError` on construction.
    """

    carries_claims: ClassVar[bool] = False

    def __init__(
        self,
        database: str,
        *,
        url: str | None = None,
        cookie: SupabaseCookie | None = None,
        jwt_secret: str | bytes | None = None,
        jwt_keys: KeySet | None = None,
        rules: SupabaseRules | None = None,
        encryption: KeyRing | None = None,
        issuer: str = "",
        claims: Callable[[Claims], Claims] | None = None,
        oauth_clients: Collection[str] = (),
        schema: str = "auth",
        policy: Policy | None = None,
        cache_size: int = 100_000,
        pool_size: int = 10,
        connect: Mapping[str, Any] | None = None,
        listen_dsn: str | None = None,
        clock: Clock = uptime,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        if (url is None) == (cookie is None):
            raise ConfigError("give either url= of the project or cookie=")
        if not isinstance(database, str):
            raise ConfigError(
                "database must be the address of a PostgreSQL with Supabase's tables, also "
                f"in tests: no {type(database).__name__} can replace them"
            )
        self.cookie = cookie or SupabaseCookie(name=storage_key(url or ""))
        policy = policy or Policy()
        if policy.max_sessions is not None:
            raise ConfigError("max_sessions has no place here: GoTrue has single_per_user")
        self._oauth_clients = frozenset(oauth_clients)
        self._auth = SupabaseStore(
            database,
            entropy=entropy,
            rules=rules,
            keys=encryption,
            oauth_clients=self._oauth_clients,
            schema=schema,
            pool_size=pool_size,
            budget=policy.time_budget,
            connect=connect,
            listen_dsn=listen_dsn,
        )
        keys = Keys(secret=jwt_secret, key_set=jwt_keys)
        self._issuer = TokenIssuer(
            tokens=AccessTokens(keys, issuer=issuer, claims=claims),
            rules=self._auth.rules,
            with_user=not self.cookie.http_only,
        )
        super().__init__(
            self._auth,
            secret=entropy(32).hex(),  # of tokens of ours, and there are none here
            policy=policy,
            cache_size=cache_size,
            clock=clock,
            entropy=entropy,
        )

    def _authenticating(self, state: EngineState) -> Authenticator:
        self._supabase = SupabaseAuthenticator(
            state,
            self._refresher,
            self._listener,
            self._auth,
            self._issuer,
            self._ended,
            self._oauth_clients,
        )
        return self._supabase

    def reset_after_fork(self) -> None:
        """See :meth:`Sessions.reset_after_fork`."""
        super().reset_after_fork()
        self._supabase.reset_after_fork()

    def cookie_transport(self, cookies: Cookies | None) -> CookieTransport:
        """See :meth:`Sessions.cookie_transport`: the cookie of ``@supabase/ssr``, with the
        attributes of ``cookies`` where they are given."""
        cookie = self.cookie
        if cookies is not None:
            cookie = replace(
                cookie,
                secure=cookies.secure,
                same_site=cookies.same_site,
                path=cookies.path,
                domain=cookies.domain,
            )
        return CookieTransport(
            cookies=cookie.as_settings(cookies or Cookies()),
            reader=SupabaseCookieReader(cookie.name),
            writer=SupabaseCookieWriter(cookie),
        )

    async def create(
        self,
        user_id: str,
        *,
        client: Client = _UNKNOWN_CLIENT,
        remember: bool = True,
        replaces: str | Iterable[str] | None = None,
        claim: str | None = None,
        method: str = "password",
    ) -> Issued:
        """Opens a session for a user whose identity is already proven, as GoTrue does.

        ``method`` is how the user signed in, in GoTrue's words. ``remember`` changes
        nothing: the cookie of ``@supabase/ssr`` always outlives the browser. Raises as
        :meth:`Sessions.create`, and :class:`ConfigError` where there is no key to sign
        with. An exception of the claims hook is raised, and then no session is left.
        """
        if claim is not None:
            raise ConfigError("these tokens are GoTrue's: add to them by claims=")
        self._issuer.check()
        await self.open()
        before = self.clock()
        try:
            created = await self._auth.sign_in(
                user_id, client, method=method, replaces=ids_of(replaces)
            )
        except LoginRefused as exc:
            self.publish(LoginWasRefused(user_id=user_id, reason=exc.reason))
            raise
        for ended in created.ended:
            self._ended(ended, "replaced by a new login")
        session = created.session
        lifetime = self._auth.rules.access_token_ttl.total_seconds()
        try:
            issued = self._issuer.issue(created, before + lifetime)
        except Exception:
            # The application's hook failed: these tokens are never delivered.
            with suppress(HandstampError):
                await self.store.revoke(session.id, reason="never handed out")
            raise
        self._state.database_clock.update(session.read_at, self.clock())
        self.publish(
            LoggedIn(
                session_id=session.id,
                user_id=session.user_id,
                client=client,
                remember=True,
            )
        )
        return issued

    async def refresh(
        self, refresh_token: str, *, client: Client = _UNKNOWN_CLIENT
    ) -> Issued | None:
        """See :meth:`Sessions.refresh`; ``Issued.body`` is the body of GoTrue's response.

        Raises :class:`ConfigError` too, where there is no key to sign with. An exception of
        the claims hook is raised, and the same refresh token stays valid.
        """
        self._issuer.check()
        await self.open()
        return await self._supabase.refresh(refresh_token, client)

    async def step_up(
        self,
        session_id: str,
        level: int,
        *,
        refresh: Sequence[bytes] = (),
        claim: str | None = None,
    ) -> Authenticated | None:
        """Raises :class:`ConfigError`: GoTrue raises the assurance level, when it verifies
        a second factor."""
        raise ConfigError("assurance levels are raised by GoTrue's MFA, not here")


__all__ = ("KeyRing", "SupabaseCookie", "SupabaseRules", "SupabaseSessions")
