"""The SQL of one table, derived from its shape and its catalog once.

``now()`` stands unqualified everywhere: it is the table's one clock, fixed for the length
of a statement. Every statement that locks more than one row locks in id order. Ids and
digests are bound as text and cast to the column's own type, so that its indexes serve.

The first look at a table: its catalog, how the shape fits, a sample of its ids.
"""

from __future__ import annotations

import logging

from handstamp.stores.catalog import read_table
from handstamp.stores.connection import Connection
from handstamp.stores.notify.sql import Kind
from handstamp.stores.resolve import ResolvedTable, refuse_long_ids, resolve
from handstamp.stores.shapes import PREFIX, TableShape, quoted
from handstamp.stores.sql import FIRST, SqlBuilder


class Statements(SqlBuilder):
    """Every statement the table store sends, as text with numbered parameters."""

    def __init__(self, resolved: ResolvedTable) -> None:
        super().__init__(resolved)
        self._read_statements()
        self._login_statements()
        self._end_statements()
        if resolved.shape.rotates:
            self.rotate = self._rotate()
            self.redate = self._redate()
        self.upgrade = self._upgrade()
        self.replace_tokens = self._replace_tokens("$2::integer is null")
        if "level" in self._columns:
            level = f"$2::{self._columns['level'].cast}"
            self.raise_level = self._replace_tokens(
                f"coalesce({{level}}, 0) < {level}", level=level
            )
        if resolved.shape.rotates:
            self.touch = self._touch_seen()
        elif resolved.capabilities.activity or resolved.capabilities.sliding:
            self.touch = self._touch_sliding()
        self.prune = self._prune()

    def _read_statements(self) -> None:
        self.find = self._select(f"{self._bare('token')} = any({self._many(1, 'token')})")
        self.find_by_id = self._select(f"{self._bare('id')} = {self._one(1, 'id')}")
        self.find_many = self._select(f"{self._bare('id')} = any({self._many(1, 'id')})")
        if "refresh_token" in self._columns:
            self.find_by_refresh = self._select(
                f"{self._bare('refresh_token')} = {self._one(1, 'refresh_token')}"
            )
        self.longest_ids = self._longest_ids()
        self.list_for_user = self._fill(
            self._select(
                f"{self._bare('user_id')} = {self._one(1, 'user_id')} and {{live}}"
            )
            + " order by coalesce({last_activity_at}, {created_at}) desc nulls last"
            " limit 1000"
        )

    def _longest_ids(self) -> str | None:
        """The length of the longest ids in the first $1 rows, by field."""
        fields = self.resolved.unbounded_ids
        if not fields:
            return None
        own = ", ".join(f"{self._columns[name].name} as {name}" for name in fields)
        longest = ", ".join(
            f"coalesce(max(length({name})), 0) as {name}" for name in fields
        )
        return f"select {longest} from (select {own} from {self._table} limit $1) s"

    def _login_statements(self) -> None:
        self.create = self._create()
        self.refusal = self._refusal()
        user = f"({self._one(2, 'user_id')})::text"  # "7" and "07" are one user
        self.serialise = f"select pg_advisory_xact_lock(hashtextextended($1 || {user}, 0))"
        next_id = self.resolved.next_id
        self.next_id = f"select ({next_id})::text" if next_id else None
        self.live = self._live()

    def _end_statements(self) -> None:
        said = f"case when $3::boolean then {Kind.SESSION_ENDED.notify_sql('{id}')} end"
        self.revoke = self._revoke(f"{self._bare('id')} = any({self._many(1, 'id')})", said)
        self.revoke_own = self._revoke(
            f"{self._bare('id')} = {self._one(1, 'id')}"
            f" and {self._bare('user_id')} = {self._one(4, 'user_id')}",
            said,
        )
        self.revoke_user = self._revoke(
            f"{self._bare('user_id')} = {self._one(1, 'user_id')}"
            f" and ($3::text is null or {self._bare('id')} <> {self._one(3, 'id')})"
        )
        self.live_ids = self._fill(
            "select {id} as id from {sessions} s"
            f" where {self._bare('user_id')} = {self._one(1, 'user_id')} and {{live}}"
            f" and ($2::text is null or {self._bare('id')} <> {self._one(2, 'id')})"
        )

    def _create(self) -> str:
        token = (
            "$3::text" if self.resolved.shape.at_rest == "digest" else f"'{PREFIX}' || $3"
        )
        values = {
            "id": "$1::text",
            "user_id": "$2::text",
            "token": token,
            "refresh_token": "$4::text",
            "address": "$5::text",
            "user_agent_hash": "$6::text",
            "fingerprint": "$7::text",
            "expires_at": "now() + $8::duration",
            "refresh_expires_at": "now() + least($9::duration, $10::duration)",
            "user_agent": "$11::text",
            "location": "$12::text",
            "last_activity_at": "now()",
            "is_active": "true",
            "created_at": "now()",
            **{name: value for name, value in FIRST.items() if self._is_required(name)},
        }
        if self.resolved.shape.id_is_token:
            del values["id"]  # the digest is the id
        there = {n: v for n, v in values.items() if n in self._columns}
        names = ", ".join(self._columns[name].name for name in there)
        exprs = ", ".join(self._set(name, value) for name, value in there.items())
        # Every parameter is named, so that each has a type whatever columns there are.
        given = (
            "(select $1::text as a, $4::text as b, $5::text as c, $6::text as d,"
            " $7::text as e, $9::interval as f, $10::interval as g, $11::text as h,"
            " $12::text as i) as given"
        )
        if self._users is None:
            source, join = given, ""
        else:
            source = f"{given}, u"
            join = f" join u on u.{self._users['id'].name}::text = {self._read['user_id']}"
        users = "" if self._users is None else self._fill_user()
        return self._fill(
            f"with {users}s as (insert into {{sessions}} ({names})"
            f" overriding system value select {exprs} from {source} returning *)"
            f" select {{record}} from s{join}"
        )

    def _fill_user(self) -> str:
        assert self._users is not None  # noqa: S101 - the caller asked
        names = ", ".join(spelling.name for spelling in self._users.values())
        own = self._users["id"]
        locked = (
            " and ({u_locked_until} is null or {u_locked_until} <= now())"
            if self._has_user("locked_until")
            else ""
        )
        return (
            f"u as (select {names} from {{users}} u"
            f" where u.{own.name} = $2::text::{own.cast} and {{admissible}}{locked}), "
        )

    def _refusal(self) -> str | None:
        if self._users is None:
            return None
        own = self._users["id"]
        return self._fill(
            "select {admissible} as active,"
            " coalesce({u_locked_until} > now(), false) as locked"
            f" from {{users}} u where u.{own.name} = $1::text::{own.cast}"
        )

    def _live(self) -> str:
        return self._fill(
            "select {id} as id from {sessions} s {join}"
            f" where {self._is_whole()}"
            f"{self._bare('user_id')} = {self._one(1, 'user_id')}"
            " and {live} and {end} > now()"
            " and coalesce({created_at} + $2::duration > now(), $5::boolean)"
            " and ($3::interval is null or coalesce("
            "greatest({last_activity_at}, {created_at}) + $3::duration > now(), $5))"
            " and (not $4::boolean or {u_password_changed_at} is null"
            " or coalesce({u_password_changed_at} <= {created_at}, $5))"
            " order by coalesce({created_at}, {expires_at}), {id}"
        )

    def _admitted(self) -> str:
        """What an UPDATE asks of the user."""
        if self._users is None:
            return ""
        return f" from {{users}} u where {self._joined()} and {{admissible}} and "

    def _joined(self) -> str:
        return self._join().partition(" on ")[2]

    def _rotate(self) -> str:
        return self._fill(
            f"update {{sessions}} s set {self._new_tokens()}{self._admitted() or ' where '}"
            f"{self._bare('id')} = {self._one(1, 'id')}"
            f" and {self._bare('refresh_token')} = {self._one(2, 'refresh_token')}"
            " and {live} and {refresh_expires_at} > now()"
            " and {created_at} + $7::duration > now() returning {record}"
        )

    def _new_tokens(self, **more: str) -> str:
        """What a rotation assigns; where nothing rotates, the session token alone."""
        values = {"token": "$3::text" if self._is_digest() else f"'{PREFIX}' || $3"}
        if self.resolved.shape.rotates:
            values |= {
                "refresh_token": "$4::text",
                "last_activity_at": "{date}",
                "expires_at": "{date} + $5::duration",
                "refresh_expires_at": "least(now() + $6::duration,"
                " {created_at} + $7::duration)",
            }
        return self._assign(**values, **more)

    def _redate(self) -> str:
        assign = self._assign(last_activity_at="{date}", expires_at="{date} + $3::duration")
        return self._fill(
            f"update {{sessions}} s set {assign}{self._admitted() or ' where '}"
            f"{self._bare('id')} = {self._one(1, 'id')}"
            f" and {self._bare('refresh_token')} = {self._one(2, 'refresh_token')}"
            " and {live} and {refresh_expires_at} > now()"
            " and ({last_activity_at} <= {expires_at} - $3::duration"
            " or {last_activity_at} is null or {mark}) returning {record}"
        )

    def _revoke(self, where: str, said: str | None = None) -> str:
        id = "{id}"
        if self.resolved.shape.id_is_token:  # which is never shown, where it is in clear
            id = f"case when {self._is_digest_id()} then {{id}} else '' end"
        returned = f"{id} as id, {{user_id}} as user_id" + (
            f", {said} as said" if said else ""
        )
        assign = self._assign(
            is_active="false", revoked_at="now()", revoked_reason="$2::text"
        )
        by_row = f"s.{self._columns['id'].name} = locked.id"
        act = (
            f"update {{sessions}} s set {assign} from locked where {by_row} and {{live}}"
            if assign
            else f"delete from {{sessions}} s using locked where {by_row}"
        )
        return self._fill(
            f"with locked as (select {self._bare('id')} as id from {{sessions}} s"
            f" where {{live}} and $2::text is not null and {where}"
            f" order by {self._bare('id')} for no key update)"
            f" {act} returning {returned}"
        )

    def _upgrade(self) -> str:
        """Digests in place of tokens in clear, each only where it still stands."""
        token = self._columns["token"]
        return self._fill(
            "with batch as (select * from unnest($1::text[], $2::text[]) as b(old, new)),"
            f" locked as (select {self._bare('id')} as id, b.new as new"
            f" from {{sessions}} s join batch b"
            f" on {self._bare('token')} = b.old::{token.cast}"
            f" order by {self._bare('id')} for no key update of s skip locked)"
            f" update {{sessions}} s set {token.name} = locked.new::{token.cast}"
            f" from locked where {self._bare('id')} = locked.id"
        )

    def _replace_tokens(self, condition: str, **more: str) -> str:
        """New tokens for a live session."""
        limit = " and {created_at} + $7::duration > now()"
        return self._fill(
            f"update {{sessions}} s set {self._new_tokens(**more)}"
            f"{self._admitted() or ' where '}{self._bare('id')} = {self._one(1, 'id')}"
            f" and {{live}} and {{end}} > now() and {condition}"
            f"{limit if self.resolved.shape.rotates else ''} returning {{record}}"
        )

    def _touch_seen(self) -> str:
        # `first` is the smallest step after the rotation; the second greatest() adds one
        # more where the mark of a rotation would be left (contract, rule 5).
        token = self._columns["token"]
        stamp = (
            "locked.at + case when"
            " extract(microseconds from locked.expires_at - locked.at)::bigint % 1000000"
            " = 0 then interval '1 microsecond' else interval '0' end"
        )
        digest = "b.digest" if self._is_digest() else f"('{PREFIX}' || b.digest)"
        return self._fill(
            f"with batch as (select * from unnest({self._many(1, 'id')},"
            " $2::text[], $3::timestamptz[]) as b(id, digest, at)),"
            f" locked as (select {self._bare('id')} as id, greatest(b.at,"
            " least({expires_at} - $4::duration, now() + interval '1 minute')"
            " + interval '1 microsecond', case when b.at is null and {mark}"
            " then {last_activity_at} + interval '1 microsecond' end) as at,"
            " {expires_at} as expires_at"
            f" from {{sessions}} s join batch b on {self._bare('id')} = b.id"
            f" and {self._bare('token')} = {digest}::{token.cast}"
            f" order by {self._bare('id')} for no key update of s)"
            f" update {{sessions}} s set {self._assign(last_activity_at=stamp)}"
            f" from locked where {self._bare('id')} = locked.id and {{live}}"
            " and ({last_activity_at} is null or {last_activity_at} < locked.at)"
        )

    def _touch_sliding(self) -> str:
        slides = self.resolved.capabilities.sliding
        assign = self._assign(
            last_activity_at="greatest({kept_last_activity_at}, locked.at)",
            **({"expires_at": "greatest({kept_expires_at}, {slid})"} if slides else {}),
        )
        moves = ["{last_activity_at} is null or {last_activity_at} < locked.at"]
        if "last_activity_at" not in self._columns:
            moves = ["{expires_at} < {slid}"]
        return self._fill(
            f"with batch as (select * from unnest({self._many(1, 'id')},"
            " $2::text[], $3::timestamptz[]) as b(id, digest, at)"
            " where $4::interval is not null and $5::interval is not null"
            " and $6::interval is not null),"
            f" locked as (select {self._bare('id')} as id,"
            " least(b.at, now() + interval '1 minute') as at"
            f" from {{sessions}} s join batch b on {self._bare('id')} = b.id"
            " where b.at is not null"
            f" order by {self._bare('id')} for no key update of s)"
            f" update {{sessions}} s set {assign} from locked"
            f" where {self._bare('id')} = locked.id and {{live}}"
            f" and {{expires_at}} > locked.at and ({' or '.join(moves)})"
        )

    def _is_digest(self) -> bool:
        return self.resolved.shape.at_rest == "digest"

    def _prune(self) -> str:
        ended = [
            n
            for n in ("revoked_at", "last_activity_at", "expires_at")
            if n in self._columns
        ]
        over = ", ".join(f"{{{name}}}" for name in ended)
        return self._fill(
            f"with dead as (select {self._bare('id')} as id from {{sessions}} s where"
            f" {self._is_whole()}"
            " case when {live} then least({end}, {created_at} + $2::duration,"
            " greatest({last_activity_at}, {created_at}) + $3::duration)"
            f" else coalesce({over}) end"
            f" < now() - $1::duration order by {self._bare('id')} limit $4"
            " for update skip locked)"
            f" delete from {{sessions}} s using dead where {self._bare('id')} = dead.id"
        )


logger = logging.getLogger("handstamp")

SAMPLE = 1000
"""Rows whose ids are measured, where the column has no limit of its own."""


async def look(connection: Connection, shape: TableShape) -> Statements:
    """The SQL for the table that ``shape`` names.

    Raises :class:`ConfigError` for a table that must not be used. What is missing is
    logged, and its features are off.
    """
    table = await read_table(connection, quoted(shape.table))
    users = None
    if shape.users is not None:
        users = await read_table(connection, quoted(shape.users.table))
    resolved = resolve(shape, table, users)
    sql = Statements(resolved)
    if sql.longest_ids is not None:
        (longest,) = await connection.fetch(sql.longest_ids, SAMPLE)
        refuse_long_ids(shape, dict(longest))
    if resolved.missing:
        logger.warning(
            "%s has no column for %s: these features are off",
            shape.table,
            ", ".join(resolved.missing),
            extra={"action": "features_off"},
        )
    return sql
