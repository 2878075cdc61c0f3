"""Knowing one database of Supabase Auth: looked up at the first use, and kept.

What it has and allows is looked up again after a question that it could not answer, and
until a complaint is mended; a complaint is logged once, and is no answer to anybody.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import asyncpg

from handstamp.core.supabase_rules import SupabaseRules
from handstamp.errors import ConfigError, SessionsUnavailable
from handstamp.stores.base import Capabilities
from handstamp.stores.database import Database
from handstamp.stores.supabase.schema import (
    HIDDEN,
    LOOK,
    TABLES,
    WHOLE,
    Schema,
    read_schema,
)
from handstamp.stores.supabase.statements import SupabaseStatements

T = TypeVar("T")
logger = logging.getLogger("handstamp")

_UNQUERYABLE = (
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedTableError,
    asyncpg.InsufficientPrivilegeError,
)


class SupabaseKnowledge:
    """The statements for the schema ``name`` of one database under one set of rules."""

    def __init__(self, database: Database, name: str, rules: SupabaseRules) -> None:
        self._database = database
        self._name = name
        self._rules = rules
        self._known: tuple[Schema, SupabaseStatements] | None = None
        self._complained: str | None = None

    async def check(self) -> Schema:
        """Look again. Raises :class:`ConfigError` for what must be mended first."""
        schema, _ = await self._look()
        if schema.unwritable is not None:
            raise ConfigError(schema.unwritable)
        return schema

    @property
    def capabilities(self) -> Capabilities:
        """What the tables can do; what a whole database could, before anyone looked."""
        return WHOLE if self._known is None else self._known[0].capabilities

    async def ready(self) -> Capabilities:
        """What the tables can do, once that is certain.

        Raises :class:`ConfigError` where no session could be read, and
        :class:`SessionsUnavailable` without an answer.
        """
        schema, _ = self._known or await self._look()
        if schema.unreadable is not None:
            schema, _ = await self._look()  # it may have been mended
        if schema.unreadable is not None:
            raise ConfigError(schema.unreadable)
        return schema.capabilities

    async def schema(self) -> Schema:
        """What is there, whatever may be done with it. Raises
        :class:`SessionsUnavailable` without an answer."""
        schema, _ = self._known or await self._look()
        return schema

    async def reading(self, act: Callable[[SupabaseStatements], Awaitable[T]]) -> T:
        """Do something that only reads sessions."""
        return await self._doing(lambda schema: schema.unreadable, act)

    async def writing(self, act: Callable[[SupabaseStatements], Awaitable[T]]) -> T:
        """Do something that needs every grant."""
        return await self._doing(lambda schema: schema.unwritable, act)

    async def _doing(
        self,
        complaint: Callable[[Schema], str | None],
        act: Callable[[SupabaseStatements], Awaitable[T]],
    ) -> T:
        schema, sql = self._known or await self._look()
        if complaint(schema) is not None:
            schema, sql = await self._look()  # it may have been mended
            self._complain(complaint(schema))
        try:
            return await act(sql)
        except SessionsUnavailable as exc:
            if exc.cause == HIDDEN or isinstance(exc.__cause__, _UNQUERYABLE):
                self._known = None
            raise

    async def _look(self) -> tuple[Schema, SupabaseStatements]:
        rows = await self._database.look_up(LOOK, self._name, list(TABLES))
        schema = read_schema(self._name, rows, self._rules)
        known = schema, SupabaseStatements(self._name, schema, self._rules)
        if schema.unwritable is None:
            self._complained = None
        self._known = known
        return known

    def _complain(self, complaint: str | None) -> None:
        if complaint is None:
            return
        if complaint != self._complained:
            self._complained = complaint
            logger.error(complaint, extra={"action": "schema_refused"})
        raise SessionsUnavailable(complaint)
