"""The one table of options, and the one reader of them.

Rule 1. :data:`OPTIONS` has every option: how its value is read, where the value goes and
what the default is. A new field of ``Policy`` or ``Cookies`` is an option by itself.
Rule 2. Flask, Quart, Django, Pyramid and the environment are read by :func:`read_options`.
They only say which keys are meant for handstamp, and how the key of an option is written
there (``spell``).
Rule 3. A value is a Python value or text, because an ini file and the environment hold
nothing but text. None means "not given", and so does empty text where the default is None.
Rule 4. A key that is no option is refused, and the error names the nearest option. No
error contains the value of a secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from difflib import get_close_matches
from functools import partial
from pkgutil import resolve_name
from typing import Any, Generic, Literal, NamedTuple, TypeVar, cast

from handstamp.config import Cookies, Policy, TrustedProxies
from handstamp.errors import ConfigError

Target = Literal["engine", "policy", "cookies", "middleware", "own"]
Spell = Callable[[str], str]
S = TypeVar("S")

PREFIX = "HANDSTAMP_"
_OTHER_VARIABLES = frozenset({"HANDSTAMP_TEST_DATABASE_URL"})
"""Variables of ours that are no options, although their names resemble one."""


class Kind(NamedTuple):
    """How a value is read. ``parse`` raises ValueError, TypeError or OverflowError for a
    value that is not ``expected``, and ImportError for a name that leads to nothing."""

    parse: Callable[[Any], Any]
    expected: str


@dataclass(frozen=True, slots=True)
class Option:
    """A row of the table: a name, how the value is read and where it goes."""

    name: str
    target: Target
    """``engine``: an argument of ``Sessions``; ``policy``, ``cookies``: a field of that
    class; ``middleware``: an argument of ``SessionAuthMiddleware``; ``own``: what only one
    framework has."""
    kind: Kind
    default: object = None
    secret: bool = False
    """Whether errors must not show the value."""

    def read(self, key: str, value: object) -> object:
        """The value that was given under ``key``. Raises :class:`ConfigError`."""
        try:
            return self.kind.parse(value)
        except ImportError as exc:
            raise ConfigError(f"{key} cannot be imported: {exc}") from None
        except (ValueError, TypeError, OverflowError):
            shown = "" if self.secret else f", not {value!r}"
            raise ConfigError(f"{key} must be {self.kind.expected}{shown}") from None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Settings(Generic[S]):
    """What the options of one application describe."""

    sessions: S
    """The engine."""
    middleware: Mapping[str, Any]
    """Arguments of ``SessionAuthMiddleware``: only those that were given."""
    own: Mapping[str, Any]
    """Values of the options that only this framework has."""


def _duration(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, bool):
        raise TypeError
    return timedelta(seconds=float(value))


def _number(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        return int(value)
    if type(value) is not int:
        raise TypeError
    return value


def _flag(value: object) -> bool:
    text = str(value).strip().lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("", "0", "false", "no", "off"):
        return False
    raise ValueError


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _list(value: Any) -> list[str]:
    if isinstance(value, str):
        return value.replace(",", " ").split()
    if isinstance(value, (bytes, Mapping)):
        raise TypeError
    return list(map(_text, value))


def _secret(value: Any) -> list[str | bytes]:
    if isinstance(value, (list, tuple)):
        return [each if isinstance(each, bytes) else _text(each) for each in value]
    return [value] if isinstance(value, bytes) else [_text(value)]


def _secrets(value: Any) -> list[str | bytes]:
    if isinstance(value, str):  # a secret may contain blanks
        value = [text for text in map(str.strip, re.split(r"[,\n]", value)) if text]
    return _secret(value)


def _object(value: object) -> object:
    if not isinstance(value, str):
        return value
    named = {"ulid": "handstamp.ULID_HASHED", "uuid": "handstamp.UUID_PLAIN"}
    try:
        return resolve_name(named.get(value, value))
    except (AttributeError, ValueError) as exc:
        raise ImportError(exc) from None


def _proxies(value: Any) -> TrustedProxies:
    return value if isinstance(value, TrustedProxies) else TrustedProxies(*_list(value))


def _instance(kind: type, value: object) -> object:
    if not isinstance(value, kind):
        raise TypeError
    return value


DURATION = Kind(_duration, "a number of seconds")
NUMBER = Kind(_number, "a number")
FLAG = Kind(_flag, "true or false")
TEXT = Kind(_text, "text")
LIST = Kind(_list, "a list, or text with commas or blanks between its items")
SECRET = Kind(_secret, "text, or a list of texts, oldest first")
SECRETS = Kind(_secrets, "a list of texts, oldest first, or text with commas between them")
OBJECT = Kind(_object, "an object, or the dotted name of one")
_KINDS_OF_FIELDS = {
    "timedelta": DURATION,
    "timedelta | None": DURATION,
    "int | None": NUMBER,
    "bool": FLAG,
    "frozenset[str]": Kind(lambda value: frozenset(_list(value)), LIST.expected),
    **dict.fromkeys(("str", "str | None", "SameSite", "OnLimit"), TEXT),
}


def _fields_of(default: Policy | Cookies, target: Target) -> Iterable[Option]:
    for field in fields(default):
        kind = _KINDS_OF_FIELDS[str(field.type)]
        yield Option(field.name, target, kind, getattr(default, field.name))


_FIELDS: Mapping[str, Mapping[str, Option]] = {
    "policy": {option.name: option for option in _fields_of(Policy(), "policy")},
    "cookies": {option.name: option for option in _fields_of(Cookies(), "cookies")},
}
"""The fields of a Policy and of a Cookies. Each is an option, and each of the two is one
as well: an instance, or a dict of fields."""
_ROWS = (
    Option("sessions", "engine", OBJECT),
    Option("database_url", "engine", TEXT, secret=True),
    Option("secret", "engine", SECRET, secret=True),
    Option("secrets", "engine", SECRETS, secret=True),
    Option("shape", "engine", OBJECT, "ulid"),
    Option("cache_size", "engine", NUMBER, 100_000),
    Option("pool_size", "engine", NUMBER, 10),
    Option("connect", "engine", Kind(partial(_instance, dict), "a dict"), secret=True),
    Option("listen_dsn", "engine", TEXT, secret=True),
    Option("policy", "engine", Kind(partial(_instance, Policy), "a Policy or a dict")),
    *_FIELDS["policy"].values(),
    Option(
        "cookies", "middleware", Kind(partial(_instance, Cookies), "a Cookies or a dict")
    ),
    Option("insecure_cookies", "cookies", FLAG, default=False),
    *_FIELDS["cookies"].values(),
    Option("trusted_proxies", "middleware", Kind(_proxies, LIST.expected), ()),
    Option("exclude", "middleware", LIST, ()),
    Option(
        "passive",
        "middleware",
        Kind(lambda v: v if callable(v) else _list(v), f"a function, {LIST.expected}"),
        (),
    ),
    Option("cross_site", "middleware", TEXT, "refuse"),
    Option("trusted_origins", "middleware", LIST, ()),
    Option("outage", "middleware", TEXT, "ask"),
    Option("bearer", "middleware", FLAG, default=False),
)
OPTIONS: Mapping[str, Option] = {option.name: option for option in _ROWS}
"""Every option by its name; ``docs/options.md`` explains each."""


def read_options(
    source: Mapping[str, object],
    spell: Spell,
    *,
    engine: type[S],
    sessions: S | None = None,
    in_code: Mapping[str, object] | None = None,
    own: Iterable[Option] = (),
) -> Settings[S]:
    """The engine and the arguments of the middleware, as an application's options say.

    ``source`` has values by key, and every key of it is meant for handstamp; ``spell``
    makes the key of an option's name. ``in_code`` has values by name, which win over the
    source. ``engine`` is the class ``Sessions``; ``sessions`` is an instance that the
    application made. ``own`` are options that only this framework has.

    Raises :class:`ConfigError` for a key that is no option, a value that cannot be read,
    options that contradict each other, and a missing database or secret.
    """
    options = {**OPTIONS, **{option.name: option for option in own}}
    in_code = in_code or {}
    chosen = {spell(name): value for name, value in in_code.items()}
    values = _parse({**source, **chosen}, spell, options)
    if not values.get("insecure_cookies"):
        values.pop("insecure_cookies", None)
    if sessions is None:
        sessions = values.pop("sessions", None)
        describing = [n for n in values if options[n].target in ("engine", "policy")]
    else:
        describing = [n for n in in_code if options[n].target in ("engine", "policy")]
    if sessions is not None and describing:
        raise _exclude_each_other(spell, "sessions", describing)

    def take(target: Target) -> dict[str, Any]:
        names = [name for name in values if options[name].target == target]
        return {name: values.pop(name) for name in names}

    for name, make in (("policy", _make_policy), ("cookies", _make_cookies)):
        if parts := take(cast(Target, name)):
            if name in values:
                raise _exclude_each_other(spell, name, parts)
            values[name] = make(parts)
    arguments, extra = take("engine"), take("own")
    if sessions is None:
        sessions = engine(**_engine_arguments(arguments, spell))
    elif not isinstance(sessions, engine):
        raise ConfigError(f"{spell('sessions')} must be a {engine.__name__}")
    return Settings(sessions=sessions, middleware=values, own=extra)


def read_environment(
    engine: type[S], environ: Mapping[str, str] | None = None, *, prefix: str = PREFIX
) -> Settings[S]:
    """The same of the environment: ``HANDSTAMP_SECRET``, ``HANDSTAMP_SESSION_TTL`` …

    Without ``HANDSTAMP_DATABASE_URL`` the database is that of ``DATABASE_URL``, and
    ``HANDSTAMP_SECRET`` may hold several secrets, as ``HANDSTAMP_SECRETS`` does. Raises as
    :func:`read_options`; but a variable under the prefix whose name does not resemble an
    option is ignored: other programs may read it.
    """
    environ = os.environ if environ is None else environ
    source, spell = _variables(environ, prefix, OPTIONS)
    if spell("secret") in source:
        source[spell("secret")] = SECRETS.parse(source[spell("secret")])
    if "DATABASE_URL" in environ:
        source.setdefault(spell("database_url"), environ["DATABASE_URL"])
    return read_options(source, spell, engine=engine)


def read_policy(environ: Mapping[str, str] | None, prefix: str) -> Policy:
    """The policy alone; for :meth:`Policy.from_env`."""
    options = _FIELDS["policy"]
    source, spell = _variables(os.environ if environ is None else environ, prefix, options)
    return _make_policy(_parse(source, spell, options))


def _variables(
    environ: Mapping[str, str], prefix: str, options: Iterable[str]
) -> tuple[dict[str, object], Spell]:
    """The variables of these options, and how they are written."""
    known = {name.upper(): prefix + name.upper() for name in options}
    for key in environ.keys() - known.values() - _OTHER_VARIABLES:
        name = key.removeprefix(prefix)
        if key.startswith(prefix) and get_close_matches(name, known, 1, cutoff=0.8):
            raise _unknown(key, known.values())
    source = {key: environ[key] for key in known.values() if key in environ}
    return dict(source), lambda name: prefix + name.upper()


def _parse(
    source: Mapping[str, object], spell: Spell, options: Mapping[str, Option]
) -> dict[str, Any]:
    """The values that were given, by the names of their options."""
    known = {spell(name): option for name, option in options.items()}
    values: dict[str, Any] = {}
    for key, value in source.items():
        option = known.get(key)
        if option is None:
            raise _unknown(key, known)
        if value is None or (value == "" and option.default is None):
            continue
        if option.name in _FIELDS and isinstance(value, Mapping):

            def spell_field(name: str, key: str = key) -> str:
                return f"{key}[{name!r}]"

            fields = {spell_field(name): each for name, each in value.items()}
            found = _parse(fields, spell_field, _FIELDS[option.name])
        else:
            found = {option.name: option.read(key, value)}
        if twice := found.keys() & values.keys():
            raise ConfigError(f"{', '.join(sorted(map(spell, twice)))}: given twice")
        values |= found
    return values


def _unknown(key: str, known: Iterable[str]) -> ConfigError:
    folded = {each.casefold(): each for each in known}
    [nearest] = get_close_matches(key.casefold(), folded, n=1, cutoff=0)
    return ConfigError(f"there is no option {key}: did you mean {folded[nearest]}?")


def _exclude_each_other(spell: Spell, name: str, others: Iterable[str]) -> ConfigError:
    named = ", ".join(sorted(map(spell, others)))
    return ConfigError(f"{spell(name)} and {named}: give one or the other")


def _engine_arguments(given: dict[str, Any], spell: Spell) -> dict[str, Any]:
    if "secret" in given and "secrets" in given:
        raise _exclude_each_other(spell, "secret", ["secrets"])
    database = given.pop("database_url", None)
    secrets = given.pop("secret", None) or given.pop("secrets", None)
    needed = {"database_url": database, "secret": secrets}
    if missing := [spell(name) for name, value in needed.items() if not value]:
        raise ConfigError(f"set {' and '.join(missing)}, or give a Sessions of your own")
    return {**given, "database": database, "secrets": secrets}


def _make_cookies(given: dict[str, Any]) -> Cookies:
    insecure = given.pop("insecure_cookies", False)
    return replace(Cookies.insecure() if insecure else Cookies(), **given)


def _make_policy(given: dict[str, Any]) -> Policy:
    """A policy of these fields. Some that are not given follow a short ``session_ttl`` or
    a long ``max_staleness``."""
    default = Policy()
    ttl = given.get("session_ttl", default.session_ttl)
    grace = given.setdefault("grace", min(default.grace, ttl / 2))
    given.setdefault("flush_every", min(default.flush_every, grace / 2))
    staleness = given.get("max_staleness", default.max_staleness)
    given.setdefault("longest_trust", max(default.longest_trust, staleness))
    return Policy(**given)
