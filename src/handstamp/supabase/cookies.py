"""The cookie of ``@supabase/ssr``: its name, what is in it, and how it is written.

Rule 1. The value is ``base64-`` and the base64url of a JSON object, without padding. A
value without that prefix is the JSON itself. Whatever is neither is no session: it is
treated as absent, and never an error.
Rule 2. Of the object only the two tokens are believed, and those only as claims to be
checked. ``expires_at`` must be there, for without it auth-js takes it for no session;
the ``user`` in it is whatever its holder wrote.
Rule 3. A value above 3180 characters is cut into ``name.0``, ``name.1``, … of that many.
What came with the request and is not written again is removed, so that no old piece is
ever read as part of a new value.
Rule 4. Removals stand before what is set. With a domain, each removal is written twice,
without it and with it, for a cookie of the time before the domain would shadow ours. And
what came with several values is removed without the domain before it is set with it.
Rule 5. A cookie that came with the value it would get is not written again.

Request headers -> what a request claims by the cookie of ``@supabase/ssr``.

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

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from urllib.parse import unquote, urlsplit

from handstamp.config import Cookies, SameSite
from handstamp.core.cookies import LONGEST_AGE, MOST_CANDIDATES, RawHeaders, pick
from handstamp.errors import ConfigError

MOST_CHARACTERS = 3180
"""In one cookie; the rest goes into the next."""
LONGEST_ACCESS_TOKEN = 32 * 1024
LONGEST_REFRESH_TOKEN = 256
NO_STORE = (
    (b"cache-control", b"private, no-cache, no-store, must-revalidate, max-age=0"),
    (b"expires", b"0"),
    (b"pragma", b"no-cache"),
)
"""The headers that ``@supabase/ssr`` puts beside every cookie it writes."""

_PREFIX = "base64-"
_LATEST = 253_402_300_799  # the last second a datetime holds
_IGNORED = str.maketrans("", "", " \t\r\n=")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")
_HOST = re.compile(r"[a-z0-9._-]+")

Came = Mapping[str, str | None]
"""The cookies of our names a request had: name -> value, None where it had several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CookieSession:
    """What the cookie claims: two tokens, neither of them checked.

    ``expires_at`` is in seconds since 1970, or None when it is no such number. ``user``
    may be written back as it is, and must not be believed.
    """

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_at: int | None = None
    user: Mapping[str, object] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SupabaseCookie:
    """Name and attributes of the cookie; ``maxAge`` is always 400 days.

    The attributes are stricter than those of ``@supabase/ssr``. Where supabase-js in the
    browser reads the cookie too, ``http_only`` must be off, as it is there; on plain
    http ``secure`` must be off. Raises :class:`ConfigError` for a combination that
    browsers would drop.
    """

    name: str
    http_only: bool = True
    secure: bool = True
    same_site: SameSite = "Lax"
    path: str = "/"
    domain: str | None = None

    def __post_init__(self) -> None:
        Cookies(
            session_name=self.name,
            refresh_name=f"{self.name}.0",
            same_site=self.same_site,
            secure=self.secure,
            path=self.path,
            domain=self.domain,
        )


def storage_key(url: str) -> str:
    """The cookie's name for a project's URL, such as ``sb-abcd-auth-token``.

    Raises :class:`ConfigError` for a text that is no http(s) URL, or whose host makes no
    cookie name.
    """
    try:
        parts = urlsplit(url.strip())
        host = parts.hostname or ""
    except ValueError:
        raise ConfigError(f"{url[:200]!r} is no URL") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"{url[:200]!r} is no http or https URL")
    if not _HOST.fullmatch(host):
        raise ConfigError(f"the host of {url[:200]!r} makes no cookie name: give the name")
    return f"sb-{host.partition('.')[0]}-auth-token"


