"""The table of options: each one is read alike wherever an application writes it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from quart import Quart

from handstamp import (
    UUID_PLAIN,
    ConfigError,
    Cookies,
    MemoryStore,
    Policy,
    Sessions,
    asgi,
    wsgi,
)
from handstamp._pallets import prepare
from handstamp.config import TrustedProxies
from handstamp.django.settings import read as read_django
from handstamp.options import OPTIONS, PREFIX, Settings, read_environment, read_options
from handstamp.pyramid import read_settings as read_pyramid

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
URL = "postgresql://app:hunter2@db/app"
OLD, NEW = "the old secret, which has 32 bytes", "the new secret, which has 32 bytes"
NEEDED = {"database_url": URL, "secret": [NEW]}
TABLE = UUID_PLAIN


def is_poll(request: object) -> bool:
    """For `passive`: a function is a value as well."""
    return False


def seconds(text: str) -> tuple[str, object, timedelta]:
    """A duration as text, as a number, and what it is."""
    return text, float(text), timedelta(seconds=float(text))


SAMPLES: dict[str, tuple[str | None, object, object]] = {
    # As text, or None where no text can say it; in Python; and what it becomes.
    "sessions": (f"{__name__}.READY", None, None),
    "database_url": (URL, URL, URL),
    "secret": ("n" * 32, [OLD, NEW], None),
    "secrets": (f"{'o' * 32}, {'n' * 32}", ["o" * 32, "n" * 32], ["o" * 32, "n" * 32]),
    "shape": (f"{__name__}.TABLE", TABLE, TABLE),
    "cache_size": ("7", 7, 7),
    "pool_size": ("3", 3, 3),
    "connect": (None, {"ssl": "require"}, {"ssl": "require"}),
    "listen_dsn": ("postgresql://db/app", "postgresql://db/app", "postgresql://db/app"),
    "policy": (None, Policy(max_sessions=2), Policy(max_sessions=2)),
    "session_ttl": seconds("600"),
    "refresh_ttl": seconds("7200"),
    "absolute_ttl": seconds("9000"),
    "browser_ttl": seconds("3600"),
    "idle_ttl": seconds("1800"),
    "grace": seconds("20"),
    "touch_every": seconds("7"),
    "flush_every": seconds("2.5"),
    "max_staleness": seconds("3"),
    "longest_trust": seconds("40"),
    "time_budget": seconds("0.5"),
    "stale_while_down": seconds("9"),
    "retention": seconds("86400"),
    "max_sessions": ("5", 5, 5),
    "on_limit": ("refuse", "refuse", "refuse"),
    "end_on_password_change": ("yes", True, True),
    "accept_unsigned": ("1", True, True),
    "cookies": (None, Cookies(same_site="Strict"), Cookies(same_site="Strict")),
    "insecure_cookies": ("true", True, Cookies.insecure()),
    "session_name": ("sid", "sid", "sid"),
    "refresh_name": ("rid", "rid", "rid"),
    "same_site": ("None", "None", "None"),
    "secure": ("on", True, True),
    "path": ("/", "/", "/"),
    "domain": ("", None, None),
    "insecure_hosts": ("a, b", ["a", "b"], frozenset({"a", "b"})),
    "trusted_proxies": ("10.0.0.0/8", ["10.0.0.0/8"], TrustedProxies("10.0.0.0/8")),
    "exclude": ("/a /b", ["/a", "/b"], ["/a", "/b"]),
    "passive": ("/poll", is_poll, None),
    "cross_site": ("allow", "allow", "allow"),
    "trusted_origins": ("https://a.example", ["https://a.example"], ["https://a.example"]),
    "outage": ("anonymous", "anonymous", "anonymous"),
    "bearer": ("true", True, True),
}
READY = Sessions(MemoryStore(), secret=NEW)


def plain(name: str) -> str:
    return name


def of_flask(given: Mapping[str, object]) -> Settings[Sessions]:
    app = Flask(__name__)
    app.config.update({PREFIX + name.upper(): value for name, value in given.items()})
    return prepare(app, None, {})


def of_quart(given: Mapping[str, object]) -> Settings[Sessions]:
    app = Quart(__name__)
    app.config.update({PREFIX + name.upper(): value for name, value in given.items()})
    return prepare(app, None, {})


def of_django(given: Mapping[str, object]) -> Settings[Sessions]:
    return read_django({name.upper(): value for name, value in given.items()})


def of_pyramid(given: Mapping[str, object]) -> Settings[Sessions]:
    settings = {f"handstamp.{name}": value for name, value in given.items()}
    return read_pyramid({"pyramid.reload_templates": "true", **settings})


def of_environment(given: Mapping[str, Any]) -> Settings[Sessions]:
    return read_environment(Sessions, {PREFIX + n.upper(): v for n, v in given.items()})


Read = Callable[[Mapping[str, Any]], Settings[Sessions]]
PLACES: dict[str, tuple[Read, str]] = {
    "flask": (of_flask, "HANDSTAMP_{upper}"),
    "quart": (of_quart, "HANDSTAMP_{upper}"),
    "django": (of_django, "HANDSTAMP['{upper}']"),
    "pyramid": (of_pyramid, "handstamp.{lower}"),
    "environment": (of_environment, "HANDSTAMP_{upper}"),
}
in_every_place = pytest.mark.parametrize("place", PLACES)


def key(place: str, name: str) -> str:
    """The key of an option, as an error writes it."""
    return PLACES[place][1].format(upper=name.upper(), lower=name)


def read(place: str, given: Mapping[str, Any]) -> Settings[Sessions]:
    """The settings of a place, with a database and a secret unless those are tested."""
    needed = dict(NEEDED)
    if place == "environment":
        needed = {"database_url": URL, "secret": "n" * 32}
    if "secrets" in given:
        del needed["secret"]
    return PLACES[place][0](given if "sessions" in given else {**needed, **given})


def found_in(settings: Settings[Sessions], name: str) -> object:
    """The value of an option where it is used."""
    target = OPTIONS[name].target
    if target == "policy":
        return getattr(settings.sessions.policy, name)
    if name == "insecure_cookies":
        return settings.middleware["cookies"]
    if target == "cookies":
        return getattr(settings.middleware["cookies"], name)
    return settings.middleware[name]


def test_every_option_has_a_sample() -> None:
    """A new option cannot be forgotten below."""
    assert SAMPLES.keys() == OPTIONS.keys()


@in_every_place
@pytest.mark.parametrize("name", [n for n, o in OPTIONS.items() if o.target != "engine"])
def test_an_option_is_read_alike_in_every_place(place: str, name: str) -> None:
    """As text, and as a Python value where the place can hold one."""
    text, value, expected = SAMPLES[name]
    given = [text, value] if place != "environment" else [text]
    for each in given:
        if each is None:
            continue
        found = read(place, {name: each})
        if expected is None and name == "domain":
            assert "cookies" not in found.middleware
        elif name == "passive":
            assert found.middleware[name] in (["/poll"], is_poll)
        else:
            assert repr(found_in(found, name)) == repr(expected)


@pytest.mark.parametrize("name", [n for n, o in OPTIONS.items() if o.target == "engine"])
def test_an_option_of_the_engine_is_its_argument(name: str) -> None:
    """Under the argument's own name, but for the database and one secret."""
    text, value, expected = SAMPLES[name]
    if name == "sessions":
        found = read_options({"sessions": text}, plain, engine=Sessions)
        assert found.sessions is READY
        return
    argument = {"database_url": "database", "secret": "secrets"}.get(name, name)
    for each in (text, value):
        if each is None:
            continue
        given = {**NEEDED, name: each}
        if name == "secrets":
            del given["secret"]
        made = read_options(given, plain, engine=dict).sessions
        wanted = each if isinstance(each, list) else [each]
        assert made[argument] == (wanted if name == "secret" else expected)


