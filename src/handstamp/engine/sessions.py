"""Sessions: the engine as one object, for middleware and for code outside a request.

One instance serves a process. Nothing starts in the constructor: it opens on the event loop
that first needs it. If that loop is closed, the next one replaces it, because some test
clients make a loop for every request. Four tasks run beside the requests: the listener, the
two of the invalidator, and the one that writes activity. None is left after :meth:`close`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import Context
from datetime import datetime
from functools import partial
from typing import Any, ClassVar, Self, TypeVar

from handstamp._fork import pin, reset_in_forked_children
from handstamp.config import Cookies, Policy
from handstamp.core.cookies import CookieTransport, Credentials, cookie_pair_transport
from handstamp.core.lifetime import judge_family
from handstamp.core.models import (
    Answer,
    Authenticated,
    Client,
    Invalid,
    Issued,
    Session,
    Ticket,
)
from handstamp.core.tokens import Tokens, list_secrets
from handstamp.engine.authenticate import Authenticator
from handstamp.engine.cache import Cache
from handstamp.engine.clocks import Clock, DatabaseClock, uptime
from handstamp.engine.dispatch import EventDispatcher, Stats, Subscriber
from handstamp.engine.invalidation import Invalidator, NotificationListener
from handstamp.engine.issue import Issuer, make_id
from handstamp.engine.refresh import Refresher
from handstamp.engine.state import EngineState
from handstamp.errors import ConfigError
from handstamp.events import Event, Revoked
from handstamp.stores.base import Ended, Store, channel_of
from handstamp.stores.shapes import ULID_HASHED, TableShape
from handstamp.stores.table import TableStore

E = TypeVar("E", bound=Event)
_UNKNOWN = Client()
PRUNE_BATCH = 500
"""The most rows that one transaction of ``prune`` deletes."""


class Sessions:
    """Every session of one table.

    ``database`` is a PostgreSQL URI, in which special characters of the password are
    percent-encoded, or a :class:`Store`. ``secret`` is a text of at least 32 bytes;
    ``secrets`` is a list of them, oldest first, for changing it. ``cache_size`` is a number
    of sessions. ``connect`` goes to asyncpg as it is. ``listen_dsn`` is an address of the
    server itself, if ``database`` leads to a pooler in transaction mode, which delivers no
    notification. ``clock``, ``entropy`` and ``new_id`` are for tests.

    Use it as an async context manager, or call :meth:`open` and :meth:`close`; the
    middleware calls them itself. The constructor raises :class:`ConfigError`.
    """

    carries_claims: ClassVar[bool] = True
    """Whether the tokens can carry a claim of the application."""

    def __init__(
        self,
        database: str | Store,
        *,
        secret: str | bytes | None = None,
        secrets: Sequence[str | bytes] | None = None,
        shape: TableShape = ULID_HASHED,
        policy: Policy | None = None,
        cache_size: int = 100_000,
        pool_size: int = 10,
        connect: Mapping[str, Any] | None = None,
        listen_dsn: str | None = None,
        clock: Clock = uptime,
        entropy: Callable[[int], bytes] = os.urandom,
        new_id: Callable[[], str] | None = None,
    ) -> None:
        if not isinstance(shape, TableShape):
            raise ConfigError(
                "shape must be a TableShape, such as handstamp.UUID_PLAIN, and no "
                f"{type(shape).__name__}"
            )
        self.policy = policy or Policy()
        self.store: Store = (
            TableStore(
                database,
                shape=shape,
                pool_size=pool_size,
                budget=self.policy.time_budget,
                connect=connect,
                listen_dsn=listen_dsn,
            )
            if isinstance(database, str)
            else database
        )
        self.clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._state = state = EngineState(
            store=self.store,
            tokens=Tokens(list_secrets(secret, secrets)),
            policy=self.policy,
            clock=clock,
            database_clock=DatabaseClock(clock),
            cache=Cache(cache_size),
            dispatcher=EventDispatcher(clock),
        )
        self.connections = state.connections
        self._invalidator = Invalidator(state)
        self.add_connection = self._invalidator.add_connection
        """For middleware: close a connection when its session ends."""
        self._listener = NotificationListener(
            channel_of(self.store),
            on_notification=self._invalidator.on_notification,
            on_reset=self._invalidator.reset,
            max_staleness=self.policy.max_staleness.total_seconds(),
            clock=clock,
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._session_issuer = Issuer(
            state=state,
            entropy=entropy,
            new_id=new_id or partial(make_id, shape.new_id, entropy),
            ended=self._ended,
        )
        self._refresher = Refresher(state, ended=self._ended)
        self._authenticator = self._authenticating(state)
        self.hit = self._authenticator.hit
        """The cached entry of a session token, or None; a plain call without I/O."""
        self.is_forged = self._authenticator.is_forged
        """Whether no token of a request is genuine; a plain call without I/O."""

        reset_in_forked_children(self)

    def _authenticating(self, state: EngineState) -> Authenticator:
        return Authenticator(state, self._refresher, self._listener)

    def cookie_transport(self, cookies: Cookies | None) -> CookieTransport:
        """Which cookies carry these sessions; for middleware."""
        return cookie_pair_transport(cookies or Cookies())

    def __repr__(self) -> str:
        return f"Sessions({self.store!r})"

    def reset_after_fork(self) -> None:
        """In a forked child: forget everything of the parent. Called automatically."""
        pin(self._loop)
        self._loop = None
        self._state.reset_after_fork()
        self._tasks = []
        self._listener.abandon()
        self._refresher.reset_after_fork()
        self.store.reset_after_fork()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Get ready on the running event loop; idempotent.

        A database that is down is no error here: the first query raises it. Raises
        :class:`ConfigError` if this instance is open on another loop that still runs, and
        for a table that cannot be used; nothing is left open then, and the next call reads
        the table again.
        """
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self._loop is not None and not self._loop.is_closed():
            raise ConfigError(
                "this Sessions is open on another event loop: give each loop its own"
            )
        self._loop = loop
        try:
            await self.store.open()
            able = self.store.capabilities
            if self.policy.idle_ttl is not None and not able.activity:
                raise ConfigError("idle_ttl needs a column for activity: last_activity_at=")
            if self.policy.end_on_password_change and not able.password_change:
                raise ConfigError(
                    "end_on_password_change needs password_changed_at= of users"
                )
        except BaseException:
            self._loop = None
            await self.store.close()
            raise
        self._listener.abandon()  # its task may be of a loop that is gone
        self._listener.start()
        work = (
            self._state.activity.keep_flushing(self.store, self.policy),
            self._invalidator.check_doubted(),
            self._invalidator.check_in_rounds(self._listener),
        )
        # An empty context: a task must not keep that of the first request.
        self._tasks = [loop.create_task(each, context=Context()) for each in work]

    async def close(self) -> None:
        """Write pending activity, end the background tasks, close the connections.

        Takes at most two seconds longer than closing the connections; activity that could
        not be written by then is counted in the log.
        """
        if self._loop is not asyncio.get_running_loop():
            return
        self._loop = None
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._listener.stop()
        await self._state.activity.flush_before_stop(self.store, self.policy)
        await self._state.dispatcher.drain()
        await self.store.close()

    def on(self, kind: type[E], subscriber: Subscriber[E]) -> None:
        """Call ``subscriber`` with every event of ``kind`` or a subclass of it.

        It may be a coroutine function, which then runs beside the request. An exception
        that it raises is logged and goes no further.
        """
        self._state.dispatcher.on(kind, subscriber)

    def publish(self, event: Event) -> None:
        """Publish an event of an adapter; for middleware."""
        self._state.dispatcher.publish(event)

    async def authenticate(
        self, credentials: Credentials, client: Client, *, passive: bool = False
    ) -> Answer:
        """Returns the session of a request, or why there is none.

        Rotates if the session token has expired and the refresh token is valid. A database
        that does not answer raises nothing: the answer is ``Unknown``.
        """
        await self.open()
        return await self._authenticator.authenticate(credentials, client, passive=passive)

    async def find_presented(
        self, credentials: Credentials, client: Client, known: Session | None = None
    ) -> list[Session]:
        """For middleware: the sessions of all genuine tokens of a request, and ``known``.

        A login replaces them and a logout ends them, also those that do not count for this
        request. Raises :class:`SessionsUnavailable`.
        """
        await self.open()
        return await self._authenticator.find_presented(credentials, client, known)

    async def create(
        self,
        user_id: str,
        *,
        client: Client = _UNKNOWN,
        remember: bool = False,
        replaces: str | Iterable[str] | None = None,
        claim: str | None = None,
    ) -> Issued:
        """Create a session for a user whose identity is already proven.

        It is always a new one: nothing that a client presented becomes part of it.
        ``replaces`` is the id of a session to end in the same transaction, or several.
        ``claim`` is a text that the tokens carry, and ``Session.claim`` has: up to 64
        characters of ``a-zA-Z0-9_-``. Raises :class:`LoginRefused`, `SessionsUnavailable`.
        """
        await self.open()
        return await self._session_issuer.create(
            user_id, client, remember=remember, replaces=replaces, claim=claim
        )

    async def refresh(
        self, refresh_token: str, *, client: Client = _UNKNOWN
    ) -> Issued | None:
        """Exchange a refresh token for the next pair, outside of cookies.

        Returns None if the token was refused. :class:`Replayed` and :class:`LateRefresh`
        report two of the causes; no event reports that a session is unknown, revoked or
        too old. Raises :class:`SessionsUnavailable`.
        """
        await self.open()
        try:
            text = refresh_token.encode("ascii")
        except UnicodeEncodeError:
            return None
        answer = await self._refresher.refresh([text], client, passive=False)
        return answer.issued if isinstance(answer, Authenticated) else None

    async def revoke(
        self, session_id: str, *, reason: str = "revoked", user_id: str | None = None
    ) -> bool:
        """End one session now; returns whether there was a live session with this id.

        Give ``user_id`` for every id that came from a client: the session is then ended
        only if it belongs to that user. Returns after the commit. Raises
        :class:`SessionsUnavailable`, and then the session may have ended or not; and
        :class:`ConfigError` if the database kept the row as it was.
        """
        await self.open()
        known = await self.store.normalize_session_id(session_id)
        if known is None:
            return False
        try:
            ended = await self.store.revoke(known, reason=reason, user_id=user_id)
        except BaseException:
            # It may have been committed before the answer was lost, or before the caller
            # was cancelled. Read the table again rather than believe the cache. (With the
            # id of another user's session, that costs this user a read.)
            self._invalidator.doubt_session(known)
            raise
        if ended is None:
            # Another process may have been first, and its notification not here yet.
            self._invalidator.doubt_session(known)
            return False
        self._ended(ended, reason)
        return True

    async def revoke_user(
        self, user_id: str, *, keep: str | None = None, reason: str = "revoked"
    ) -> int:
        """End every session of a user but ``keep``; returns how many.

        Raises as :meth:`revoke` does.
        """
        await self.open()
        known = await self.store.normalize_user_id(user_id)
        if known is None:
            return 0
        try:
            all_ended = await self.store.revoke_user(known, keep=keep, reason=reason)
        finally:
            self._invalidator.doubt_user(known)
        for ended in all_ended:
            self._ended(ended, reason)
        return len(all_ended)

    async def step_up(
        self,
        session_id: str,
        level: int,
        *,
        refresh: Sequence[bytes] = (),
        claim: str | None = None,
    ) -> Authenticated | None:
        """Raise a live session's trust level; returns None if there is no such session.

        ``session_id`` must be of a session that the caller has authenticated, never an id
        that a client names: the result holds tokens of the session. Its tokens are replaced
        by those in ``issued``: send them to the client, because the old ones are dead at
        once. ``issued`` is None if the session has this level already; its tokens then
        stay. ``refresh`` are refresh tokens of the client: a genuine one says whether the
        session is remembered, otherwise its row does. ``claim`` is what the new tokens
        carry: give ``Session.claim`` to keep it.

        Raises :class:`ConfigError` if the table has no levels, or
        :class:`SessionsUnavailable`; the tokens may have been replaced then, and the user
        has to sign in again.
        """
        await self.open()
        return await self._session_issuer.replace_tokens(
            session_id, level=level, refresh=refresh, claim=claim
        )

    async def renew(
        self, session_id: str, *, claim: str | None, refresh: Sequence[bytes] = ()
    ) -> Authenticated | None:
        """Replace the tokens of a live session, with another claim. Otherwise as
        :meth:`step_up`."""
        await self.open()
        return await self._session_issuer.replace_tokens(
            session_id, level=None, refresh=refresh, claim=claim
        )

    def _ended(self, ended: Ended, reason: str) -> None:
        self._state.cache.forget_session(ended.id)
        self.connections.close(ended.id)
        self.publish(Revoked(session_id=ended.id, user_id=ended.user_id, reason=reason))

    async def list_for_user(
        self, user_id: str, *, current: str | None = None
    ) -> list[Session]:
        """Returns the user's live sessions, most recently active first; no token in them.

        ``current`` is the id to mark. Raises :class:`SessionsUnavailable`.
        """
        await self.open()
        records = await self.store.list_for_user(user_id)
        if current is not None:
            current = await self.store.normalize_session_id(current)
        return [
            Session.of(record, current=record.id == current)
            for record in records
            if not isinstance(judge_family(record, self.policy), Invalid)
        ]

    async def prune(self) -> int:
        """Delete rows dead for longer than ``Policy.retention``; returns how many.

        Each batch is a transaction of its own and skips locked rows, so that no login and
        no flush waits for it. Raises :class:`SessionsUnavailable`.
        """
        await self.open()
        total, deleted = 0, PRUNE_BATCH
        while deleted == PRUNE_BATCH:
            deleted = await self.store.prune(self.policy, batch=PRUNE_BATCH)
            total += deleted
        return total

    async def flush(self) -> int:
        """Write pending activity now; returns how many rows changed. Raises
        :class:`SessionsUnavailable`, and keeps what it could not write."""
        return await self._state.activity.flush(self.store, self.policy)

    async def ping(self) -> None:
        """One round trip to the database, or :class:`SessionsUnavailable`."""
        await self.open()
        await self.store.ping()

    def database_now(self) -> datetime:
        """The database's clock, counted on from its last answer."""
        return self._state.database_clock.now()

    def may_deliver(self, issued: Issued) -> bool:
        """For middleware: whether these tokens may still be sent to the client.

        They may not if a newer pair may have been sent, or if the session may have ended
        or got other tokens: a slow response must not replace what the browser received
        meanwhile. A client that does not get them gets them again at its next request.
        """
        if self.clock() > issued.deliver_until:
            return False
        return not self._state.cache.may_have_changed(issued.ticket, issued.session.id)

    def mark_seen(self, issued: Issued) -> None:
        """For middleware: record that the client has received these tokens.

        The old tokens are a replay then, once grace is over. Call it only if the client has
        shown that it read the new ones.
        """
        self._refresher.mark_seen(issued)

    def ticket(self) -> Ticket:
        """For middleware: take this before authenticating a connection that stays open."""
        return self._state.cache.ticket()

    def stats(self) -> Stats:
        """Figures of this process, for metrics and health pages."""
        activity, authenticator = self._state.activity, self._authenticator
        return Stats(
            cached=self._state.cache.live,
            hits=authenticator.hits,
            misses=authenticator.misses,
            queries=self.store.queries,
            pending_touches=len(activity),
            written_touches=activity.written,
            dropped_touches=activity.dropped,
            flushes=activity.flushes,
            open_connections=len(self.connections),
            listener=self._listener.state,
            notifications=self._listener.notifications,
            unknown_notifications=self._listener.unknown_notifications,
            all_writers_notify=self._listener.all_writers_notify,
            events=dict(self._state.dispatcher.counts),
        )
