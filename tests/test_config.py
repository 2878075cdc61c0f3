"""Settings: what is refused, and that the refusal names the setting."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, fields
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handstamp.config import Cookies, Policy, TrustedProxies
from handstamp.core.cookies import CookieWriter
from handstamp.errors import ConfigError

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
DURATIONS = [f.name for f in fields(Policy) if "timedelta" in str(f.type)]


def test_the_defaults_are_those_of_the_documentation() -> None:
    """The policy without any argument."""
    expected = Policy(
        session_ttl=timedelta(minutes=15),
        refresh_ttl=timedelta(days=30),
        absolute_ttl=timedelta(days=90),
        browser_ttl=timedelta(hours=24),
        idle_ttl=None,
        grace=timedelta(seconds=30),
        touch_every=timedelta(seconds=60),
        flush_every=timedelta(seconds=5),
        max_staleness=timedelta(seconds=5),
        longest_trust=timedelta(seconds=60),
        retention=timedelta(days=30),
        max_sessions=None,
        on_limit="evict",
        end_on_password_change=False,
        accept_unsigned=False,
    )
    assert expected == Policy()


@pytest.mark.parametrize("name", [n for n in DURATIONS if n != "stale_while_down"])
@pytest.mark.parametrize("value", [timedelta(0), -SECOND, 900, "15m", timedelta.max])
def test_a_duration_is_a_timedelta_above_zero_and_below_a_century(
    name: str, value: object
) -> None:
    """A number, a text, nothing and forever are refused at construction, by name."""
    settings: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError, match=rf"^{name} must be"):
        Policy(**settings)


@pytest.mark.parametrize("name", [name for name in DURATIONS if name != "idle_ttl"])
def test_only_the_idle_limit_may_be_none(name: str) -> None:
    """None means no limit, for this one duration."""
    settings: dict[str, Any] = {name: None}
    with pytest.raises(ConfigError, match=rf"^{name} must be a timedelta"):
        Policy(**settings)


def test_the_longest_policy_stays_in_the_calendar() -> None:
    """What the construction allows can be added to any date of this age."""
    longest = Policy(absolute_ttl=timedelta(days=36_500))
    end = datetime(2100, 1, 1, tzinfo=UTC) + longest.absolute_ttl
    assert end.year == 2199


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"session_ttl": MINUTE + SECOND / 2}, ["session_ttl", "whole"]),
        ({"session_ttl": timedelta(seconds=59)}, ["session_ttl", "grace"]),
        ({"grace": timedelta(minutes=8)}, ["session_ttl", "grace"]),
        ({"flush_every": timedelta(seconds=30)}, ["flush_every", "grace"]),
        ({"refresh_ttl": timedelta(minutes=14)}, ["refresh_ttl", "session_ttl"]),
        ({"absolute_ttl": timedelta(minutes=14)}, ["absolute_ttl", "session_ttl"]),
        ({"idle_ttl": timedelta(seconds=19)}, ["idle_ttl", "flush_every"]),
        ({"longest_trust": timedelta(seconds=4)}, ["longest_trust", "max_staleness"]),
        ({"max_staleness": timedelta(seconds=61)}, ["longest_trust", "max_staleness"]),
        ({"max_sessions": 0}, ["max_sessions"]),
        ({"max_sessions": -1}, ["max_sessions"]),
        ({"on_limit": "explode"}, ["on_limit", "evict", "refuse"]),
    ],
)
def test_a_policy_that_cannot_keep_its_promises_is_refused(
    settings: dict[str, Any], named: list[str]
) -> None:
    """Every refusal names the settings that do not fit."""
    with pytest.raises(ConfigError) as caught:
        Policy(**settings)
    assert all(name in str(caught.value) for name in named)


@pytest.mark.parametrize(
    "settings",
    [
        {"session_ttl": timedelta(seconds=60)},
        {"grace": timedelta(minutes=7, seconds=30)},
        {"flush_every": timedelta(seconds=30) - timedelta(microseconds=1)},
        {"refresh_ttl": timedelta(minutes=15)},
        {"absolute_ttl": timedelta(minutes=15)},
        {"idle_ttl": timedelta(seconds=20)},
        {"longest_trust": timedelta(seconds=5)},
        {"max_sessions": 1},
    ],
)
def test_a_policy_at_its_boundaries_is_accepted(settings: dict[str, Any]) -> None:
    """The rules refuse nothing that works."""
    policy = Policy(**settings)
    assert settings == {name: getattr(policy, name) for name in settings}


def test_a_remembered_session_lives_to_the_absolute_limit() -> None:
    """Without `remember` the browser limit counts, where it is the nearer one."""
    policy = Policy()
    assert timedelta(days=90) == policy.lifetime(remember=True)
    assert timedelta(hours=24) == policy.lifetime(remember=False)
    short = Policy(absolute_ttl=timedelta(hours=1))
    assert timedelta(hours=1) == short.lifetime(remember=False)


def test_touches_are_fine_enough_for_the_idle_limit() -> None:
    """A quarter of the idle limit, where that is finer than `touch_every`."""
    assert timedelta(seconds=60) == Policy().touch_interval
    assert timedelta(seconds=5) == Policy(idle_ttl=timedelta(seconds=20)).touch_interval
    assert timedelta(seconds=60) == Policy(idle_ttl=timedelta(hours=8)).touch_interval


def test_an_empty_environment_is_the_default_policy() -> None:
    """Without a variable every field has its default."""
    assert Policy() == Policy.from_env({})
    assert Policy() == Policy.from_env({"SESSION_TTL": "1", "HANDSTAMP_SECRET": "x"})


def test_every_duration_can_come_from_the_environment() -> None:
    """One variable for each, in seconds, under the prefix of choice."""
    seconds = {name: 100.0 * (n + 1) for n, name in enumerate(DURATIONS)}
    seconds |= {"session_ttl": 3600, "grace": 20, "flush_every": 2.5, "refresh_ttl": 7200}
    seconds["absolute_ttl"] = 9000
    environ = {f"APP_{name.upper()}": str(value) for name, value in seconds.items()}
    policy = Policy.from_env({**environ, "APP_MAX_SESSIONS": "3"}, prefix="APP_")
    assert seconds == {n: getattr(policy, n).total_seconds() for n in DURATIONS}
    assert policy.max_sessions == 3


@pytest.mark.parametrize("ttl", [1, 2, 10, 59, 60, 86_400])
def test_a_short_session_ttl_works_by_itself(ttl: int) -> None:
    """Grace and flushing shrink along, so that one variable shows a whole life."""
    policy = Policy.from_env({"HANDSTAMP_SESSION_TTL": str(ttl)})
    assert timedelta(seconds=ttl) == policy.session_ttl
    assert policy.grace == min(timedelta(seconds=30), timedelta(seconds=ttl) / 2)
    assert policy.flush_every <= policy.grace / 2


def test_a_grace_that_is_given_is_kept() -> None:
    """Only a field that is not given shrinks: a contradiction is refused."""
    with pytest.raises(ConfigError, match="2 × grace"):
        Policy.from_env({"HANDSTAMP_SESSION_TTL": "2", "HANDSTAMP_GRACE": "30"})


@pytest.mark.parametrize(("staleness", "longest"), [(2, 60), (60, 60), (3600, 3600)])
def test_a_long_staleness_bound_works_by_itself(staleness: int, longest: int) -> None:
    """`longest_trust` grows along, so that one variable is enough."""
    policy = Policy.from_env({"HANDSTAMP_MAX_STALENESS": str(staleness)})
    assert timedelta(seconds=longest) == policy.longest_trust


def test_the_longest_trust_can_come_from_the_environment() -> None:
    """A value that is given is kept: a contradiction is refused."""
    environ = {"HANDSTAMP_LONGEST_TRUST": "20"}
    assert timedelta(seconds=20) == Policy.from_env(environ).longest_trust
    with pytest.raises(ConfigError, match="longest_trust"):
        Policy.from_env({**environ, "HANDSTAMP_MAX_STALENESS": "30"})


@pytest.mark.parametrize("text", ["", "15m", "ten", "nan", "inf", "1e400", "0x10"])
def test_a_bad_number_is_named(text: str) -> None:
    """The operator reads which variable it is and its value."""
    named = re.escape(f"HANDSTAMP_SESSION_TTL must be a number of seconds, not {text!r}")
    with pytest.raises(ConfigError, match=named):
        Policy.from_env({"HANDSTAMP_SESSION_TTL": text})


@pytest.mark.parametrize("text", ["three", "3.5", "-1", " ", "1_000"])
def test_a_bad_number_of_sessions_is_named_too(text: str) -> None:
    """`MAX_SESSIONS` is refused the same way as a duration."""
    with pytest.raises(ConfigError, match=r"^HANDSTAMP_MAX_SESSIONS must be a number"):
        Policy.from_env({"HANDSTAMP_MAX_SESSIONS": text})


def test_the_process_s_own_environment_is_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a mapping the real environment is read."""
    monkeypatch.setenv("HANDSTAMP_TOUCH_EVERY", "7")
    assert timedelta(seconds=7) == Policy.from_env().touch_every


