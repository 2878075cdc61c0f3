"""Request headers -> what a request claims by the cookie of ``@supabase/ssr``.

Rule 1. Order decides nothing, and neither does the form. Somebody else may have set a
cookie beside the user's own, so everything that could be a session is a candidate: each
value of the name itself, and ``name.0``, ``name.1``, … joined up to any number before the
first that is missing or empty. Where a name came several times, as after a change of the
cookie's domain, each of its values counts.
Rule 2. What could be a session is bounded: four values of the name, 32 ways to join the
pieces, four sessions in the end. Beyond that nothing of the cookie counts. Whoever reads in
order to end sessions reads every value, and is told where the pieces are too many.
Rule 3. Percent escapes are undone as JavaScript's cookie package does it: all, or none
where one is wrong. Only space and tab are trimmed.
Rule 4. Several Cookie headers are one. One above 64 KiB is not looked at: what is cut off
would decide.
Rule 5. At most 32 names are remembered as sent, for each may become a line of the
response: a stranger's cookies must not make it larger than proxies take.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from urllib.parse import unquote

from handstamp.core.credentials import MOST_CANDIDATES, RawHeaders, pick
from handstamp.core.supabase_cookies import Came, CookieSession, decode_session

MOST_BYTES = 64 * 1024
"""A session may hold the user's metadata, so its cookie is larger than one of ours."""
MOST_NAMES = 32
MOST_JOINED = 32
"""Ways to join the pieces that came. Two cookies of four pieces each have 30."""
MOST_DECODED = 8 * MOST_BYTES
"""Characters that one request makes us decode, over all candidates."""

_NUMBER = rb"(?:\.(?:0|[1-9][0-9]{0,8}))?"
_NEIGHBOURS = rb"(?:-(?:flow-[A-Za-z0-9_-]{8,64}-|flows-)?code-verifier|-user)?"
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_BEARER = re.compile(rb"bearer +([A-Za-z0-9._-]+) *", re.IGNORECASE)


