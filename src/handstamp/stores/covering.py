"""Whether every writer of a table says what it ends."""

from __future__ import annotations

from dataclasses import dataclass

TRIGGERS = (
    # Whether triggers of ours make every writer of the tables notify, at an UPDATE, a
    # DELETE and a TRUNCATE (bits 16, 8 and 32 of ``tgtype``). Where there is no table of
    # users, $2 is null.
    "select count(*) = case when $2::text is null then 1 else 2 end as covered"
    " from (select from pg_trigger t"
    " join pg_proc p on p.oid = t.tgfoid where t.tgenabled in ('O', 'A')"
    " and p.proname in ('handstamp_notify_session', 'handstamp_notify_user',"
    " 'handstamp_notify_all')"
    " and t.tgrelid in (to_regclass($1), to_regclass($2))"
    " group by t.tgrelid having bit_or(t.tgtype) & 56 = 56) as heard"
)


@dataclass(frozen=True, slots=True)
class Triggers:
    """What the bus asks, and of which tables: sessions, and users if there are any."""

    tables: tuple[str, str | None]
    triggers: str = TRIGGERS