@given(
    st.dictionaries(st.sampled_from([n.upper() for n in DURATIONS]), st.text(max_size=8))
)
def test_an_environment_makes_a_policy_or_a_config_error(environ: dict[str, str]) -> None:
    """Nothing else is ever raised."""
    try:
        policy = Policy.from_env({f"HANDSTAMP_{k}": v for k, v in environ.items()})
    except ConfigError:
        return
    assert policy.session_ttl >= 2 * policy.grace


def test_the_default_cookies_are_as_strict_as_they_come() -> None:
    """Host-only names, Secure, Lax."""
    expected = Cookies(
        session_name="__Host-session",
        refresh_name="__Host-refresh",
        same_site="Lax",
        secure=True,
        path="/",
        domain=None,
    )
    assert expected == Cookies()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"session_name": ""}, ["session_name"]),
        ({"session_name": "a b"}, ["session_name"]),
        ({"refresh_name": "a;b"}, ["refresh_name"]),
        ({"refresh_name": "a\r\nb"}, ["refresh_name"]),
        ({"session_name": "a\n"}, ["session_name"]),
        ({"session_name": "sésame"}, ["session_name"]),
        ({"session_name": "a="}, ["session_name"]),
        ({"session_name": "x" * 257}, ["session_name"]),
        ({"session_name": "x", "refresh_name": "x"}, ["session_name", "refresh_name"]),
        ({"same_site": "lax"}, ["same_site"]),
        ({"same_site": "Lax; Domain=evil"}, ["same_site"]),
        ({"path": ""}, ["path"]),
        ({"path": "app"}, ["path"]),
        ({"path": "/a;b"}, ["path"]),
        ({"path": "/a\r\nSet-Cookie: x=y"}, ["path"]),
        ({"path": "/é"}, ["path"]),
        ({"path": "/" + "x" * 1024}, ["path"]),
        ({"domain": ""}, ["domain"]),
        ({"domain": "a;b"}, ["domain"]),
        ({"domain": "a\r\nb"}, ["domain"]),
        ({"domain": "-a.example"}, ["domain"]),
        ({"domain": "a.example", "session_name": "__Host-s"}, ["session_name", "domain"]),
        ({"path": "/app", "refresh_name": "__Host-r"}, ["refresh_name", "path"]),
    ],
)
def test_c105_a_cookie_that_browsers_would_drop_is_refused(
    settings: dict[str, Any], named: list[str]
) -> None:
    """Line breaks, semicolons and contradictions end at construction, by name."""
    plain: dict[str, Any] = {"session_name": "s", "refresh_name": "r"}
    with pytest.raises(ConfigError) as caught:
        Cookies(**{**plain, **settings})
    assert all(name in str(caught.value) for name in named)


