"""What handstamp needs of a table: privileges, and statements that an index must serve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from handstamp.stores.fitting import Fitted, Spelling
from handstamp.stores.shapes import quoted
from handstamp.stores.statements import Statements

_WRITTEN = (
    *("id", "user_id", "token", "refresh_token", "address", "user_agent_hash"),
    *("fingerprint", "expires_at", "refresh_expires_at", "user_agent", "location"),
    *("last_activity_at", "is_active", "created_at"),
)
_ROTATED = (
    *("token", "refresh_token", "expires_at", "refresh_expires_at", "last_activity_at"),
)
_ENDED = ("is_active", "revoked_at", "revoked_reason")


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """One privilege and the feature that needs it. ``columns`` are the names of columns,
    or None alone for the whole table. Without a ``vital`` one nobody can sign in or out."""

    table: str
    privilege: str
    columns: tuple[str | None, ...]
    feature: str
    vital: bool = False


@dataclass(frozen=True, slots=True)
class Index:
    """An index on one column; both are SQL."""

    table: str
    column: str

    def __str__(self) -> str:
        return f"create index concurrently on {self.table} ({self.column})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A statement with values that no row has, and the index that it wants of a table, by
    the table's name without the schema."""

    feature: str
    sql: str
    values: Sequence[object]
    indexes: Mapping[str, Index]


def wanted(fitted: Fitted) -> Iterator[Need]:
    """Every privilege on the tables."""
    shape, table = fitted.shape, fitted.shape.table
    yield Need(
        table=table, privilege="SELECT", columns=(None,), feature="everything", vital=True
    )
    if shape.users is not None and fitted.users is not None:
        columns = _named(fitted.users, tuple(fitted.users))
        yield Need(
            table=shape.users.table,
            privilege="SELECT",
            columns=columns,
            feature="everything",
            vital=True,
        )
    columns = _named(fitted.columns, _WRITTEN)
    yield Need(
        table=table, privilege="INSERT", columns=columns, feature="sign-in", vital=True
    )
    yield from _updates(fitted)
    deletes = not _named(fitted.columns, _ENDED)
    feature = "revocation" if deletes else "pruning"
    yield Need(
        table=table, privilege="DELETE", columns=(None,), feature=feature, vital=deletes
    )


def _updates(fitted: Fitted) -> Iterator[Need]:
    shape, sliding = fitted.shape, fitted.capabilities.sliding
    features: dict[str, tuple[str, ...]] = {
        "revocation": _ENDED,
        "rotation": _ROTATED if shape.rotates else (),
        "activity": ("last_activity_at", *(["expires_at"] if sliding else [])),
        "replacing tokens in clear": ("token",) if shape.at_rest == "plain" else (),
        "step-up": ("level", *(_ROTATED if shape.rotates else ("token",))),
    }
    for feature, fields in features.items():
        columns = _named(fitted.columns, fields)
        if columns:
            yield Need(
                table=shape.table,
                privilege="UPDATE",
                columns=columns,
                feature=feature,
                vital=feature == "revocation",
            )


def sequence_of(fitted: Fitted) -> str | None:
    """The sequence that new ids come from, as text for ``regclass``."""
    expression = fitted.next_id or ""
    if not expression.startswith("nextval('"):
        return None
    return expression.removeprefix("nextval('").partition("'")[0]


def samples(sql: Statements) -> list[Sample]:
    """The frequent statements."""
    fitted = sql.fitted
    id, user = (_nobody(fitted.columns[name].cast) for name in ("id", "user_id"))
    return [
        Sample(
            feature="the look-up of a token",
            sql=sql.find,
            values=[["-"]],
            indexes=_indexes(fitted, "token"),
        ),
        Sample(
            feature="reading a session by its id",
            sql=sql.find_many,
            values=[[id]],
            indexes=_indexes(fitted, "id"),
        ),
        Sample(
            feature="a list of a user's sessions",
            sql=sql.list_for_user,
            values=[user],
            indexes=_indexes(fitted, "user_id"),
        ),
    ]


def _indexes(fitted: Fitted, field: str) -> dict[str, Index]:
    tables = {fitted.shape.table: fitted.columns[field].name}
    if fitted.shape.users is not None and fitted.users is not None:
        tables[fitted.shape.users.table] = fitted.users["id"].name
    return {t.rpartition(".")[2]: Index(quoted(t), column) for t, column in tables.items()}


def _nobody(cast: str) -> str:
    if cast == "uuid":
        return "00000000-0000-0000-0000-000000000000"
    return "0" if cast.startswith("int") else "-"


def _named(columns: Mapping[str, Spelling], fields: Sequence[str]) -> tuple[str, ...]:
    return tuple(columns[f].name.strip('"') for f in fields if f in columns)
