"""The SQL of one table, derived from its shape once, when the store is made.

``now()`` stands unqualified everywhere: it is the table's one clock, fixed for the length
of a statement. Every statement that locks more than one row locks in id order.
"""

from __future__ import annotations

import re
from dataclasses import fields

from handstamp.stores.shapes import TableShape, quoted

# A rotation must not date itself before activity that is already recorded (it waited for
# a lock meanwhile), nor follow a timestamp that is far ahead for another reason.
_DATE = "greatest(now(), least(coalesce({active}, now()), now() + interval '1 minute'))"

# A bound duration becomes an interval of seconds alone. Bound as it is, its days would be
# days of the connection's time zone, of which some have 23 or 25 hours.
_DURATION = re.compile(r"(\$[0-9]+)::duration")
_SECONDS = r"(extract(epoch from \1::interval) * interval '1 second')"

# Where the life of a row ends, for rows with and without a refresh token.
_END = (
    "case when {refresh_digest} is null then {expires_at}"
    " else coalesce({refresh_expires_at}, {expires_at}) end"
)
# What a rotation leaves until the next activity (contract, rule 5).
_MARK = (
    "({last_activity_at} < {expires_at} and extract(microseconds from"
    " {expires_at} - {last_activity_at})::bigint % 1000000 = 0)"
)

_KEYS = ("id", "user_id", "token_digest", "refresh_digest")
_TIMES = (
    "created_at",
    "expires_at",
    "refresh_expires_at",
    "last_activity_at",
    "revoked_at",
)
_EVIDENCE = ("revoked_reason", "address", "user_agent_hash", "fingerprint")