def encode_session(session: Mapping[str, object]) -> str:
    """The cookie's whole value for a session object, as JavaScript would write it.

    Raises ValueError or TypeError for what is no JSON.
    """
    text = json.dumps(session, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Half of a surrogate pair has no UTF-8; escaped it is \udXXX, as in JavaScript.
    raw = text.encode("utf-8", "backslashreplace")
    return _PREFIX + urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode_session(value: str) -> CookieSession | None:
    """The session in a cookie's whole value, or None where there is none (rule 1)."""
    try:
        fields = json.loads(_json_of(value), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or "expires_at" not in fields:
        return None
    access = _token(fields.get("access_token"), LONGEST_ACCESS_TOKEN)
    refresh = _token(fields.get("refresh_token"), LONGEST_REFRESH_TOKEN)
    if access is None or refresh is None:
        return None
    user = fields.get("user")
    return CookieSession(
        access_token=access,
        refresh_token=refresh,
        expires_at=_seconds(fields["expires_at"]),
        user=user if isinstance(user, dict) else None,
    )


def cut(name: str, value: str) -> dict[str, str]:
    """The cookies that carry ``value``, by name. It needs no percent-encoding: it is
    what :func:`encode_session` gives."""
    if len(value) <= MOST_CHARACTERS:
        return {name: value}
    starts = range(0, len(value), MOST_CHARACTERS)
    pieces = (value[start : start + MOST_CHARACTERS] for start in starts)
    return {f"{name}.{number}": piece for number, piece in enumerate(pieces)}


def is_piece(cookie: str, name: str) -> bool:
    """Whether a cookie of this name is ``name``, or one of its pieces."""
    return re.fullmatch(re.escape(name) + r"(\.(0|[1-9][0-9]*))?", cookie) is not None


class SupabaseCookieWriter:
    """Renders the values of Set-Cookie headers, as bytes.

    Whoever puts them on a response puts :data:`NO_STORE` beside them.
    """

    __slots__ = ("_gone", "_gone_here", "_kept", "_name")

    def __init__(self, cookie: SupabaseCookie) -> None:
        self._name = cookie.name
        age = int(LONGEST_AGE.total_seconds())
        self._kept = _attributes(cookie, age, cookie.domain)
        self._gone = _attributes(cookie, 0, cookie.domain)
        self._gone_here = _attributes(cookie, 0, None) if cookie.domain else None

    def session(self, session: Mapping[str, object], came: Came) -> list[bytes]:
        """The lines that make ``session`` the content of the cookie, over what came."""
        pieces = cut(self._name, encode_session(session))
        stale = [n for n in came if is_piece(n, self._name) and n not in pieces]
        changed = [n for n, value in pieces.items() if came.get(n) != value]
        kept = [f"{n}={pieces[n]}{self._kept}".encode("ascii") for n in changed]
        return self._removals(stale) + self._shadows(changed, came) + kept

    def _shadows(self, names: Iterable[str], came: Came) -> list[bytes]:
        tail = self._gone_here
        if tail is None:
            return []
        several = [n for n in names if n in came and came[n] is None]
        return [f"{name}={tail}".encode("ascii") for name in several]

    def clear(self, came: Came) -> list[bytes]:
        """The lines that remove every cookie that came; none for a request without."""
        return self._removals(came)

    def _removals(self, names: Iterable[str]) -> list[bytes]:
        tails = [self._gone] if self._gone_here is None else [self._gone_here, self._gone]
        names = list(names)
        return [f"{name}={tail}".encode("ascii") for tail in tails for name in names]


def _attributes(cookie: SupabaseCookie, age: int, domain: str | None) -> str:
    parts = [f"Max-Age={age}"]
    if domain:
        parts.append(f"Domain={domain}")
    parts.append(f"Path={cookie.path}")
    if cookie.http_only:
        parts.append("HttpOnly")
    if cookie.secure:
        parts.append("Secure")
    parts.append(f"SameSite={cookie.same_site}")
    return "; " + "; ".join(parts)


def _json_of(value: str) -> str:
    """The JSON text in a value; raises ValueError for base64 that is none."""
    if not value.startswith(_PREFIX):
        return value
    text = value[len(_PREFIX) :].translate(_IGNORED)
    if not _BASE64URL.fullmatch(text):
        raise ValueError("this is no base64url")
    if len(text) % 4 == 1:  # six bits make no byte; JavaScript's decoder drops them
        text = text[:-1]
    return urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("utf-8")


def _token(value: object, longest: int) -> str | None:
    if not isinstance(value, str) or not value.isascii():
        return None
    return value if 0 < len(value) <= longest else None


def _seconds(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value <= _LATEST else None


def _refuse(constant: str) -> object:
    # Python's reader takes NaN and Infinity, JavaScript's does not.
    raise ValueError("this is no JSON")


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
