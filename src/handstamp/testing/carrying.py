"""The tokens of a session in a test client's jar, in whichever cookies they travel.

Rule 1. What goes in is what the middleware itself would send, over what is in the jar: its
own writer makes the lines. So a cookie in pieces leaves no old piece behind.
Rule 2. What comes out is what the middleware itself would read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from handstamp.config import Cookies
from handstamp.core.cookies import CookieWriter
from handstamp.core.supabase_cookies import CookieSession
from handstamp.engine.answers import Issued
from handstamp.engine.speech import Speech
from handstamp.testing.jars import Jar, Pairs, jar_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What a jar holds of one session: both tokens, and the cookies they are in.

    ``refresh_token`` is None where the table has none.
    """

    session_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    cookies: Mapping[str, str] = field(repr=False)


def check(client: object, speech: Speech) -> None:
    """Raise :class:`ConfigError` where this client would never send such cookies."""
    jar_of(client).check(speech.cookies)


def give(client: object, issued: Issued, speech: Speech) -> None:
    """Put the tokens into the jar, as the response to a sign-in would."""
    jar = jar_of(client)
    _put(jar, speech.writer.deliver(issued, _came(jar, speech)))


def copy_to(client: object, carried: Carried, speech: Speech) -> None:
    """Put the very same cookies into the jar of another client, in place of its own.

    Raises :class:`ConfigError` where it would never send them.
    """
    jar = jar_of(client)
    jar.check(speech.cookies)
    _put(jar, speech.writer.clear(_came(jar, speech)))
    _put(jar, (_line(*pair, speech.cookies) for pair in carried.cookies.items()))


def carried_by(client: object, speech: Speech) -> Carried | None:
    """What this client would be known by; None where it holds no session."""
    pairs = jar_of(client).held()
    credentials = speech.reader.read(_headers(pairs), bearer=False)
    ours = {name: value for name, value in pairs if name.encode() in speech.writer.names}
    if not credentials.session:
        return None
    if credentials.claims:  # a cookie with an inside
        claim = cast("CookieSession", credentials.claims[0])
        session_token, refresh_token = claim.access_token, claim.refresh_token or None
    else:
        session_token = credentials.session[0].decode("ascii")
        refresh = (text.decode("ascii") for text in credentials.refresh)
        refresh_token = next(refresh, None)
    return Carried(session_token=session_token, refresh_token=refresh_token, cookies=ours)


def _put(jar: Jar, lines: Iterable[bytes]) -> None:
    jar.put([line.decode("ascii") for line in lines])


def _came(jar: Jar, speech: Speech) -> Mapping[str, str | None]:
    return speech.reader.came(_headers(jar.held()))


def _headers(pairs: Pairs) -> list[tuple[bytes, bytes]]:
    text = "; ".join(f"{name}={value}" for name, value in pairs)
    return [(b"cookie", text.encode("latin-1", "replace"))]


def _line(name: str, value: str, cookies: Cookies) -> bytes:
    """One cookie as it was, byte for byte: a thief copies and reads nothing."""
    alone = replace(cookies, session_name=name, refresh_name=f"{name}-")
    return CookieWriter(alone).session(value, None)