@pytest.mark.parametrize(
    "prefix", ["__Host-", "__Secure-", "__Http-", "__host-", "__SECURE-"]
)
def test_c155_a_prefixed_cookie_needs_secure(prefix: str) -> None:
    """Browsers know the prefixes in any case and drop such a cookie on plain http."""
    with pytest.raises(ConfigError, match=rf"session_name {prefix}s needs secure=True"):
        Cookies(session_name=prefix + "s", refresh_name="r", secure=False)
    assert Cookies(session_name=prefix + "s", refresh_name="r").secure


@pytest.mark.parametrize("prefix", ["__Host-", "__host-", "__Host-Http-"])
def test_a_host_prefix_allows_no_domain_and_no_path(prefix: str) -> None:
    """In upper and lower case: browsers would drop the cookie."""
    for extra in ({"domain": "a.example"}, {"path": "/app"}):
        settings: dict[str, Any] = {
            "session_name": prefix + "s",
            "refresh_name": "r",
            **extra,
        }
        with pytest.raises(ConfigError, match=f"session_name {prefix}s allows no domain"):
            Cookies(**settings)
        assert Cookies(**{**settings, "session_name": "__Secure-s"}).secure


def test_same_site_none_needs_secure() -> None:
    """Browsers drop the one without the other."""
    with pytest.raises(ConfigError, match="same_site"):
        Cookies(session_name="s", refresh_name="r", same_site="None", secure=False)
    assert Cookies(same_site="None").secure