_Candidate = tuple[CookieSession, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SupabaseCredentials:
    """What a request claims; nothing in it is checked.

    ``sessions`` are the candidates of the cookie and ``texts`` the values that hold them,
    one for each; ``bearer`` is an access token that came in their place. ``came`` are the
    cookies that the request had under our names and those auth-js keeps beside them: what
    a writer needs to know. ``incomplete`` says that there may be more sessions than these.
    """

    sessions: tuple[CookieSession, ...] = ()
    texts: tuple[str, ...] = field(default=(), repr=False)
    bearer: str | None = field(default=None, repr=False)
    came: Came = field(default_factory=dict, repr=False)
    incomplete: bool = False

    @property
    def sent(self) -> bool:
        """Whether the request carried anything of ours, well formed or not."""
        return self.bearer is not None or bool(self.came)

    @property
    def ambient(self) -> bool:
        """Whether a browser attached it by itself, so that another site may be behind
        the request."""
        return self.bearer is None and bool(self.came)

    def __bool__(self) -> bool:
        return self.bearer is not None or bool(self.sessions)


NOTHING_OF_SUPABASE = SupabaseCredentials()


class SupabaseCookieReader:
    """Reads the cookie ``name`` out of raw request headers; compiled once."""

    __slots__ = ("_name", "_needle", "_pattern", "_whole")

    def __init__(self, name: str) -> None:
        self._name = name
        self._needle = name.encode()
        self._whole = self._needle + b"=base64-"
        self._pattern = re.compile(
            rb"(?:^|;)[ \t]*(" + re.escape(self._needle) + _NEIGHBOURS + _NUMBER + rb")"
            rb"=([^;]*)"
        )

    def sole(self, header: bytes) -> bytes | None:
        """The whole value as it came, where nothing about it is unusual, else None.

        The short way for the request of every day, and what may be remembered of it:
        one value is always one session. :meth:`read` finds the session that is in it.
        """
        if len(header) > MOST_BYTES:
            return None
        at = header.find(self._needle)
        if header.startswith(self._whole, at):
            return self._alone(header, at)
        return self._in_pieces(header)

    def _alone(self, header: bytes, at: int) -> bytes | None:
        """The same for a cookie in one piece, which a hit is to cost little."""
        start, end = at + len(self._needle) + 1, header.find(b";", at)
        value = header[start:end] if end >= 0 else header[start:]
        if at and header[at - 2 : at] != b"; ":
            return None
        if end >= 0 and header.find(self._needle, end) >= 0:
            return None
        return None if b"%" in value or value[-1] in b" \t" else value

    def _in_pieces(self, header: bytes) -> bytes | None:
        before, *parts = header.split(self._needle)
        values = []
        for number, part in enumerate(parts):
            start = b".%d=" % number
            if (before and before[-2:] != b"; ") or not part.startswith(start):
                return None
            values.append(part[len(start) :].partition(b";")[0].strip(b" \t"))
            before = part
        whole = b"".join(values)
        if not all(values) or not whole.startswith(b"base64-") or b"%" in whole:
            return None
        return whole

    def read(
        self, headers: RawHeaders, *, bearer: bool = True, every: bool = False
    ) -> SupabaseCredentials:
        """Everything in ``headers`` that claims to be a session.

        ``headers`` are pairs of bytes, names in any case. With ``bearer``, an
        ``Authorization: Bearer`` header replaces the cookie altogether. With ``every``,
        what would be too much to count is read as well, in order to end sessions.
        """
        cookie, authorization = pick(headers, None if every else MOST_BYTES)
        if bearer and authorization is not None:
            match = _BEARER.fullmatch(authorization)
            if match is not None:
                return SupabaseCredentials(bearer=match[1].decode("ascii"))
        found = self._pattern.findall(cookie)
        if not found:
            return NOTHING_OF_SUPABASE
        values: dict[str, list[str]] = {}
        for name, raw in found:
            values.setdefault(name.decode("ascii"), []).append(_unescaped(raw))
        whole = dict.fromkeys(value for value in values.get(self._name, ()) if value)
        joined = self._joined(values)
        texts = (*whole, *(joined or ()))
        if every:
            found = _decoded(texts, None)
        elif joined is None or len(whole) > MOST_CANDIDATES:
            found = []
        else:
            found = _decoded(texts, MOST_DECODED)
        return SupabaseCredentials(
            sessions=tuple(session for session, _ in found),
            texts=tuple(text for _, text in found),
            came=_came(values),
            incomplete=joined is None,
        )

    def _joined(self, values: Mapping[str, list[str]]) -> list[str] | None:
        """Every text that the pieces may make, longest first; None for too many."""
        ways, joined = [""], list[str]()
        for number in count():
            came = values.get(f"{self._name}.{number}", ())
            pieces = dict.fromkeys(piece for piece in came if piece)
            if len(joined) + len(ways) * len(pieces) > MOST_JOINED:
                return None
            ways = [way + piece for way in ways for piece in pieces]
            if not ways:
                break
            joined += ways
        return joined[::-1]


def _decoded(texts: Iterable[str], most: int | None) -> list[_Candidate]:
    """The sessions in these texts, each with its text; none if there are too many, or
    more than ``most`` characters to decode, if that is a limit (rules 1 and 2)."""
    found: dict[tuple[str, str], _Candidate] = {}
    size = 0
    for text in texts:
        # No JSON object begins with another one: the start of a session is none.
        if any(known.startswith(text) for _, known in found.values()):
            continue
        size += len(text)
        if most is not None and size > most:
            return []
        session = decode_session(text)
        if session is not None:
            tokens = session.access_token, session.refresh_token
            found.setdefault(tokens, (session, text))
    if most is not None and len(found) > MOST_CANDIDATES:
        return []
    return list(found.values())


def _unescaped(raw: bytes) -> str:
    text = raw.strip(b" \t").decode("latin-1")
    if "%" not in text or _ESCAPE.search(text):
        return text
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        return text


def _came(values: Mapping[str, list[str]]) -> Came:
    names = list(values)
    if len(names) > MOST_NAMES:  # the lowest numbers are the likeliest to be read
        names = sorted(names, key=len)[:MOST_NAMES]
    return {name: _only(values[name]) for name in names}


def _only(values: list[str]) -> str | None:
    return values[0] if len(set(values)) == 1 else None
