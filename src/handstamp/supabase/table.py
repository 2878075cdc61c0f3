"""Supabase's tables behind the contract of a store, as far as they keep it.

A session of Supabase Auth is found by its id, which its access token names, so a record's
``token_digest`` is that id. What ends a session is what GoTrue's rules say, and no limit of
ours. Of the optional protocols these tables have one, notifications:

- :meth:`SupabaseStore.create` opens a session and :meth:`SupabaseStore.refresh` replaces
  its tokens, for the tables have tokens of their own. No login keeps to a number of
  sessions.
- Nothing records activity. ``last_activity_at`` is the last refresh, or else the creation.
- There are levels, and GoTrue alone raises them.
- :meth:`SupabaseTable.prune` goes by GoTrue's own cleanup and not by ``policy.retention``,
  and the refresh tokens that it touches count among its rows.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from contextlib import suppress
from dataclasses import replace

from handstamp.config import Policy
from handstamp.core.models import Record
from handstamp.errors import SessionsUnavailable
from handstamp.stores.base import Capabilities, Channel, Ended
from handstamp.supabase.rows import record_of, uuid_of
from handstamp.supabase.rules import (
    AuthSession,
)
from handstamp.supabase.store import SupabaseStore


class SupabaseTable:
    """:class:`SupabaseStore` as a :class:`Store`.

    Sessions of an OAuth client are found by their tokens only if it is in
    ``oauth_clients``: they are no sign-ins of their users'.
    """

    def __init__(self, auth: SupabaseStore, oauth_clients: Container[str] = ()) -> None:
        self.auth = auth
        self._oauth_clients = oauth_clients

    def __repr__(self) -> str:
        return repr(self.auth)

    @property
    def capabilities(self) -> Capabilities:
        """See :attr:`Store.capabilities`; nothing rotates by our rules."""
        return replace(self.auth.capabilities, refresh=False)

    @property
    def queries(self) -> int:
        """See :attr:`Store.queries`."""
        return self.auth.queries

    @property
    def channel(self) -> Channel:
        """See :attr:`ListeningStore.channel`."""
        return self.auth.channel

    async def open(self) -> None:
        """See :meth:`Store.open`. Looks at the tables if the database answers.

        Raises :class:`ConfigError` where no session could be read.
        """
        await self.auth.open()
        with suppress(SessionsUnavailable):
            await self.auth.ready()

    async def close(self) -> None:
        """See :meth:`Store.close`."""
        await self.auth.close()

    def reset_after_fork(self) -> None:
        """See :meth:`Store.reset_after_fork`."""
        self.auth.reset_after_fork()

    async def ready(self) -> Capabilities:
        """See :meth:`Store.ready`."""
        await self.auth.ready()
        return self.capabilities

    async def find(self, digests: Sequence[str]) -> Sequence[Record]:
        """See :meth:`Store.find`; a "digest" is a session's id here, spelled as it is."""
        found = await self.auth.find_many([d for d in digests if uuid_of(d) == d])
        return [record_of(s, self.auth.rules) for s in found if self._is_for_us(s)]

    def _is_for_us(self, session: AuthSession) -> bool:
        client = session.oauth_client_id
        return client is None or client in self._oauth_clients

    async def normalize_session_id(self, session_id: str) -> str | None:
        """See :meth:`Store.normalize_session_id`; ids are uuids here."""
        return uuid_of(session_id)

    async def normalize_user_id(self, user_id: str) -> str | None:
        """See :meth:`Store.normalize_user_id`."""
        return uuid_of(user_id)

    async def find_by_id(self, session_id: str) -> Record | None:
        """See :meth:`Store.find_by_id`."""
        found = await self.find_many([session_id])
        return found[0] if found else None

    async def find_many(self, session_ids: Sequence[str]) -> Sequence[Record]:
        """See :meth:`Store.find_many`."""
        rules = self.auth.rules
        found = await self.auth.find_many(session_ids)
        return [record_of(session, rules) for session in found]

    async def revoke(
        self, session_id: str, *, reason: str, user_id: str | None = None
    ) -> Ended | None:
        """See :meth:`Store.revoke`."""
        return await self.auth.revoke(session_id, reason=reason, user_id=user_id)

    async def revoke_user(
        self, user_id: str, *, reason: str, keep: str | None = None
    ) -> Sequence[Ended]:
        """See :meth:`Store.revoke_user`."""
        return await self.auth.revoke_user(user_id, reason=reason, keep=keep)

    async def list_for_user(self, user_id: str) -> Sequence[Record]:
        """See :meth:`Store.list_for_user`."""
        rules = self.auth.rules
        return [record_of(s, rules) for s in await self.auth.list_for_user(user_id)]

    async def prune(self, policy: Policy, *, batch: int) -> int:
        """See :meth:`Store.prune`; only what GoTrue's own cleanup would do, as often as it
        takes: fewer than ``batch`` means that nothing is left."""
        total = 0
        while total < batch:
            touched = await self.auth.prune(batch=batch - total)
            if not touched:
                break
            total += touched
        return total

    async def ping(self) -> None:
        """See :meth:`Store.ping`."""
        await self.auth.ping()