@in_every_place
@pytest.mark.parametrize("name", [n for n, o in OPTIONS.items() if o.target == "engine"])
def test_an_option_of_the_engine_is_known_in_every_place(place: str, name: str) -> None:
    """Every place makes an engine of it."""
    text, value, _ = SAMPLES[name]
    given = value if text is None and place != "environment" else text
    if given is not None:
        assert isinstance(read(place, {name: given}).sessions, Sessions)


def test_the_table_has_every_argument_and_every_field() -> None:
    """Of Sessions and of both middlewares; clocks and ids are for tests only."""
    names = set(OPTIONS) | {"app", "self", "database", "clock", "entropy", "new_id"}
    for made in (Sessions, asgi.SessionAuthMiddleware, wsgi.SessionAuthMiddleware):
        assert set(inspect.signature(made).parameters) - names == set()


@in_every_place
def test_a_misspelled_option_names_the_nearest_one(place: str) -> None:
    """In the same words everywhere, and without the value."""
    for wrong, right in (("secert", "secret"), ("sesion_ttl", "session_ttl")):
        with pytest.raises(ConfigError) as refused:
            read(place, {wrong: "hunter2"})
        expected = (
            f"there is no option {key(place, wrong)}: did you mean {key(place, right)}?"
        )
        assert str(refused.value) == expected