class Statements:
    """Every statement the table store sends, as text with numbered parameters."""

    def __init__(self, shape: TableShape) -> None:
        self._name = {
            f.name: quoted(getattr(shape, f.name))
            for f in fields(shape)
            if f.name != "users"
        }
        self._user = {
            f.name: quoted(getattr(shape.users, f.name)) for f in fields(shape.users)
        }
        self.find = self._select(
            f"s.{self._name['token_digest']} = any({self._digests(1)})"
        )
        self.find_by_id = self._select(f"s.{self._name['id']} = {self._id(1)}")
        self.find_many = self._select(f"s.{self._name['id']} = any({self._ids(1)})")
        self.find_by_refresh = self._select(
            f"s.{self._name['refresh_digest']} = {self._digest(1)}"
        )
        self.list_for_user = (
            self._select(
                f"s.{self._name['user_id']} = {self._id(1)} and s.{self._name['is_active']}"
            )
            + f" order by s.{self._name['last_activity_at']} desc nulls last limit 1000"
        )
        self.create = self._create()
        self.refusal = self._refusal()
        self.serialise = "select pg_advisory_xact_lock(hashtextextended($1, 0))"
        self.live = self._live()
        self.rotate = self._rotate()
        self.redate = self._redate()
        said = (
            "case when $3::boolean then"
            " pg_notify('handstamp', 's:' || rtrim({id}::text)) end"
        )
        self.revoke = self._revoke(f"s.{self._name['id']} = any({self._ids(1)})", said)
        self.revoke_own = self._revoke(
            f"s.{self._name['id']} = {self._id(1)}"
            f" and s.{self._name['user_id']} = {self._id(4)}",
            said,
        )
        self.revoke_user = self._revoke(
            f"s.{self._name['user_id']} = {self._id(1)}"
            f" and ($3::text is null or s.{self._name['id']} <> {self._id(3)})"
        )
        self.triggers = self._triggers()
        self.tables = self._name["table"], self._user["table"]
        self.touch = self._touch()
        self.prune = self._prune()

    def _fill(self, text: str) -> str:
        columns = {name: f"s.{column}" for name, column in self._name.items()}
        users = {f"u_{name}": f"u.{column}" for name, column in self._user.items()}
        text = text.format(
            **columns,
            **users,
            sessions=self._name["table"],
            users=self._user["table"],
            record=self._record(),
            set=_Bare(self._name),
            date=_DATE.format(active=columns["last_activity_at"]),
            end=_END.format(**columns),
            mark=_MARK.format(**columns),
            id_t=self._type("id"),
            dig_t=self._type("digest"),
        )
        return _DURATION.sub(_SECONDS, text)

    def _type(self, kind: str) -> str:
        return self._name[f"{kind}_type"].replace('"', "")

    def _id(self, n: int) -> str:
        return f"${n}::{self._type('id')}"

    def _ids(self, n: int) -> str:
        return f"${n}::{self._type('id')}[]"

    def _digest(self, n: int) -> str:
        return f"${n}::{self._type('digest')}"

    def _digests(self, n: int) -> str:
        return f"${n}::{self._type('digest')}[]"

    def _record(self) -> str:
        plain = (*_KEYS, *_TIMES, *_EVIDENCE)
        columns = [f"s.{self._name[name]} as {name}" for name in plain]
        columns += [
            f"s.{self._name['is_active']} is true as is_active",
            f"u.{self._user['is_active']} is true as user_is_active",
            f"u.{self._user['password_changed_at']} as password_changed_at",
            "now() as read_at",
        ]
        return ", ".join(columns)

    def _select(self, where: str) -> str:
        return (
            self._fill(
                "select {record} from {sessions} s left join {users} u"
                " on {u_id} = {user_id} where "
            )
            + where
        )

    def _create(self) -> str:
        return self._fill(
            "with u as (select {u_id}, {u_is_active}, {u_password_changed_at}"
            " from {users} u where {u_id} = $2::{id_t} and {u_is_active}"
            " and ({u_locked_until} is null or {u_locked_until} <= now())),"
            " s as (insert into {sessions} ({set.id}, {set.user_id}, {set.token_digest},"
            " {set.refresh_digest}, {set.address}, {set.user_agent_hash},"
            " {set.fingerprint}, {set.expires_at}, {set.refresh_expires_at},"
            " {set.last_activity_at}, {set.is_active}, {set.created_at})"
            " select $1::{id_t}, {u_id}, $3::{dig_t}, $4::{dig_t}, $5, $6, $7,"
            " now() + $8::duration, now() + least($9::duration, $10::duration),"
            " now(), true, now() from u returning *)"
            " select {record} from s join u on {u_id} = {user_id}"
        )

    def _refusal(self) -> str:
        return self._fill(
            "select {u_is_active} is true as active,"
            " coalesce({u_locked_until} > now(), false) as locked"
            " from {users} u where {u_id} = $1::{id_t}"
        )

    def _live(self) -> str:
        return self._fill(
            "select {id} as id from {sessions} s left join {users} u on {u_id} = {user_id}"
            " where {user_id} = $1::{id_t} and {is_active} and {end} > now()"
            " and {created_at} + $2::duration > now()"
            " and ($3::interval is null or"
            " greatest({last_activity_at}, {created_at}) + $3::duration > now())"
            " and (not $4::boolean or {u_password_changed_at} is null"
            " or {u_password_changed_at} <= {created_at})"
            " order by {created_at}, {id}"
        )

    def _rotate(self) -> str:
        return self._fill(
            "update {sessions} s set {set.token_digest} = $3::{dig_t},"
            " {set.refresh_digest} = $4::{dig_t}, {set.last_activity_at} = {date},"
            " {set.expires_at} = {date} + $5::duration, {set.refresh_expires_at} ="
            " least(now() + $6::duration, {created_at} + $7::duration)"
            " from {users} u where {u_id} = {user_id} and {u_is_active}"
            " and {id} = $1::{id_t} and {refresh_digest} = $2::{dig_t} and {is_active}"
            " and {refresh_expires_at} > now() and {created_at} + $7::duration > now()"
            " returning {record}"
        )

    def _redate(self) -> str:
        return self._fill(
            "update {sessions} s set {set.last_activity_at} = {date},"
            " {set.expires_at} = {date} + $3::duration"
            " from {users} u where {u_id} = {user_id} and {u_is_active}"
            " and {id} = $1::{id_t} and {refresh_digest} = $2::{dig_t} and {is_active}"
            " and {refresh_expires_at} > now()"
            " and ({last_activity_at} <= {expires_at} - $3::duration"
            " or {last_activity_at} is null or {mark})"
            " returning {record}"
        )

    def _revoke(self, where: str, said: str | None = None) -> str:
        returned = "{id} as id, {user_id} as user_id" + (
            f", {said} as said" if said else ""
        )
        return (
            self._fill(
                "with locked as (select {id} as id from {sessions} s where {is_active} and "
            )
            + where
            + self._fill(
                " order by {id} for no key update)"
                " update {sessions} s set {set.is_active} = false,"
                " {set.revoked_at} = now(), {set.revoked_reason} = $2"
                " from locked where {id} = locked.id and {is_active} returning "
            )
            + self._fill(returned)
        )

    def _triggers(self) -> str:
        """Whether triggers of ours make every writer of both tables notify, at an
        UPDATE, a DELETE and a TRUNCATE (bits 16, 8 and 32 of ``tgtype``)."""
        return (
            "select count(*) = 2 as covered from (select from pg_trigger t"
            " join pg_proc p on p.oid = t.tgfoid where t.tgenabled in ('O', 'A')"
            " and p.proname in ('handstamp_notify_session', 'handstamp_notify_user',"
            " 'handstamp_notify_all')"
            " and t.tgrelid in (to_regclass($1), to_regclass($2))"
            " group by t.tgrelid having bit_or(t.tgtype) & 56 = 56) as heard"
        )

    def _touch(self) -> str:
        # `first` is the smallest step after the rotation; the second greatest() adds one
        # more where the mark of a rotation would be left (contract, rule 5).
        return self._fill(
            "with batch as (select * from unnest($1::{id_t}[], $2::{dig_t}[],"
            " $3::timestamptz[]) as b(id, digest, at)),"
            " locked as (select {id} as id, greatest(b.at,"
            " least({expires_at} - $4::duration, now() + interval '1 minute')"
            " + interval '1 microsecond', case when b.at is null and {mark}"
            " then {last_activity_at} + interval '1 microsecond' end) as at,"
            " {expires_at} as expires_at"
            " from {sessions} s join batch b on {id} = b.id and {token_digest} = b.digest"
            " order by {id} for no key update of s)"
            " update {sessions} s set {set.last_activity_at} = locked.at + case when"
            " extract(microseconds from locked.expires_at - locked.at)::bigint % 1000000"
            " = 0 then interval '1 microsecond' else interval '0' end"
            " from locked where {id} = locked.id and {is_active}"
            " and ({last_activity_at} is null or {last_activity_at} < locked.at)"
        )

    def _prune(self) -> str:
        return self._fill(
            "with dead as (select {id} as id from {sessions} s where"
            " case when {is_active} then least("
            "{end}, {created_at} + $2::duration,"
            " greatest({last_activity_at}, {created_at}) + $3::duration)"
            " else coalesce({revoked_at}, {last_activity_at}, {expires_at}) end"
            " < now() - $1::duration order by {id} limit $4 for update skip locked)"
            " delete from {sessions} s using dead where {id} = dead.id"
        )


class _Bare:
    """Columns without a table in front, for the left side of an assignment."""

    def __init__(self, names: dict[str, str]) -> None:
        self.__dict__.update(names)
