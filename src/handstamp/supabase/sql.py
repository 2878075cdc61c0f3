"""The SQL for the tables of Supabase Auth, for one database and one set of rules.

Rule 1. ``now()`` is the one clock, fixed for a statement or a transaction. ``refreshed_at``
has no time zone and holds UTC, so it is neither compared with ``now()`` nor set to it
without a conversion.
Rule 2. Columns are named, never ``*``: a newer Supabase may add some. A column that this
database lacks is read as NULL and not written.
Rule 3. A refresh locks without waiting (``skip locked``), in the order refresh token,
session, user. After a lock, the row is read again by a second statement: what a statement
reads beside the row that it locks is as old as the statement.
Rule 4. A statement that deletes several sessions locks them in the order of their ids.
Rule 5. Every result about sessions says whether row level security hid them.
Rule 6. Ids are returned as text, times as finite and aware.

The aliases are ``s`` for sessions, ``u`` for users, ``t`` for refresh tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from handstamp.stores.notify.sql import Kind
from handstamp.stores.shapes import quoted
from handstamp.stores.sql import FINITE
from handstamp.supabase.rules import SupabaseRules
from handstamp.supabase.schema import AMR, SESSION_COLUMNS, USER_COLUMNS, V2, Schema

ZERO = "'00000000-0000-0000-0000-000000000000'::uuid"
_UUID = "^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$"

_NO_TIME = "null::timestamptz"
_TYPES = {
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
    "user_agent": "p.user_agent",
    "ip": "p.ip",
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
_AUDITED = (
    ", audited as (insert into {log} (instance_id, id, payload, created_at, ip_address)"
    " select {zero}, gen_random_uuid(), json_strip_nulls(json_build_object("
    "'action', e.action, 'actor_id', u.id,"
    " 'actor_name', u.raw_user_meta_data -> 'full_name', 'actor_username',"
    " coalesce(nullif({phone}::text, ''), u.email::text, ''),"
    " 'actor_via_sso', coalesce({is_sso_user}, false), 'log_type', e.type)), now(), ''"
    " from {source}, (values {values}) as e (action, type) where {whose})"
)

# At least one row, which says whether the table is visible (rule 5).
_WITH_HIDDEN = (
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
# The user of the token, which has not yet been compared with the user of the session.
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
    "with {given}{audited} update {sessions} s set {refresh_sets} from p where s.id = p.id"
)
# A locked row of the user is being written by another transaction: do not wait for it.
_SWAP = (
    "with {given}, presented as (update {tokens} t set revoked = true, updated_at = now()"
    " where t.id = $7 returning t.token, t.user_id, t.session_id),"
    " fresh as (insert into {tokens} {token_columns} select {zero}, $6, o.user_id,"
    " $8::boolean, now(), now(), o.token, o.session_id from presented o"
    " on conflict (token) do nothing returning id),"
    " touched as (update {users} set updated_at = now() where id = (select u.id"
    " from {users} u where u.id = (select user_id from p)"
    " for no key update skip locked)){audited}"
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
    " $5::text as key, $6::bigint as counter, $7::text as method, $8::text as token),"
    " u as (update {users} a set last_sign_in_at = now(), updated_at = now()"
    " where a.id = $2::uuid and {may_sign_in} returning {user_columns}),"
    " s as (insert into {sessions} ({new_columns}) select {new_values} from u, p"
    " returning {session_columns}),"
    " t as (insert into {tokens} {token_columns} select {zero}, p.token, s.user_id::text,"
    " false, now(), now(), null, s.id from s, p where p.token is not null)"
    "{claimed}{audited} select {session}, {user}, array[p.method] as amr_methods,"
    " array[now()] as amr_times from s, u, p"
)
_CLAIMED = (
    ", m as (insert into {claims} (id, session_id, created_at, updated_at,"
    " authentication_method) select gen_random_uuid(), s.id, now(), now(), p.method"
    " from s, p)"
)
_REFUSAL = (
    "select {hidden} as hidden, u.id is not null as found"
    " from (select $1::uuid as user_id) s {user_join}"
)
_REVOKE = (
    "with locked as (select s.id from {sessions} s where {whose} order by s.id for update),"
    " gone as (delete from {sessions} s using locked l where s.id = l.id"
    " returning s.id, s.user_id){audited} {deleted}"
)
_DELETED = (
    "select g.id::text, g.user_id::text, case when $1::boolean then"
    f" {Kind.SESSION_ENDED.notify_sql('g.id::text')} end as notified from gone g"
)
_REFRESHED = ("token_refreshed", "token")
_REVOKED = ("token_revoked", "token")


_BY_ID = "s.id = any($2::uuid[])"


class SupabaseColumns:
    """The names of one database's tables, and the SQL text for each part of a statement."""

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
        }

    def pieces(self) -> dict[str, str]:
        """Returns the SQL text for each name in the templates."""
        return {
            **self._names,
            "hidden": self._hidden(),
            "session": self._listed_session(),
            "keyed_session": self._listed_session(key=True),
            # When a v1 token of the session was last written is read only where a rule
            # depends on the last refresh and ``refreshed_at`` may be missing.
            "read_session": self._listed_session(
                time=_NO_TIME
                if self._rules.inactivity is None
                else _LAST_WRITTEN.format(**self._names)
            ),
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
            "session_columns": self._existing("sessions", SESSION_COLUMNS),
            "user_columns": self._existing("users", USER_COLUMNS),
            "may_sign_in": self._may_sign_in(),
        }

    def audited(self, source: str, whose: str, *actions: tuple[str, str]) -> str:
        """Returns one more step of a statement: it writes these (action, type) to the audit
        log, for the users ``u`` from ``source`` where ``whose`` holds."""
        if not self._rules.audit or not self._schema.has("audit_log_entries"):
            return ""
        values = ", ".join(f"('{action}', '{kind}')" for action, kind in actions)
        return _AUDITED.format(**self._names, source=source, whose=whose, values=values)

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

    def _existing(self, table: str, columns: Iterable[str]) -> str:
        return ", ".join(c for c in columns if self._schema.has(table, c))

    def _hidden(self) -> str:
        """Whether row level security hides the sessions from our role now."""
        if not self._schema.guarded:
            return "false"
        return "row_security_active('{sessions}'::regclass)".format(**self._names)

    def _listed_session(self, *, key: bool = False, time: str = _NO_TIME) -> str:
        return _listed(
            {
                "id": "s.id::text",
                "user_id": "s.user_id::text",
                "created_at": FINITE.format("s.created_at"),
                "read_at": "now()",
                "aal": f"{self._session('aal')}::text",
                "not_after": FINITE.format(self._session("not_after")),
                "refreshed_at": FINITE.format(f"({self._names['refreshed_at']})"),
                "token_updated_at": FINITE.format(time),
                "user_agent": self._session("user_agent"),
                "address": f"host({self._session('ip')})",
                "tag": self._session("tag"),
                "oauth_client_id": f"{self._session('oauth_client_id')}::text",
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
        """``revoked`` may be NULL, which counts as revoked."""
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
        """Whether the user has a verified factor; read only where a rule depends on it."""
        factors = self._schema.has("mfa_factors", "user_id", "status")
        if self._rules.allow_low_aal is None or not factors:
            return "false"
        return _VERIFIED.format(**self._names)

    def _user_join(self, owner: str) -> str:
        """Joins the user, if GoTrue would find it: it reads users of instance zero only."""
        return _USER_JOIN.format(**self._names, owner=owner)

    def _may_sign_in(self) -> str:
        """The condition under which the user ``a`` may sign in."""
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


class SupabaseStatements:
    """Every statement for one :class:`Schema` under one set of rules.

    ``update`` and ``swap`` take $1 the session, $2 user agent, $3 address, $4 key and $5
    counter (None leaves these two as they are); ``swap`` also $6 the new token, $7 the
    presented row, $8 whether the new token is revoked at once, and returns the id of the
    new row, or None if there was a token of this text. ``create`` takes $1 the session, $2
    the user, $3 user agent, $4 address, $5 key, $6 counter, $7 method, $8 the v1 token; no
    row means that the user may not sign in. ``revoke``, ``revoke_user`` and ``end`` take $1
    whether to notify; ``revoke`` also $2 the sessions and $3 their user, or None for any.
    """

    def __init__(self, name: str, schema: Schema, rules: SupabaseRules) -> None:
        self._columns = SupabaseColumns(name, schema, rules)
        self._pieces = self._columns.pieces()
        self.has_v2 = schema.has("sessions", *V2)
        self.find_many = self._with_hidden(self._fill(_FIND))
        self.list_for_user = self._with_hidden(self._fill(_LIST))
        self.rivals = self._fill(_RIVALS)
        self.find_v1 = self._fill(_FIND_V1)
        self.find_v2 = self._with_hidden(self._fill(_FIND_V2))
        self.lock_v1 = self._fill(_LOCK_V1)
        self.lock_session = self._fill(_LOCK_SESSION)
        self.read_session = self._fill(_READ_SESSION)
        self.lock_user = self._fill(_LOCK_USER)
        self.active = self._fill(_ACTIVE)
        given, users, whose = (
            self._fill(_GIVEN),
            self._fill("{users} u"),
            "u.id = (select user_id from p)",
        )
        audited = self._columns.audited(users, whose, _REFRESHED)
        self.update = self._fill(_UPDATE, given=given, audited=audited)
        audited = self._columns.audited(users, whose, _REFRESHED, _REVOKED)
        self.swap = self._fill(_SWAP, given=given, audited=audited)
        self.revoke_family = self._fill(_REVOKE_FAMILY)
        self.forget_orphan = self._fill(_FORGET_ORPHAN)
        claimed = self._fill(_CLAIMED) if schema.has("mfa_amr_claims", *AMR) else ""
        audited = self._columns.audited("u", "true", ("login", "account"))
        self.create = self._fill(_CREATE, claimed=claimed, audited=audited)
        self.refusal = self._fill(_REFUSAL)
        audited = self._columns.audited(
            users, "u.id in (select user_id from gone)", ("logout", "account")
        )
        deleted = self._with_hidden(_DELETED)
        self.end = self._fill(_REVOKE, whose=_BY_ID, audited="", deleted=deleted)
        self.revoke = self._fill(
            _REVOKE,
            whose=f"{_BY_ID} and ($3::uuid is null or s.user_id = $3::uuid)",
            audited=audited,
            deleted=deleted,
        )
        self.revoke_user = self._fill(
            _REVOKE,
            whose="s.user_id = $2::uuid and ($3::uuid is null or s.id <> $3::uuid)",
            audited=audited,
            deleted=deleted,
        )
        self.ids_of_user = self._fill(
            "select s.id::text as id from {sessions} s where s.user_id = $1::uuid"
            " and ($2::uuid is null or s.id <> $2::uuid)"
        )

    def _fill(self, template: str, **more: str) -> str:
        return template.format(**self._pieces, **more)

    def _with_hidden(self, inner: str) -> str:
        return self._fill(_WITH_HIDDEN, inner=inner)
