"""What `handstamp doctor` remarks on things it only has to look at."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from handstamp.stores.doctor.examining import Facts
from handstamp.stores.doctor.findings import Finding, Level
from handstamp.stores.doctor.proposing import PRESETS, Proposal
from handstamp.stores.token_forms import SHA256, Rows

_TOLERANCE = timedelta(seconds=1)
_FAR = timedelta(minutes=1)


def tokens_remarks(proposal: Proposal, rows: Rows | None) -> Iterator[Finding]:
    """Tokens in clear, by what the rows look like."""
    shape = proposal.shape
    if rows is None:
        text = "the rows were not counted: no right to read them, or no answer in time"
        yield Finding(Level.NOTICE, "tokens", text)
        return
    if not proposal.decided:
        return  # that is said with the proposal
    about = "about " if rows.about else ""
    if shape.at_rest == "digest":
        others = {name: n for name, n in rows.forms.items() if name != SHA256}
        if others:
            text = (
                f"{about}{sum(others.values())} rows of {shape.token} hold something other"
                f" than a SHA-256 digest in small digits of hex ({Rows(forms=others)}):"
                " nobody can sign in with them, and if they are tokens in clear, whoever"
                " reads the table has them"
            )
            yield Finding(Level.WARNING, "tokens", text)
    elif rows.unhashed:
        honoured = "tokens in clear" if shape.at_rest == "plain" else "not honoured"
        text = (
            f"{about}{rows.unhashed} rows of {shape.token} are not hashed by handstamp"
            f" ({rows}; {honoured}): whoever reads the table has the tokens that stand"
            f" there. Run handstamp migrate-tokens --table {shape.table}"
            f" --token {shape.token} --id {shape.id}"
        )
        yield Finding(Level.WARNING, "tokens", text)
    elif shape.at_rest == "prefixed" and PRESETS[proposal.preset].at_rest == "plain":
        text = 'no row holds a token in clear any more: say at_rest="prefixed"'
        yield Finding(Level.NOTICE, "tokens", text)
    else:
        yield Finding(Level.OK, "tokens", f"{about}0 rows hold a token in clear")


def pooler_remarks(pooled: bool, *, mute: bool) -> Iterator[Finding]:
    """A pooler in between, and whether anything is heard through it."""
    if pooled:
        text = 'a pooler is in between: say connect={"statement_cache_size": 0}'
        yield Finding(Level.NOTICE, "pooler", text)
    if mute:
        text = (
            "LISTEN succeeds and nothing arrives: give an address of the server itself,"
            " as --listen-dsn here and as listen_dsn= to Sessions"
        )
        yield Finding(Level.WARNING, "pooler", text)


def server_remarks(facts: Facts) -> Iterator[Finding]:
    """A server that takes no writes."""
    if facts.standby:
        text = "the server is a standby: no sign-in, no revocation, and nobody can listen"
        yield Finding(Level.DANGER, "server", text)


def facts_remarks(facts: Facts) -> Iterator[Finding]:
    """Row level security, and triggers of the application."""
    if facts.row_security:
        text = (
            "row level security applies to this role: rows its policies hide do not exist"
        )
        yield Finding(Level.WARNING, "grants", text)
    if facts.triggers:
        text = (
            f"triggers of your own fire at an UPDATE: {', '.join(facts.triggers)}. One that"
            " sets the column of the last activity makes every write look like a visit"
        )
        yield Finding(Level.NOTICE, "trigger", text)


def clock_remarks(ahead: timedelta, uncertainty: timedelta) -> Iterator[Finding]:
    """The database's clock beside this machine's."""
    seconds = ahead.total_seconds()
    text = (
        f"the database's clock is {abs(seconds):.3f} s"
        f" {'ahead of' if seconds > 0 else 'behind'} this machine's"
        f" (± {uncertainty.total_seconds():.3f} s)"
    )
    off = max(abs(ahead) - uncertainty, timedelta(0))
    level = Level.OK if off <= _TOLERANCE else Level.NOTICE
    yield Finding(Level.WARNING if off > _FAR else level, "clock", text)


def bound_remarks(bound: str, heard: bool) -> Iterator[Finding]:
    """How late a session that was ended may still be believed."""
    if bound == "pushed":
        text = "a session that anybody ends is refused everywhere within milliseconds"
    elif heard:
        text = (
            "what handstamp ends is refused everywhere within milliseconds, what other"
            " writers end within max_staleness (5 s)"
        )
    else:
        text = "a session that is ended elsewhere is refused within max_staleness (5 s)"
    yield Finding(Level.OK, "bound", f"{bound}: {text}")
