"""The frequent statements on Supabase Auth's tables, and the indexes that serve them."""

from __future__ import annotations

from collections.abc import Mapping

from handstamp.stores.doctor.needs import Index, Sample
from handstamp.stores.supabase.schema import spelled
from handstamp.stores.supabase.statements import SupabaseStatements

_NOBODY = "00000000-0000-0000-0000-000000000000"
_BY_ID: Mapping[str, str] = {"sessions": "id", "users": "id"}
_BY_SESSION: Mapping[str, str] = {
    "refresh_tokens": "session_id",
    "mfa_amr_claims": "session_id",
}


def supabase_samples(name: str, sql: SupabaseStatements) -> list[Sample]:
    """All of them. The last two stand for the deletion of a session, too, which takes its
    refresh tokens and claims with it."""
    asked: list[tuple[str, str, object, Mapping[str, str]]] = [
        ("the look-up of a session", sql.find_many, [_NOBODY], _BY_ID),
        (
            "a list of a user's sessions",
            sql.list_for_user,
            _NOBODY,
            {**_BY_ID, "sessions": "user_id"},
        ),
        ("a refresh", sql.find_v1, "-", {**_BY_ID, "refresh_tokens": "token"}),
        ("a refresh", sql.read_session, _NOBODY, {**_BY_ID, **_BY_SESSION}),
        ("a refresh", sql.active, _NOBODY, _BY_SESSION),
    ]
    return [
        Sample(
            feature=feature,
            sql=statement,
            values=[value],
            indexes={t: Index(spelled(name, t), c) for t, c in columns.items()},
        )
        for feature, statement, value, columns in asked
    ]
