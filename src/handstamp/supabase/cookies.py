"""The cookie of ``@supabase/ssr``: how it is read, what is in it, and how it is written.

What is in it:

Rule 1. The value is ``base64-`` and the base64url of a JSON object, without padding. A
value without that prefix is the JSON itself. Anything else is no session: it counts as
absent, and is never an error.
Rule 2. Only the two tokens of the object are read, as claims to be checked. ``expires_at``
must be there, because without it auth-js takes the object for no session; the ``user`` in
it is written by its holder, and not read.

How it is read:

Rule 3. Neither order nor form decides anything. Another site may have set a cookie beside
the user's own, so everything that could be a session is a candidate: each value of the name
itself, and ``name.0``, ``name.1``, … joined up to any number before the first one that is
missing or empty. Where a name came several times, as after a change of the cookie's domain,
each of its values counts.
Rule 4. The number of candidates is limited: four values of the name, 32 ways to join the
pieces, four sessions in the end. Above that nothing of the cookie counts. To end sessions,
every value is read, and the result says where there are too many pieces.
Rule 5. Percent escapes are decoded as JavaScript's cookie package does it: all, or none
where one is wrong. Only space and tab are trimmed.
Rule 6. Several Cookie headers are one. One above 64 KiB is ignored: what was cut off could
decide.
Rule 7. At most 32 names are remembered as received, because each one may become a line of
the response, and foreign cookies must not make it larger than proxies accept.

How it is written:

Rule 8. A value above 3180 characters is cut into ``name.0``, ``name.1``, … of that length.
What came with the request and is not written again is removed, so that no old piece is ever
read as part of a new value.
Rule 9. Removals come before what is set. With a domain, each removal is written twice,
without it and with it, because a cookie from before the domain was configured would hide
ours. What came with several values is removed without the domain before it is set with it.
Rule 10. A cookie that came with the value it would get is not written again.
"""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from urllib.parse import unquote, urlsplit

from handstamp.config import Cookies, SameSite
from handstamp.core.cookies import (
    LONGEST_AGE,
    MAX_CANDIDATES,
    NO_CREDENTIALS,
    Credentials,
    RawHeaders,
    ReceivedCookies,
    read_headers,
)
from handstamp.core.models import Issued
from handstamp.errors import ConfigError

MAX_CHARACTERS = 3180
"""Of a value in one cookie; the rest goes into the next one."""
LONGEST_ACCESS_TOKEN = 32 * 1024
LONGEST_REFRESH_TOKEN = 256
NO_STORE = (
    (b"cache-control", b"private, no-cache, no-store, must-revalidate, max-age=0"),
    (b"expires", b"0"),
    (b"pragma", b"no-cache"),
)
"""The headers that ``@supabase/ssr`` puts beside every cookie it writes."""

MAX_BYTES = 64 * 1024
"""Of the Cookie headers. The cookie may hold the user's metadata, so it may be long."""
MAX_NAMES = 32
MAX_JOINED = 32
"""Ways to join the pieces that came. Two cookies of four pieces each have 30."""
MAX_DECODED = 8 * MAX_BYTES
"""Characters that are decoded for one request, over all candidates."""

