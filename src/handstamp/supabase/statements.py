"""The SQL for the tables of Supabase Auth, as one database of them allows it.

Rule 1. ``now()`` stands unqualified everywhere: it is the one clock, fixed for a statement
or a transaction. ``refreshed_at`` has no time zone and holds UTC, so it is never compared
with ``now()`` nor set to it as it is.
Rule 2. Columns are named, never ``*``: a newer Supabase may add some.
Rule 3. Whatever a refresh locks, it locks without waiting (``skip locked``), in the order
refresh token, session, user; so nobody waits for a refresh that waits. Who locked a row
reads it once more: the rows beside it are as old as the statement that locked.
Rule 4. Whoever deletes several sessions locks them in the order of their ids.
Rule 5. The answer to a question about sessions says whether row level security hid them.
"""

from __future__ import annotations

from datetime import timedelta

from handstamp.supabase.columns import SupabaseColumns
from handstamp.supabase.rules import SupabaseRules
from handstamp.supabase.schema import AMR, V2, Schema

# One row at least, for it says whether anything could be seen (rule 5).
_SHOWN = (
    "select w.hidden, r.* from (select {hidden} as hidden) w"
    " left join lateral ({inner}) r on true"
)
_FIND = "select {read_session} from {sessions} s {user_join} where s.id = any($1::uuid[])"
_LIST = (
    "select {read_session} from {sessions} s {user_join} where s.user_id = $1::uuid"
    " order by coalesce({refreshed_at}, s.created_at) desc nulls last, s.id limit 1000"
)
_RIVALS = "select {session} from {sessions} s {user_join} where s.user_id = $1::uuid"
_FIND_V2 = "select {keyed_session} from {sessions} s {user_join} where s.id = $1::uuid"
# The token's own user, whom nobody has compared yet with the session's.
_FIND_V1 = (
    "select {hidden} as hidden, now() as now, {token}, {token_session} from (select) one"
    " left join {tokens} t on t.token = $1 left join {sessions} s on s.id = t.session_id"
    " {owner_join}"
)
_LOCK_V1 = (
    "select {token} from {tokens} t where t.token = $1 limit 1 for update skip locked"
)
_LOCK_SESSION = (
    "select s.id from {sessions} s where s.id = $1::uuid limit 1 for update skip locked"
)
_READ_SESSION = (
    "select {keyed_session}, {user}, {amr} from {sessions} s {user_join}"
    " where s.id = $1::uuid"
)
_LOCK_USER = (
    "select u.id from {users} u where u.id = $1::uuid limit 1 for update skip locked"
)
_ACTIVE = (
    "select {token} from {tokens} t where t.session_id = $1::uuid"
    " and t.revoked is false order by t.id desc limit 1"
)
_GIVEN = (
    "p as (select s.id, s.user_id, $2::text as user_agent, $3::inet as ip,"
    " $4::text as key, $5::bigint as counter from {sessions} s where s.id = $1::uuid)"
)
_UPDATE = (
    "with {given}{noted} update {sessions} s set {refresh_sets} from p where s.id = p.id"
)
# Whoever holds the user's row is writing it, and nobody waits for that here.
_SWAP = (
    "with {given}, presented as (update {tokens} t set revoked = true, updated_at = now()"
    " where t.id = $7 returning t.token, t.user_id, t.session_id),"
    " fresh as (insert into {tokens} {token_columns} select {zero}, $6, o.user_id,"
    " $8::boolean, now(), now(), o.token, o.session_id from presented o"
    " on conflict (token) do nothing returning id),"
    " touched as (update {users} set updated_at = now() where id = (select u.id"
    " from {users} u where u.id = (select user_id from p)"
    " for no key update skip locked)){noted}"
    " update {sessions} s set {refresh_sets} from p"
    " where s.id = p.id returning (select id from fresh) as made"
)
_REVOKE_FAMILY = (
    "update {tokens} set revoked = true, updated_at = now()"
    " where session_id = $1::uuid and revoked is false"
)
_FORGET_ORPHAN = (
    "delete from {tokens} where id = (select t.id from {tokens} t where t.id = $1"
    " and not exists (select from {sessions} s where s.id = t.session_id)"
    " for update skip locked)"
)
_CREATE = (
    "with p as (select $1::uuid as id, $3::text as user_agent, $4::inet as ip,"
    " $5::timestamptz as not_after, $6::text as tag, $7::uuid as oauth_client_id,"
    " $8::text as scopes, $9::text as key, $10::bigint as counter,"
    " $11::text as method, $12::text as token),"
    " u as (update {users} a set last_sign_in_at = now(), updated_at = now()"
    " where a.id = $2::uuid and {welcome} returning {kept_user}),"
    " s as (insert into {sessions} ({new_columns}) select {new_values} from u, p"
    " returning {kept_session}),"
    " t as (insert into {tokens} {token_columns} select {zero}, p.token, s.user_id::text,"
    " false, now(), now(), null, s.id from s, p where p.token is not null)"
    "{claimed}{noted} select {session}, {user}, array[p.method] as amr_methods,"
    " array[now()] as amr_times from s, u, p"
)
_CLAIMED = (
    ", m as (insert into {claims} (id, session_id, created_at, updated_at,"
    " authentication_method) select gen_random_uuid(), s.id, now(), now(), p.method"
    " from s, p)"
)
_REFUSAL = (
    "select {hidden} as hidden, u.id is not null as found,"
    " {banned_until} > now() is true as banned, {deleted_at} is not null as deleted"
    " from (select $1::uuid as user_id) s {user_join}"
)
_REVOKE = (
    "with locked as (select s.id from {sessions} s where {whose} order by s.id for update),"
    " gone as (delete from {sessions} s using locked l where s.id = l.id"
    " returning s.id, s.user_id){noted} {shown}"
)
_GONE = (
    "select g.id::text, g.user_id::text, case when $1::boolean then"
    " pg_notify('handstamp', 's:' || g.id::text) end as said from gone g"
)
_PRUNE_REVOKED = (
    "delete from {tokens} where id in (select t.id from {tokens} t where t.revoked is true"
    " and t.updated_at < now() - interval '24 hours'"
    " order by t.id limit $1 for update skip locked)"
)
_PRUNE_EXPIRED = (
    "update {tokens} set revoked = true, updated_at = now() where id in (select t.id"
    " from {tokens} t join {sessions} s on t.session_id = s.id"
    " where s.not_after < now() - interval '24 hours' and t.revoked is false"
    " order by t.id limit $1 for update of t skip locked)"
)
_PRUNE_SESSIONS = (
    "delete from {sessions} where id in (select s.id from {sessions} s where {over}"
    " order by s.id limit $1 for update of s skip locked)"
)
_NEVER_REFRESHED = (
    "{refreshed_at} is null and exists (select from {tokens} t where t.session_id = s.id"
    " and t.revoked is false and t.updated_at < now() - {limit})"
)
_REFRESHED = ("token_refreshed", "token")
_REVOKED = ("token_revoked", "token")