def test_c155_insecure_cookies_say_what_they_are() -> None:
    """Plain names without prefix and Secure, for loopback hosts alone."""
    cookies = Cookies.insecure()
    assert (cookies.session_name, cookies.refresh_name) == ("session", "refresh")
    assert not cookies.secure
    expected = frozenset({"localhost", "127.0.0.1", "[::1]", "testserver"})
    assert expected == cookies.insecure_hosts


text = st.text(max_size=30)


@given(name=text, path=text, domain=st.none() | text)
def test_c105_no_setting_breaks_out_of_its_attribute(
    name: str, path: str, domain: str | None
) -> None:
    """If it is accepted, the line has the attributes that we set, and no others."""
    try:
        cookies = Cookies(
            session_name="s" + name, refresh_name="r", path="/" + path, domain=domain
        )
    except ConfigError:
        return
    line = CookieWriter(cookies).session_cookie("t", None).decode("ascii")
    parts = [f"s{name}=t", f"Path=/{path}", "HttpOnly", "SameSite=Lax", "Secure"]
    assert [*parts, *([f"Domain={domain}"] if domain else [])] == line.split("; ")
    assert line.isprintable()


@pytest.mark.parametrize("settings", [Policy(), Cookies()])
def test_settings_are_frozen_and_keyword_only(settings: Policy | Cookies) -> None:
    """A setting cannot be changed after it was checked, or be given by position."""
    name = fields(settings)[0].name
    with pytest.raises(FrozenInstanceError):
        setattr(settings, name, getattr(settings, name))
    with pytest.raises(TypeError):
        type(settings)(getattr(settings, name))  # type: ignore[call-arg]


@pytest.mark.parametrize("text", ["", "proxy", "10.0.0.0/33", "10.0.0.256", "*", "::1/129"])
def test_a_proxy_that_is_no_network_is_refused(text: str) -> None:
    """A host name or a wrong mask is found before the first request."""
    with pytest.raises(ConfigError, match="trusted proxy"):
        TrustedProxies("10.0.0.1", text)


@pytest.mark.parametrize(
    ("address", "is_trusted"),
    [
        ("10.1.2.3", True),
        ("11.1.2.3", False),
        ("2001:db8::7", True),
        ("2001:db9::7", False),
        ("127.0.0.1", True),
    ],
)
def test_a_trusted_proxy_is_one_of_a_listed_network(address: str, is_trusted: bool) -> None:
    """Addresses and networks of both versions, with host bits allowed."""
    proxies = TrustedProxies("10.9.9.9/8", "2001:db8::/32", "127.0.0.1")
    assert is_trusted == (address in proxies)


def test_no_proxy_is_trusted_by_default() -> None:
    """An empty list trusts no address."""
    assert not TrustedProxies()
    assert "127.0.0.1" not in TrustedProxies()
    assert repr(TrustedProxies("10.0.0.0/8")) == "TrustedProxies('10.0.0.0/8',)"