_PREFIX = "base64-"
_IGNORED = str.maketrans("", "", " \t\r\n=")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")
_HOST = re.compile(r"[a-z0-9._-]+")
_NUMBER = rb"(?:\.(?:0|[1-9][0-9]{0,8}))?"
_NEIGHBOURS = rb"(?:-(?:flow-[A-Za-z0-9_-]{8,64}-|flows-)?code-verifier|-user)?"
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_BEARER = re.compile(rb"bearer +([A-Za-z0-9._-]+) *", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class CookieSession:
    """The two tokens of a session object in a cookie, neither of them checked. An access
    token that came as a bearer token has "" as its refresh token."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)


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
        self.as_settings(Cookies())

    def as_settings(self, base: Cookies) -> Cookies:
        """Returns ``base`` with the name and the attributes of this cookie, for code that
        knows a pair of cookies only. Raises :class:`ConfigError` as the class does."""
        return replace(
            base,
            session_name=self.name,
            refresh_name=f"{self.name}.0",
            same_site=self.same_site,
            secure=self.secure,
            path=self.path,
            domain=self.domain,
        )


def storage_key(url: str) -> str:
    """Returns the cookie's name for a project's URL, such as ``sb-abcd-auth-token``.

    Raises :class:`ConfigError` for a text that is no http(s) URL, or whose host cannot be
    in a cookie name.
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
    """Returns the cookie's whole value for a session object, as JavaScript writes it.

    Raises ValueError or TypeError for an object that JSON cannot hold.
    """
    text = json.dumps(session, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Half of a surrogate pair has no UTF-8; escaped it is \udXXX, as in JavaScript.
    raw = text.encode("utf-8", "backslashreplace")
    return _PREFIX + urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode_session(value: str) -> CookieSession | None:
    """Returns the session in a cookie's whole value, or None if there is none (rule 1)."""
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
    return CookieSession(access_token=access, refresh_token=refresh)


def cut(name: str, value: str) -> dict[str, str]:
    """Returns the cookies that hold ``value``, by name. It needs no percent-encoding: it is
    a result of :func:`encode_session`."""
    if len(value) <= MAX_CHARACTERS:
        return {name: value}
    starts = range(0, len(value), MAX_CHARACTERS)
    pieces = (value[start : start + MAX_CHARACTERS] for start in starts)
    return {f"{name}.{number}": piece for number, piece in enumerate(pieces)}


def is_piece(cookie: str, name: str) -> bool:
    """Whether a cookie of this name is ``name``, or one of its pieces."""
    return re.fullmatch(re.escape(name) + r"(\.(0|[1-9][0-9]*))?", cookie) is not None


class SupabaseCookieWriter:
    """Writes the values of Set-Cookie headers: a :class:`handstamp.core.cookies.Writer`."""

    __slots__ = ("_gone", "_gone_here", "_kept", "_name", "names", "no_store")

    def __init__(self, cookie: SupabaseCookie) -> None:
        self._name = cookie.name
        age = int(LONGEST_AGE.total_seconds())
        self._kept = _attributes(cookie, age, cookie.domain)
        self._gone = _attributes(cookie, 0, cookie.domain)
        self._gone_here = _attributes(cookie, 0, None) if cookie.domain else None
        self.names = _Names(cookie.name)
        self.no_store = NO_STORE

    def deliver(self, issued: Issued, received: ReceivedCookies) -> tuple[bytes, ...]:
        """See :meth:`Writer.deliver`."""
        return self.session(issued.body or {}, received)

    def session(
        self, session: Mapping[str, object], received: ReceivedCookies
    ) -> tuple[bytes, ...]:
        """Returns the lines that replace what came by ``session``."""
        pieces = cut(self._name, encode_session(session))
        stale = [n for n in received if is_piece(n, self._name) and n not in pieces]
        changed = [n for n, value in pieces.items() if received.get(n) != value]
        several = [n for n in changed if n in received and received[n] is None]
        return (
            *self._removals(stale),
            *(_line(n, self._gone_here) for n in several if self._gone_here is not None),
            *(_line(n, pieces[n] + self._kept) for n in changed),
        )

    def clear(self, received: ReceivedCookies) -> tuple[bytes, ...]:
        """Returns the lines that remove every cookie that came."""
        return self._removals(received)

    def _removals(self, names: Iterable[str]) -> tuple[bytes, ...]:
        tails = [self._gone] if self._gone_here is None else [self._gone_here, self._gone]
        names = list(names)
        return tuple(_line(name, tail) for tail in tails for name in names)


class _Names(Container[bytes]):
    """The names of the cookie and of all of its pieces."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __contains__(self, cookie: object) -> bool:
        return isinstance(cookie, bytes) and is_piece(cookie.decode("latin-1"), self._name)


def _line(name: str, rest: str) -> bytes:
    return f"{name}={rest}".encode("ascii")


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
    """Returns the JSON text in a value. Raises ValueError for wrong base64."""
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


def _refuse(constant: str) -> object:
    # Python's reader takes NaN and Infinity, JavaScript's does not.
    raise ValueError("this is no JSON")


_Candidate = tuple[CookieSession, str]


class SupabaseCookieReader:
    """Reads the cookie ``name``, or a bearer token, from raw request headers: a
    :class:`handstamp.core.cookies.Reader`."""

    __slots__ = ("_name", "_needle", "_pattern", "_whole")
    refresh_matches = None  # one cookie holds both tokens

    def __init__(self, name: str) -> None:
        self._name = name
        self._needle = name.encode()
        self._whole = self._needle + b"=base64-"
        self._pattern = re.compile(
            rb"(?:^|;)[ \t]*(" + re.escape(self._needle) + _NEIGHBOURS + _NUMBER + rb")"
            rb"=([^;]*)"
        )

    def read_fast(self, header: bytes) -> bytes | None:
        """Returns the whole value as it came, or None where anything about it is unusual.

        This is the fast path, and the key by which the cache knows the session: one value
        is always one session. :meth:`read` finds the session that is in it.
        """
        if len(header) > MAX_BYTES:
            return None
        at = header.find(self._needle)
        if header.startswith(self._whole, at):
            return self._in_one(header, at)
        return self._in_pieces(header)

    def _in_one(self, header: bytes, at: int) -> bytes | None:
        """The same for a cookie that is not cut, as fast as possible."""
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
    ) -> Credentials:
        """Returns everything in ``headers`` that claims to be a session.

        ``headers`` are pairs of bytes, names in any case. An ``Authorization: Bearer``
        header replaces the cookie, also without ``bearer``: these tokens are made for it.
        With ``every``, also what is above the limits of rule 4 is read, in order to end
        sessions.
        """
        cookie, authorization = read_headers(headers, None if every else MAX_BYTES)
        if authorization is not None:
            match = _BEARER.fullmatch(authorization)
            if match is not None:
                alone = CookieSession(
                    access_token=match[1].decode("ascii"), refresh_token=""
                )
                return Credentials(session=(_cache_key(alone),), claims=(alone,), sent=True)
        values = self._values(cookie)
        if not values:
            return NO_CREDENTIALS
        whole = dict.fromkeys(value for value in values.get(self._name, ()) if value)
        joined = self._joined(values)
        texts = (*whole, *(joined or ()))
        found: list[_Candidate] = []
        if every:
            found = _decoded(texts, None)
        elif joined is not None and len(whole) <= MAX_CANDIDATES:
            found = _decoded(texts, MAX_DECODED)
        keys = tuple(_cache_key(session) for session, _ in found)
        if len(found) == 1:
            value = self.read_fast(cookie)
            if value is not None and value == found[0][1].encode("latin-1", "replace"):
                keys = (value,)  # so that the fast path finds it
        return Credentials(
            session=keys,
            claims=tuple(session for session, _ in found),
            received=_received(values),
            sent=True,
            ambient=True,
            incomplete=joined is None,
        )

    def received(self, headers: RawHeaders) -> ReceivedCookies:
        """See :meth:`Reader.received`; also beside a bearer token."""
        cookie, _ = read_headers(headers, None)
        return _received(self._values(cookie))

    def _values(self, cookie: bytes) -> dict[str, list[str]]:
        values: dict[str, list[str]] = {}
        for name, raw in self._pattern.findall(cookie):
            values.setdefault(name.decode("ascii"), []).append(_unescaped(raw))
        return values

    def _joined(self, values: Mapping[str, list[str]]) -> list[str] | None:
        """Returns every text that the pieces can make, longest first; None for too many."""
        ways, joined = [""], list[str]()
        for number in count():
            received = values.get(f"{self._name}.{number}", ())
            pieces = dict.fromkeys(piece for piece in received if piece)
            if len(joined) + len(ways) * len(pieces) > MAX_JOINED:
                return None
            ways = [way + piece for way in ways for piece in pieces]
            if not ways:
                break
            joined += ways
        return joined[::-1]


def _decoded(texts: Iterable[str], most: int | None) -> list[_Candidate]:
    """Returns the sessions in these texts, each with its text; none if there are too many,
    or more than ``most`` characters to decode, if that is a limit (rules 3 and 4)."""
    found: dict[tuple[str, str], _Candidate] = {}
    size = 0
    for text in texts:
        # No JSON object begins with another one, so the start of a session is no session.
        if any(known.startswith(text) for _, known in found.values()):
            continue
        size += len(text)
        if most is not None and size > most:
            return []
        session = decode_session(text)
        if session is not None:
            tokens = session.access_token, session.refresh_token
            found.setdefault(tokens, (session, text))
    if most is not None and len(found) > MAX_CANDIDATES:
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


def _received(values: Mapping[str, list[str]]) -> ReceivedCookies:
    """The names that came, each with its value, or None for several values (rule 7)."""
    names = list(values)
    if len(names) > MAX_NAMES:  # the lowest numbers are the likeliest to be read
        names = sorted(names, key=len)[:MAX_NAMES]
    return {n: values[n][0] if len(set(values[n])) == 1 else None for n in names}


def _cache_key(claim: CookieSession) -> bytes:
    """Both tokens: an entry for an access token alone lives longer in the cache than one
    for a session that can be refreshed."""
    return f"{claim.access_token}\n{claim.refresh_token}".encode()