class SupabaseStatements:
    """Every statement for one :class:`Schema` under one set of rules.

    ``update`` and ``swap`` take $1 the session, $2 user agent, $3 address, $4 key and $5
    counter (None leaves these two as they are); ``swap`` also $6 the new token, $7 the
    presented row, $8 whether the new one is over at once, and answers with the new row's
    id, or None if there was such a token. ``create`` takes what its first line says, $2 is
    the user; no row means refused. The revoking ones take whether to say so first.
    """

    def __init__(self, name: str, schema: Schema, rules: SupabaseRules) -> None:
        self._columns = SupabaseColumns(name, schema, rules)
        self._pieces = self._columns.pieces()
        self.knows_v2 = schema.has("sessions", *V2)
        mine = "u.id = (select user_id from p)"
        self.find_many = self._shown(self._fill(_FIND))
        self.list_for_user = self._shown(self._fill(_LIST))
        self.rivals = self._fill(_RIVALS)
        self.find_v1 = self._fill(_FIND_V1)
        self.find_v2 = self._shown(self._fill(_FIND_V2))
        self.lock_v1 = self._fill(_LOCK_V1)
        self.lock_session = self._fill(_LOCK_SESSION)
        self.read_session = self._fill(_READ_SESSION)
        self.lock_user = self._fill(_LOCK_USER)
        self.active = self._fill(_ACTIVE)
        self.update = self._fill(
            _UPDATE, given=self._fill(_GIVEN), noted=self._noted(mine, _REFRESHED)
        )
        self.swap = self._fill(
            _SWAP,
            given=self._fill(_GIVEN),
            noted=self._noted(mine, _REFRESHED, _REVOKED),
        )
        self.revoke_family = self._fill(_REVOKE_FAMILY)
        self.forget_orphan = self._fill(_FORGET_ORPHAN)
        self.create = self._create(schema)
        self.refusal = self._fill(_REFUSAL)
        self.revoke = self._revoke("s.id = any($2::uuid[])")
        self.end = self._fill(
            _REVOKE, whose="s.id = any($2::uuid[])", noted="", shown=self._shown(_GONE)
        )
        self.revoke_own = self._revoke("s.id = any($2::uuid[]) and s.user_id = $3::uuid")
        self.revoke_user = self._revoke(
            "s.user_id = $2::uuid and ($3::uuid is null or s.id <> $3::uuid)"
        )
        self.ids_of_user = self._fill(
            "select s.id::text as id from {sessions} s where s.user_id = $1::uuid"
            " and ($2::uuid is null or s.id <> $2::uuid)"
        )
        self.prunes = self._prunes(schema, rules)

    def _fill(self, template: str, **more: str) -> str:
        return template.format(**self._pieces, **more)

    def _shown(self, inner: str) -> str:
        return self._fill(_SHOWN, inner=inner)

    def _noted(self, whose: str, *actions: tuple[str, str]) -> str:
        return self._columns.noted(self._fill("{users} u"), whose, *actions)

    def _create(self, schema: Schema) -> str:
        claimed = self._fill(_CLAIMED) if schema.has("mfa_amr_claims", *AMR) else ""
        noted = self._columns.noted("u", "true", ("login", "account"))
        return self._fill(_CREATE, claimed=claimed, noted=noted)

    def _revoke(self, whose: str) -> str:
        noted = self._noted("u.id in (select user_id from gone)", ("logout", "account"))
        return self._fill(_REVOKE, whose=whose, noted=noted, shown=self._shown(_GONE))

    def _prunes(self, schema: Schema, rules: SupabaseRules) -> tuple[tuple[str, int], ...]:
        """What GoTrue's own cleanup does, all but deleting users, and its limits ($1).

        ``refreshed_at`` is read as the UTC that it is, whatever the connection's zone.
        """
        found = [(self._fill(_PRUNE_REVOKED), 100)]
        if schema.has("sessions", "not_after"):
            # Sessions after 72 hours only, so that their tokens go first, piecemeal.
            found += [(self._fill(_PRUNE_EXPIRED), 100), self._over("s.not_after", 72, 10)]
        if rules.timebox is not None:
            found.append(self._over("s.created_at", 24, 100, rules.timebox))
        if rules.inactivity is not None:
            found.append(self._over("{refreshed_at}", 24, 100, rules.inactivity))
            limit = _age(24, rules.inactivity)
            never = self._fill(_NEVER_REFRESHED, limit=limit)
            found.append((self._fill(_PRUNE_SESSIONS, over=never), 100))
        return tuple(found)

    def _over(
        self, since: str, hours: int, most: int, life: timedelta = timedelta(0)
    ) -> tuple[str, int]:
        over = self._fill(since + " < now() - {limit}", limit=_age(hours, life))
        return self._fill(_PRUNE_SESSIONS, over=over), most


def _age(hours: int, life: timedelta) -> str:
    return f"interval '{life.total_seconds() + 3600 * hours} seconds'"
