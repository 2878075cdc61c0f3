"""Every statement for one table of sessions, made once from its resolved shape.

1. ``now()`` is never qualified with a schema: it is the one clock of the table, and is
   fixed for the length of a statement.
2. A statement that locks several rows locks them in the order of their ids.
3. Ids and digests are bound as text and cast to the type of their column, so that the
   indexes of the column are used.
4. A statement for a feature that the table does not have is not there as an attribute.
"""

from __future__ import annotations

from handstamp.stores.notify.sql import Kind
from handstamp.stores.resolve import ResolvedTable
from handstamp.stores.shapes import PREFIX
from handstamp.stores.sql import FIRST, SqlBuilder


class Statements(SqlBuilder):
    """The statements of :class:`handstamp.stores.table.TableStore`, as text with numbered
    parameters."""

    def __init__(self, resolved: ResolvedTable) -> None:
        super().__init__(resolved)
        by_id = f"{self._bare('id')} = {self._one(1, 'id')}"
        in_ids = f"{self._bare('id')} = any({self._many(1, 'id')})"
        of_user = f"{self._bare('user_id')} = {self._one(1, 'user_id')}"
        self.find = self._select(f"{self._bare('token')} = any({self._many(1, 'token')})")
        self.find_by_id = self._select(by_id)
        self.find_many = self._select(in_ids)
        if "refresh_token" in self._columns:
            self.find_by_refresh = self._select(
                f"{self._bare('refresh_token')} = {self._one(1, 'refresh_token')}"
            )
        self.list_for_user = self._fill(
            self._select(f"{of_user} and {{live}}")
            + " order by coalesce({last_activity_at}, {created_at}) desc nulls last"
            " limit 1000"
        )
        self.longest_ids = self._longest_ids() if resolved.unbounded_ids else None

        next_id = resolved.next_id
        self.next_id = f"select ({next_id})::text" if next_id else None
        self.create = self._create()
        self.refusal = self._refusal()
        user = f"({self._one(2, 'user_id')})::text"  # "7" and "07" are one user
        self.lock_user = f"select pg_advisory_xact_lock(hashtextextended($1 || {user}, 0))"
        self.live = self._live()

        notified = f"case when $3::boolean then {Kind.SESSION_ENDED.notify_sql('{id}')} end"
        owner = f"{self._bare('user_id')} = {self._one(4, 'user_id')}"
        others = f"($3::text is null or {self._bare('id')} <> {self._one(3, 'id')})"
        self.revoke = self._revoke(in_ids, notified)
        self.revoke_own = self._revoke(f"{by_id} and {owner}", notified)
        self.revoke_user = self._revoke(f"{of_user} and {others}")
        self.live_ids = self._fill(
            f"select {{id}} as id from {{sessions}} s where {of_user} and {{live}}"
            f" and ($2::text is null or {self._bare('id')} <> {self._one(2, 'id')})"
        )
        self.prune = self._prune()

        if resolved.shape.rotates:
            self.rotate = self._rotate()
            self.redate = self._redate()
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
        self.upgrade = self._upgrade()

    def _longest_ids(self) -> str:
        """The length of the longest ids in the first $1 rows, by field."""
        fields = self.resolved.unbounded_ids
        own = ", ".join(f"{self._columns[name].name} as {name}" for name in fields)
        longest = ", ".join(f"coalesce(max(length({n})), 0) as {n}" for n in fields)
        return f"select {longest} from (select {own} from {self._table} limit $1) s"

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
        }
        required = {name for name, column in self._columns.items() if column.required}
        values |= {name: value for name, value in FIRST.items() if name in required}
        if self.resolved.shape.id_is_token:
            del values["id"]  # the digest is the id
        present = {n: v for n, v in values.items() if n in self._columns}
        names = ", ".join(self._columns[name].name for name in present)
        exprs = ", ".join(self._set(name, value) for name, value in present.items())
        # Every parameter is cast here, so that each has a type, whatever columns exist.
        given = (
            "(select $1::text as a, $4::text as b, $5::text as c, $6::text as d,"
            " $7::text as e, $9::interval as f, $10::interval as g, $11::text as h,"
            " $12::text as i) as given"
        )
        user, source, join = "", given, ""
        if self._users is not None:
            own = self._users["id"]
            user_names = ", ".join(column.name for column in self._users.values())
            unlocked = (
                " and ({u_locked_until} is null or {u_locked_until} <= now())"
                if self._has_user("locked_until")
                else ""
            )
            user = (
                f"u as (select {user_names} from {{users}} u where"
                f" u.{own.name} = $2::text::{own.cast} and {{admissible}}{unlocked}), "
            )
            source = f"{given}, u"
            join = f" join u on u.{own.name}::text = {self._read['user_id']}"
        return self._fill(
            f"with {user}s as (insert into {{sessions}} ({names})"
            f" overriding system value select {exprs} from {source} returning *)"
            f" select {{record}} from s{join}"
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

    def _where_user(self) -> str:
        """The condition of an UPDATE that the user may sign in, and its WHERE."""
        if self._users is None:
            return " where "
        joined = self._join().partition(" on ")[2]
        return f" from {{users}} u where {joined} and {{admissible}} and "

    def _rotate(self) -> str:
        return self._fill(
            f"update {{sessions}} s set {self._new_tokens()}{self._where_user()}"
            f"{self._bare('id')} = {self._one(1, 'id')}"
            f" and {self._bare('refresh_token')} = {self._one(2, 'refresh_token')}"
            " and {live} and {refresh_expires_at} > now()"
            " and {created_at} + $7::duration > now() returning {record}"
        )

    def _new_tokens(self, **more: str) -> str:
        """What a rotation assigns; in a table without rotation only the session token."""
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
            f"update {{sessions}} s set {assign}{self._where_user()}"
            f"{self._bare('id')} = {self._one(1, 'id')}"
            f" and {self._bare('refresh_token')} = {self._one(2, 'refresh_token')}"
            " and {live} and {refresh_expires_at} > now()"
            " and ({last_activity_at} <= {expires_at} - $3::duration"
            " or {last_activity_at} is null or {mark}) returning {record}"
        )

    def _revoke(self, where: str, notified: str | None = None) -> str:
        id = "{id}"
        if self.resolved.shape.id_is_token:  # a plaintext token is never returned
            id = f"case when {self._is_digest_id()} then {{id}} else '' end"
        returned = f"{id} as id, {{user_id}} as user_id" + (
            f", {notified} as notified" if notified else ""
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
        """Replace plaintext tokens by their digests, each only if it is still there."""
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
            f"{self._where_user()}{self._bare('id')} = {self._one(1, 'id')}"
            f" and {{live}} and {{end}} > now() and {condition}"
            f"{limit if self.resolved.shape.rotates else ''} returning {{record}}"
        )

    def _touch_seen(self) -> str:
        # At least the smallest step after the rotation; one step more in `stamp`, if the
        # mark of a rotation would be left otherwise (rule 5 of the contract).
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