@in_every_place
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("session_ttl", "15m", "a number of seconds, not '15m'"),
        ("max_sessions", "3.5", "a number, not '3.5'"),
        ("bearer", "ture", "true or false, not 'ture'"),
    ],
)
def test_a_value_that_cannot_be_read_is_named(
    place: str, name: str, value: str, expected: str
) -> None:
    """With its key, and with what it must be."""
    with pytest.raises(ConfigError) as refused:
        read(place, {name: value})
    assert str(refused.value) == f"{key(place, name)} must be {expected}"


@pytest.mark.parametrize("name", [n for n, o in OPTIONS.items() if o.secret])
@pytest.mark.parametrize("place", ["flask", "quart", "django", "pyramid"])
def test_a_bad_secret_is_not_shown(place: str, name: str) -> None:
    """The error says what it must be, and not what it is."""
    with pytest.raises(ConfigError) as refused:
        read(place, {name: ("hunter2", 7)})
    assert str(refused.value).startswith(f"{key(place, name)} must be ")
    assert "hunter2" not in str(refused.value)


@in_every_place
def test_the_settings_show_no_secret(place: str) -> None:
    """In no repr."""
    secret = NEW if place != "environment" else "n" * 32
    found = read(place, {"secret": secret})
    assert not re.search(f"hunter2|{secret}", repr(found))


def test_what_may_hold_a_password_is_marked() -> None:
    """The tests above go over these, and no others hold one."""
    secret = {name for name, option in OPTIONS.items() if option.secret}
    assert secret == {"database_url", "listen_dsn", "secret", "secrets", "connect"}


def test_a_name_in_the_wrong_case_is_another_name() -> None:
    """A setting that its framework would not read is no setting here either."""
    source = {"database_url": URL, "secret": [NEW], "SESSION_TTL": 600}
    with pytest.raises(
        ConfigError, match="no option SESSION_TTL: did you mean session_ttl"
    ):
        read_options(source, plain, engine=Sessions)


@in_every_place
@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"policy": Policy(), "grace": 5}, ["policy", "grace"]),
        ({"cookies": Cookies(), "path": "/"}, ["cookies", "path"]),
        ({"cookies": Cookies(), "insecure_cookies": True}, ["cookies", "insecure_cookies"]),
        ({"secrets": [NEW]}, ["secret", "secrets"]),
        ({"sessions": READY, "pool_size": 5}, ["sessions", "pool_size"]),
        ({"sessions": READY, "grace": 5}, ["sessions", "grace"]),
    ],
    ids=["policy", "cookies", "insecure", "secrets", "sessions", "sessions and policy"],
)
def test_two_options_that_contradict_each_other_are_refused(
    place: str, given: dict[str, Any], named: list[str]
) -> None:
    """Neither wins in silence."""
    if place == "environment":
        pytest.skip("holds text only")
    needed = {} if "sessions" in given else NEEDED
    with pytest.raises(ConfigError, match="give one or the other") as refused:
        PLACES[place][0]({**needed, **given})
    assert all(key(place, name) in str(refused.value) for name in named)


def test_cookies_that_are_not_insecure_contradict_nothing() -> None:
    """`insecure_cookies` may be off beside cookies, as a variable of a container is."""
    given = {**NEEDED, "cookies": Cookies(), "insecure_cookies": ""}
    assert read_options(given, plain, engine=Sessions).middleware == {"cookies": Cookies()}


@in_every_place
@pytest.mark.parametrize("missing", ["database_url", "secret"])
def test_what_is_needed_and_missing_is_named(place: str, missing: str) -> None:
    """Empty text is missing too: a variable that a shell did not fill."""
    with pytest.raises(ConfigError, match="or give a Sessions of your own") as refused:
        read(place, {missing: ""})
    assert f"set {key(place, missing)}," in str(refused.value)


