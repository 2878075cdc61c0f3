"""How the tables of Supabase Auth spell what handstamp reads, column by column.

A column that this database lacks is read as NULL and not written. Ids leave as text. Times
leave finite and aware: ``refreshed_at`` has no time zone and holds UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from handstamp.stores.shapes import quoted
from handstamp.stores.sql import FINITE
from handstamp.supabase.rules import SupabaseRules
from handstamp.supabase.schema import AMR, SESSION_COLUMNS, USER_COLUMNS, Schema

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
