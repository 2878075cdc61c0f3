"""The address of the database: read before anything is done with it.

The driver splits an address by the rules of a URL. A password with a bare ``#`` or ``/``
then ends where it should not: its first half is taken for a host and a port. So every
part is checked here, and what could be read in two ways is refused.

No error quotes any part of an address, because there may be a password in it.
"""

from __future__ import annotations

import re
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from handstamp.errors import ConfigError

EXPECTED = "postgresql://user:password@host:5432/name"
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f]")
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
_HOST = re.compile(
    r"(?:\[[0-9A-Fa-f:.]+(?:%25[0-9A-Za-z._~-]+)?\]|[^\[\]:]+)(?::([0-9]*))?"
)
_PORTS = re.compile(r"[0-9]+(?:,[0-9]+)*")
_LAST_PORT = 65_535


def checked_dsn(dsn: str) -> str:
    """``dsn`` without the space around it, if it is the URI of a PostgreSQL database that
    can be read in one way only.

    Raises :class:`ConfigError`, which says what to do and quotes nothing.
    """
    dsn = dsn.strip()
    problem = _problem(dsn)
    if problem is not None:
        raise ConfigError(problem)
    return dsn


def unreadable(what: str) -> str:
    """What to tell the operator about an address in which ``what`` is wrong."""
    return (
        f"the database's address cannot be read: {what}. Expected {EXPECTED}, with every "
        "special character of the user, the password and the name percent-encoded, such "
        "as # as %23 and @ as %40: urllib.parse.quote(password, safe='')"
    )


def _problem(dsn: str) -> str | None:
    parts = _split(dsn)
    if parts is not None and parts.scheme.startswith(("postgresql+", "postgres+")):
        return f"the database must be a URI like {EXPECTED}: leave out the name of a driver"
    if parts is not None and parts.scheme not in ("postgresql", "postgres"):
        return f"the database must be a URI like {EXPECTED}"
    what = "its host is malformed" if parts is None else _fault(dsn, parts)
    return None if what is None else unreadable(what)


def _split(dsn: str) -> SplitResult | None:
    try:
        return urlsplit(dsn)
    except ValueError:  # its text may quote a piece of the password
        return None


def _fault(dsn: str, parts: SplitResult) -> str | None:
    if _UNPRINTABLE.search(dsn):
        return "there is a space or a control character in it"
    if "#" in dsn:
        return "there is a # in it"
    if dsn.count("@") > 1 or "@" in parts.path + parts.query:
        return "there is an @ that does not stand before the host"
    if _ESCAPE.search(dsn) or not _is_utf8(dsn):
        return "a % in it is not followed by the two digits of a character"
    hosts = parts.netloc.rpartition("@")[2]
    if hosts and not all(map(_is_host, hosts.split(","))):
        return "a host or a port in it is malformed"
    return _fault_of_query(parts.query)


def _is_utf8(dsn: str) -> bool:
    try:
        unquote(dsn, errors="strict")
    except UnicodeDecodeError:
        return False
    return True


def _is_host(text: str) -> bool:
    match = _HOST.fullmatch(text)
    if match is None or int(match[1] or 0) > _LAST_PORT:
        return False
    name = unquote(text if match[1] is None else text[: match.start(1) - 1])
    return name.startswith(("/", "[")) or _is_name(name)


def _is_name(host: str) -> bool:
    """Whether the resolver would take this; it raises ValueError where it does not."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


def _fault_of_query(query: str) -> str | None:
    try:
        settings = parse_qs(query, strict_parsing=True) if query else {}
    except ValueError:
        return "what follows the ? is malformed"
    ports = settings.get("port", ["0"])[-1]
    if not _PORTS.fullmatch(ports) or any(int(p) > _LAST_PORT for p in ports.split(",")):
        return "the port that follows the ? is malformed"
    hosts = settings.get("host", ["localhost"])[-1].split(",")
    if not all(host.startswith(("/", "[")) or _is_name(host) for host in hosts):
        return "the host that follows the ? is malformed"
    return None
