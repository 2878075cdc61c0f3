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

How the tables of Supabase Auth spell what handstamp reads, column by column.

A column that this database lacks is read as NULL and not written. Ids leave as text. Times
leave finite and aware: ``refreshed_at`` has no time zone and holds UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta

from handstamp.stores.notify.sql import Kind
from handstamp.stores.shapes import quoted
from handstamp.stores.sql import FINITE
from handstamp.supabase.rules import SupabaseRules
from handstamp.supabase.schema import AMR, SESSION_COLUMNS, USER_COLUMNS, V2, Schema

ZERO = "'00000000-0000-0000-0000-000000000000'::uuid"
_UUID = "^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$"

_NO_TIME = "null::timestamptz"
_TYPES = {
    "factor_id": "uuid",
    "not_after": "timestamptz",
    "refreshed_at": "timestamp",
    "ip": "inet",
    "oauth_client_id": "uuid",
    "refresh_token_counter": "bigint",
    "banned_until": "timestamptz",
    "deleted_at": "timestamptz",
    "is_anonymous": "boolean",
    "is_sso_user": "boolean",
}
_SET = {
    "updated_at": "now()",
    "refreshed_at": "now() at time zone 'UTC'",
    "user_agent": "p.user_agent",
    "ip": "p.ip",
    "refresh_token_hmac_key": "coalesce(p.key, s.refresh_token_hmac_key)",
    "refresh_token_counter": "coalesce(p.counter, s.refresh_token_counter)",
}
_NEW = {
    "id": "p.id",
    "user_id": "u.id",
    "created_at": "now()",
    "updated_at": "now()",
    "aal": "'aal1'",
    "not_after": "p.not_after",
    "user_agent": "p.user_agent",
    "ip": "p.ip",
    "tag": "p.tag",
    "oauth_client_id": "p.oauth_client_id",
    "scopes": "p.scopes",
    "refresh_token_hmac_key": "p.key",
    "refresh_token_counter": "p.counter",
}
_VERIFIED = (
    "exists (select from {factors} f where f.user_id = s.user_id and f.status = 'verified')"
)
_LAST_WRITTEN = (
    "case when {refreshed_at} is null then"
    " (select max(t.updated_at) from {tokens} t where t.session_id = s.id) end"
)
_AMR = "from {claims} a where a.session_id = s.id order by a.updated_at desc, a.id"
_USER_JOIN = "left join {users} u on u.id = {owner} and u.instance_id = {zero}"
_NOTED = (
    ", noted as (insert into {log} (instance_id, id, payload, created_at, ip_address)"
    " select {zero}, gen_random_uuid(), json_strip_nulls(json_build_object("
    "'action', e.action, 'actor_id', u.id,"
    " 'actor_name', u.raw_user_meta_data -> 'full_name', 'actor_username',"
    " coalesce(nullif({phone}::text, ''), u.email::text, ''),"
    " 'actor_via_sso', coalesce({is_sso_user}, false), 'log_type', e.type)), now(), ''"
    " from {source}, (values {values}) as e (action, type) where {whose})"
)


