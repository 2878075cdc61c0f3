"""Supabase: its ``auth.sessions`` and ``auth.refresh_tokens``, its cookie, its tokens.

    sessions = SupabaseSessions(dsn, url="https://abcd.supabase.co", jwt_secret=…)
    app = wrap(app, sessions)

Works beside a GoTrue server and ``@supabase/ssr`` on the same database and the same cookie.
No column is added and nothing is written that GoTrue would not write.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar

from handstamp.config import Cookies, Policy
from handstamp.core.cookies import CookieTransport, Credentials
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
    NO_STORE,
    Came,
    CookieSession,
    SupabaseCookie,
    SupabaseCookieReader,
    SupabaseCookieWriter,
    is_piece,
    storage_key,
)
from handstamp.supabase.jwt import AccessTokens, Claims, Keys, KeySet, TokenIssuer
from handstamp.supabase.rows import CreatedAuthSession, NewAuthSession
from handstamp.supabase.rules import SupabaseRules
from handstamp.supabase.store import SupabaseStore
from handstamp.supabase.table import SupabaseTable
from handstamp.supabase.tokens import KeyRing

_NOBODY = Client()


class SupabaseSessions(Sessions):
    """Every session of one project's Supabase Auth.

    ``url`` is the project's, from which the cookie has its name; or give ``cookie``.
    ``jwt_secret`` is the project's HS256 secret, ``jwt_keys`` its JWK set, with a private
    key to refresh and sign in here, or public to verify only. ``rules`` are the settings
    of the GoTrue beside this one, ``encryption`` its database encryption keys, ``issuer``
    its ``JWT_ISSUER``; ``claims`` may add to the claims of tokens minted here. Tokens of
    OAuth clients are refused, but for those in ``oauth_clients``, by id. ``policy`` gives
    the bounds of the cache and of waiting; lifetimes are GoTrue's. The rest as for
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
        _check_address(database)
        self.cookie = cookie or SupabaseCookie(name=storage_key(url or ""))
        policy = policy or Policy()
        if policy.max_sessions is not None:
            raise ConfigError("max_sessions has no place here: GoTrue has single_per_user")
        self._auth = SupabaseStore(
            database,
            entropy=entropy,
            rules=rules,
            keys=encryption,
            schema=schema,
            pool_size=pool_size,
            budget=policy.time_budget,
            connect=connect,
            listen_dsn=listen_dsn,
        )
        keys = Keys(secret=jwt_secret, key_set=jwt_keys)
        self._oauth_clients = frozenset(oauth_clients)
        self._issuer = TokenIssuer(
            tokens=AccessTokens(keys, issuer=issuer, claims=claims),
            rules=self._auth.rules,
            with_user=not self.cookie.http_only,
        )
        super().__init__(
            SupabaseTable(self._auth, self._oauth_clients),
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
        """See :meth:`Sessions.start_over`."""
        super().reset_after_fork()
        self._supabase.reset_after_fork()

    def cookie_transport(self, cookies: Cookies | None) -> CookieTransport:
        """The cookie of ``@supabase/ssr``; ``cookies`` may change its attributes."""
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
            cookies=_as_settings(cookie, cookies),
            reader=_Reader(cookie.name),
            writer=_Writer(cookie),
        )

    async def create(
        self,
        user_id: str,
        *,
        client: Client = _NOBODY,
        remember: bool = True,
        replaces: str | Iterable[str] | None = None,
        claim: str | None = None,
        method: str = "password",
    ) -> Issued:
        """Open a session for a user whose identity is already proven, as GoTrue does.

        ``method`` is how, in GoTrue's words. ``remember`` changes nothing: the cookie of
        ``@supabase/ssr`` always outlives the browser. Raises as :meth:`Sessions.create`,
        and :class:`ConfigError` where there is no key to sign with. What the claims hook
        raises comes through, and then no session is left.
        """
        if claim is not None:
            raise ConfigError("these tokens are GoTrue's: add to them by claims=")
        self._issuer.check()
        await self.open()
        before = self.clock()
        new = NewAuthSession(method=method, replaces=ids_of(replaces))
        try:
            created = await self._auth.create(user_id, client, new)
        except LoginRefused as exc:
            self.publish(LoginWasRefused(user_id=user_id, reason=exc.reason))
            raise
        for ended in created.ended:
            self._ended(ended, "replaced by a new login")
        issued = await self._issue(created, before)
        session = created.session
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

    async def _issue(self, created: CreatedAuthSession, before: float) -> Issued:
        lasts = self._auth.rules.access_token_ttl.total_seconds()
        try:
            return self._issuer.issue(created, before + lasts)
        except Exception:
            # The application's hook failed: nobody will ever have these tokens.
            with suppress(HandstampError):
                await self.store.revoke(created.session.id, reason="never handed out")
            raise

    async def refresh(
        self, refresh_token: str, *, client: Client = _NOBODY
    ) -> Issued | None:
        """See :meth:`Sessions.refresh`; ``Issued.body`` is what GoTrue would answer.

        Raises :class:`ConfigError` too, where there is no key to sign with. What the
        claims hook raises comes through, and the same refresh token stays good.
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
        """Not here: a second factor, verified at GoTrue, raises the assurance level."""
        raise ConfigError("assurance levels are raised by GoTrue's MFA, not here")


def _check_address(database: object) -> None:
    if not isinstance(database, str):
        raise ConfigError(
            "database must be the address of a PostgreSQL with Supabase's tables, also in "
            f"tests: no {type(database).__name__} stands in for them"
        )


def _as_settings(cookie: SupabaseCookie, given: Cookies | None) -> Cookies:
    """The cookie as the settings of two: whoever compares names, or asks where a cookie
    goes, is told of this one."""
    return replace(
        given or Cookies(),
        session_name=cookie.name,
        refresh_name=f"{cookie.name}.0",
        same_site=cookie.same_site,
        secure=cookie.secure,
        path=cookie.path,
        domain=cookie.domain,
    )


class _Reader:
    """The cookie, or a bearer token, each under the text it is cached by."""

    agrees = None  # one cookie holds both tokens

    def __init__(self, name: str) -> None:
        self._reader = SupabaseCookieReader(name)
        self.sole = self._reader.sole

    def read(
        self,
        headers: Iterable[tuple[bytes, bytes]],
        *,
        bearer: bool = True,
        every: bool = False,
    ) -> Credentials:
        headers = list(headers)
        found = self._reader.read(headers, every=every)
        if found.bearer is not None:
            alone = CookieSession(access_token=found.bearer, refresh_token="")
            return Credentials(session=(_text(alone),), claims=(alone,), sent=True)
        texts = tuple(map(_text, found.sessions))
        if len(texts) == 1:
            lines = [bytes(value) for name, value in headers if name.lower() == b"cookie"]
            sole = self.sole(b"; ".join(lines))
            if sole is not None and sole == found.texts[0].encode("latin-1", "replace"):
                texts = (sole,)  # the text by which the short way finds it
        return Credentials(
            session=texts,
            claims=found.sessions,
            came=found.came,
            sent=found.sent,
            ambient=found.ambient,
            incomplete=found.incomplete,
        )

    def came(self, headers: Iterable[tuple[bytes, bytes]]) -> Came:
        """See :meth:`Reader.came`; also beside a bearer token."""
        return self._reader.read(headers, bearer=False, every=True).came


def _text(claim: CookieSession) -> bytes:
    """Both tokens: an access token alone is cached longer than one that can be renewed."""
    return f"{claim.access_token}\n{claim.refresh_token}".encode()


class _Names(Container[bytes]):
    """The cookie and all of its pieces."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __contains__(self, cookie: object) -> bool:
        return isinstance(cookie, bytes) and is_piece(cookie.decode("latin-1"), self._name)


class _Writer:
    def __init__(self, cookie: SupabaseCookie) -> None:
        self._writer = SupabaseCookieWriter(cookie)
        self.names = _Names(cookie.name)
        self.no_store = NO_STORE

    def deliver(self, issued: Issued, came: Came) -> tuple[bytes, ...]:
        return tuple(self._writer.session(issued.body or {}, came))

    def clear(self, came: Came) -> tuple[bytes, ...]:
        return tuple(self._writer.clear(came))


__all__ = ("KeyRing", "SupabaseCookie", "SupabaseRules", "SupabaseSessions")