def test_a_policy_and_cookies_may_be_dicts_of_fields() -> None:
    """An unknown field is refused by its key within the dict."""
    given = {**NEEDED, "policy": {"grace": "5"}, "cookies": {"same_site": "Strict"}}
    found = read_options(given, plain, engine=Sessions)
    assert found.sessions.policy.grace == timedelta(seconds=5)
    assert found.middleware == {"cookies": Cookies(same_site="Strict")}
    with pytest.raises(
        ConfigError, match=r"policy\['ttl'\]: did you mean policy\['idle_ttl"
    ):
        read_options({**NEEDED, "policy": {"ttl": 5}}, plain, engine=Sessions)
    with pytest.raises(ConfigError, match="grace: given twice"):
        read_options({**given, "grace": 5}, plain, engine=Sessions)


def test_sessions_given_in_code_leave_out_the_engine_of_the_configuration() -> None:
    """Tests of an application give their own; options of an engine beside them in code
    would have no effect, so they are refused."""
    source = {**NEEDED, "grace": 5, "outage": "refuse"}
    found = read_options(source, plain, engine=Sessions, sessions=READY)
    assert (found.sessions, found.middleware) == (READY, {"outage": "refuse"})
    with pytest.raises(ConfigError, match="sessions and pool_size: give one"):
        read_options(
            source, plain, engine=Sessions, sessions=READY, in_code={"pool_size": 1}
        )


def test_the_environment_belongs_to_other_programs_too() -> None:
    """Kubernetes sets variables for a service of this name; a near miss is an error."""
    others = {
        "HANDSTAMP_SERVICE_HOST": "10.0.0.1",
        "HANDSTAMP_PORT": "tcp://10.0.0.1:8000",
        "HANDSTAMP_CACHE": "/tmp/x",
        "HANDSTAMP_TEST_DATABASE_URL": URL,
        "HANDSTAMP_ACCESS_TOKEN_TTL": "60",
        "PATH": "/bin",
    }
    needed = {"DATABASE_URL": URL, "HANDSTAMP_SECRET": f"{'o' * 32},{'n' * 32}"}
    assert read_environment(Sessions, {**needed, **others}).middleware == {}
    assert Policy.from_env(others) == Policy()
    with pytest.raises(ConfigError, match="did you mean HANDSTAMP_SESSION_TTL"):
        Policy.from_env({"HANDSTAMP_SESION_TTL": "900"})


def test_several_secrets_stand_in_one_variable() -> None:
    """The newest is the last, and the database may be that of DATABASE_URL."""
    environ = {"DATABASE_URL": URL, "HANDSTAMP_SECRET": f"{'o' * 32}, {'n' * 32}"}
    made = read_environment(dict, environ).sessions
    assert made == {"database": URL, "secrets": ["o" * 32, "n" * 32]}


ROWS = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", PAGE, re.MULTILINE))


def test_the_page_has_every_option() -> None:
    """And no other, but for what Django alone has."""
    assert ROWS.keys() == {*OPTIONS, "database", "get_user"}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_page_has_the_default(name: str) -> None:
    """As text; a dash where there is none."""
    default = OPTIONS[name].default
    if name == "time_budget":
        default = timedelta(seconds=1)  # in these tests it is longer
    if isinstance(default, timedelta):
        default = int(default.total_seconds())
    if isinstance(default, frozenset):
        assert set(re.findall(r"`([^`]+)`", ROWS[name])) == default
    elif default is None or default == ():
        assert ROWS[name] == "-"
    else:
        assert ROWS[name].startswith(f"`{default}`")


@pytest.mark.parametrize("page", ["flask", "quart", "django", "pyramid"])
def test_a_framework_s_page_leads_to_the_options(page: str) -> None:
    """Where it shows how a key is written there."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    assert "(options.md)" in text


def test_an_object_that_cannot_be_imported_is_named() -> None:
    """With the reason."""
    for wrong in ("nowhere.SHAPE", f"{__name__}.NOTHING", "no name"):
        with pytest.raises(ConfigError, match=r"^shape cannot be imported: "):
            read_options({**NEEDED, "shape": wrong}, plain, engine=Sessions)