class SupabaseColumns:
    """The names of one database's tables, and what stands for what in its statements.

    The aliases are ``s`` for sessions, ``u`` for users, ``t`` for refresh tokens.
    """

    def __init__(self, name: str, schema: Schema, rules: SupabaseRules) -> None:
        self._schema = schema
        self._rules = rules
        self._names = {
            "sessions": _table(name, "sessions"),
            "tokens": _table(name, "refresh_tokens"),
            "users": _table(name, "users"),
            "claims": _table(name, "mfa_amr_claims"),
            "factors": _table(name, "mfa_factors"),
            "log": _table(name, "audit_log_entries"),
            "zero": ZERO,
            "refreshed_at": f"{self._session('refreshed_at')} at time zone 'UTC'",
            "phone": self._user("phone"),
            "is_sso_user": self._user("is_sso_user"),
            "banned_until": self._user("banned_until"),
            "deleted_at": self._user("deleted_at"),
        }

    def pieces(self) -> dict[str, str]:
        """Everything a statement may name, as SQL text."""
        return {
            **self._names,
            "hidden": self._hidden(),
            "session": self._listed_session(),
            "keyed_session": self._listed_session(key=True),
            "read_session": self._listed_session(time=self._last_token()),
            "token_session": self._listed_session(time="t.updated_at"),
            "token": self._listed_token(),
            "user": self._listed_user(),
            "amr": self._amr(),
            "user_join": self._user_join("s.user_id"),
            "owner_join": self._user_join(
                f"case when t.user_id ~* '{_UUID}' then t.user_id::uuid end"
            ),
            "token_columns": "(instance_id, token, user_id, revoked, created_at,"
            " updated_at, parent, session_id)",
            "refresh_sets": ", ".join(
                f"{name} = {text}" for name, text in self._known(_SET).items()
            ),
            "new_columns": ", ".join(self._known(_NEW)),
            "new_values": ", ".join(self._known(_NEW).values()),
            "kept_session": self._kept("sessions", SESSION_COLUMNS),
            "kept_user": self._kept("users", USER_COLUMNS),
            "welcome": self._welcome(),
        }

    def noted(self, source: str, whose: str, *actions: tuple[str, str]) -> str:
        """One more step of a statement: log these (action, type) of users ``u``."""
        if not self._rules.audit or not self._schema.has("audit_log_entries"):
            return ""
        values = ", ".join(f"('{action}', '{kind}')" for action, kind in actions)
        return _NOTED.format(**self._names, source=source, whose=whose, values=values)

    def _session(self, name: str) -> str:
        return self._column("s", "sessions", name)

    def _user(self, name: str) -> str:
        return self._column("u", "users", name)

    def _column(self, alias: str, table: str, name: str) -> str:
        if self._schema.has(table, name):
            return f"{alias}.{name}"
        return f"null::{_TYPES.get(name, 'text')}"

    def _known(self, columns: Mapping[str, str]) -> dict[str, str]:
        return {n: t for n, t in columns.items() if self._schema.has("sessions", n)}

    def _kept(self, table: str, columns: Iterable[str]) -> str:
        return ", ".join(c for c in columns if self._schema.has(table, c))

    def _hidden(self) -> str:
        """Whether row level security hides the sessions from us by now."""
        if not self._schema.guarded:
            return "false"
        return "row_security_active('{sessions}'::regclass)".format(**self._names)

    def _listed_session(self, *, key: bool = False, time: str = _NO_TIME) -> str:
        return _listed(
            {
                "id": "s.id::text",
                "user_id": "s.user_id::text",
                "created_at": FINITE.format("s.created_at"),
                "updated_at": FINITE.format("s.updated_at"),
                "read_at": "now()",
                "factor_id": f"{self._session('factor_id')}::text",
                "aal": f"{self._session('aal')}::text",
                "not_after": FINITE.format(self._session("not_after")),
                "refreshed_at": FINITE.format(f"({self._names['refreshed_at']})"),
                "token_updated_at": FINITE.format(time),
                "user_agent": self._session("user_agent"),
                "address": f"host({self._session('ip')})",
                "tag": self._session("tag"),
                "oauth_client_id": f"{self._session('oauth_client_id')}::text",
                "scopes": self._session("scopes"),
                "counter": self._session("refresh_token_counter"),
                "key": self._session("refresh_token_hmac_key") if key else "null::text",
                "user_found": "u.id is not null",
                "banned_until": FINITE.format(self._user("banned_until")),
                "deleted_at": FINITE.format(self._user("deleted_at")),
                "has_verified_factor": self._verified(),
            }
        )

    def _listed_user(self) -> str:
        return _listed(
            {
                "u_id": "u.id::text",
                "u_aud": "u.aud::text",
                "u_role": "u.role::text",
                "u_email": "coalesce(u.email::text, '')",
                "u_phone": f"coalesce({self._user('phone')}::text, '')",
                "u_app_metadata": "u.raw_app_meta_data::text",
                "u_user_metadata": "u.raw_user_meta_data::text",
                "u_is_anonymous": f"coalesce({self._user('is_anonymous')}, false)",
                "u_created_at": FINITE.format("u.created_at"),
                "u_updated_at": FINITE.format("u.updated_at"),
                "u_last_sign_in_at": FINITE.format("u.last_sign_in_at"),
            }
        )

    def _listed_token(self) -> str:
        """What is neither revoked nor not counts as revoked."""
        return _listed(
            {
                "t_id": "t.id",
                "t_token": "t.token::text",
                "t_user_id": "lower(t.user_id)",
                "t_session_id": "t.session_id::text",
                "t_parent": "t.parent::text",
                "t_revoked": "t.revoked is not false",
                "t_updated_at": FINITE.format("t.updated_at"),
            }
        )

    def _amr(self) -> str:
        if not self._schema.has("mfa_amr_claims", *AMR):
            return "'{}'::text[] as amr_methods, '{}'::timestamptz[] as amr_times"
        rows = _AMR.format(**self._names)
        time = FINITE.format("a.updated_at")
        return (
            f"array(select a.authentication_method {rows}) as amr_methods,"
            f" array(select {time} {rows}) as amr_times"
        )

    def _verified(self) -> str:
        """Asked only where a rule depends on it."""
        factors = self._schema.has("mfa_factors", "user_id", "status")
        if self._rules.allow_low_aal is None or not factors:
            return "false"
        return _VERIFIED.format(**self._names)

    def _last_token(self) -> str:
        """When a v1 token of the session was last written, where that may be the only
        trace of the last refresh, and a rule depends on it."""
        if self._rules.inactivity is None:
            return _NO_TIME
        return _LAST_WRITTEN.format(**self._names)

    def _user_join(self, owner: str) -> str:
        """The user, if GoTrue would find it: it knows instance zero only."""
        return _USER_JOIN.format(**self._names, owner=owner)

    def _welcome(self) -> str:
        """Whether the user ``a`` may sign in."""
        rules = [f"a.instance_id = {ZERO}"]
        if self._schema.has("users", "banned_until"):
            rules.append("(a.banned_until is null or a.banned_until <= now())")
        if self._schema.has("users", "deleted_at"):
            rules.append("a.deleted_at is null")
        return " and ".join(rules)


def _table(schema: str, name: str) -> str:
    return f"{quoted(schema)}.{quoted(name)}"


def _listed(columns: Mapping[str, str]) -> str:
    return ", ".join(f"{text} as {name}" for name, text in columns.items())


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
    f" {Kind.SESSION_ENDED.notify_sql('g.id::text')} end as said from gone g"
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
