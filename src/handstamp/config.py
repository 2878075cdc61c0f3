"""The settings: frozen, keyword-only, checked when they are made, never at a request.

Durations are ``timedelta``. A combination that would sign honest users out is refused
with the reason, because in production the cause would be hard to find. How the settings are
read from a framework's configuration or the environment is in :mod:`handstamp.options`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Literal

from handstamp.errors import ConfigError

SameSite = Literal["Lax", "Strict", "None"]
OnLimit = Literal["evict", "refuse"]

# Names, paths and domains beyond these lengths are dropped by browsers.
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}")
_PREFIXES = ("__host-", "__secure-", "__http-")
_DOMAIN = re.compile(r"\.?[0-9A-Za-z]([0-9A-Za-z.-]*[0-9A-Za-z])?")
_PATH = re.compile(r"/[\x21-\x3a\x3c-\x7e]{0,1023}")
_ZERO = timedelta(0)
_LONGEST = timedelta(days=36_500)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """All lifetimes and rules of a session.

    Raises :class:`ConfigError` on construction for a combination that cannot keep the
    promises of the documentation. Every process on one table must use the same policy.
    """

    session_ttl: timedelta = timedelta(minutes=15)
    """The life of a session token, in whole seconds: how often tokens rotate."""
    refresh_ttl: timedelta = timedelta(days=30)
    """The life of a refresh token: how long a remembered user may stay away. In a table
    without refresh tokens, how far activity moves ``expires_at`` ahead."""
    absolute_ttl: timedelta = timedelta(days=90)
    """The longest life of a session, counted from the login. Nothing extends it."""
    browser_ttl: timedelta = timedelta(hours=24)
    """The absolute limit of a session that is not remembered."""
    idle_ttl: timedelta | None = None
    """The longest pause between two active requests; None for no such limit."""
    grace: timedelta = timedelta(seconds=30)
    """How long a replaced refresh token gets the same successor again."""
    touch_every: timedelta = timedelta(seconds=60)
    """The resolution of ``last_activity_at``."""
    flush_every: timedelta = timedelta(seconds=5)
    """How often the collected activity is written, and the most that a crash loses."""
    max_staleness: timedelta = timedelta(seconds=5)
    """The longest time that a cached session is valid without proof that notifications
    arrive."""
    longest_trust: timedelta = timedelta(seconds=60)
    """The longest time until a cached session is read again, also while notifications
    arrive: the bound for a change that causes none. Not shorter than ``max_staleness``."""
    time_budget: timedelta = timedelta(seconds=1)
    """The most that authentication adds to a request when the database is silent."""
    stale_while_down: timedelta = timedelta(0)
    """How much longer than ``max_staleness`` a cached session is valid while the database
    does not answer. No revocation is noticed in this time, so the default is zero."""
    retention: timedelta = timedelta(days=30)
    """How long ``prune`` keeps the row of a session that has ended, for an audit."""
    max_sessions: int | None = None
    """How many live sessions a user may have; None for no limit."""
    on_limit: OnLimit = "evict"
    """At the limit, end the oldest session or refuse the new one."""
    end_on_password_change: bool = False
    """Refuse sessions older than the user's ``last_password_change``."""
    accept_unsigned: bool = False
    """Accept tokens that the application issued before it used handstamp. Each unknown
    value then costs a query, so switch it off when the last of them has rotated."""

    def __post_init__(self) -> None:
        for f in fields(self):
            if "timedelta" in str(f.type):
                _check_duration(f.name, getattr(self, f.name), str(f.type))
        self._check_rotation()
        self._check_limits()

    def _check_rotation(self) -> None:
        if self.session_ttl % timedelta(seconds=1):
            raise ConfigError("session_ttl must be a whole number of seconds")
        if self.session_ttl < 2 * self.grace:
            raise ConfigError(
                f"session_ttl ({self.session_ttl}) must be at least 2 × grace "
                f"({self.grace}): a slow answer could overwrite a newer token"
            )
        if self.flush_every >= self.grace:
            raise ConfigError(
                f"flush_every ({self.flush_every}) must be shorter than grace "
                f"({self.grace}): the use of a new token must be recorded by then"
            )

    def _check_limits(self) -> None:
        if self.longest_trust < self.max_staleness:
            raise ConfigError(
                f"longest_trust ({self.longest_trust}) must not be shorter than "
                f"max_staleness ({self.max_staleness}): a cached session is valid that "
                "long without a notification"
            )
        if self.refresh_ttl < self.session_ttl:
            raise ConfigError("refresh_ttl must not be shorter than session_ttl")
        if self.absolute_ttl < self.session_ttl:
            raise ConfigError("absolute_ttl must not be shorter than session_ttl")
        if self.idle_ttl is not None and self.idle_ttl < 4 * self.flush_every:
            raise ConfigError(
                f"idle_ttl ({self.idle_ttl}) must be at least 4 × flush_every "
                f"({self.flush_every}): activity is written with that delay"
            )
        if self.max_sessions is not None and self.max_sessions < 1:
            raise ConfigError("max_sessions must be at least 1, or None for no limit")
        if self.on_limit not in ("evict", "refuse"):
            raise ConfigError('on_limit must be "evict" or "refuse"')

    @property
    def touch_interval(self) -> timedelta:
        """How often the activity of one session is recorded: often enough for ``idle_ttl``,
        and for an ``expires_at`` that activity moves ahead."""
        idle = self.idle_ttl or self.refresh_ttl
        return min(self.touch_every, idle / 4, self.refresh_ttl / 4)

    def lifetime(self, *, remember: bool) -> timedelta:
        """The longest life of a session, counted from its creation."""
        if remember:
            return self.absolute_ttl
        return min(self.browser_ttl, self.absolute_ttl)

    @classmethod
    def from_env(
        cls, environ: Mapping[str, str] | None = None, *, prefix: str = "HANDSTAMP_"
    ) -> Policy:
        """A policy from environment variables such as ``HANDSTAMP_SESSION_TTL=900``.

        Durations are in seconds. If ``grace`` and ``flush_every`` are not given, they
        follow a short ``session_ttl``, so one variable is enough to watch a whole life in
        seconds. ``longest_trust`` follows a long ``max_staleness`` in the same way.

        Raises :class:`ConfigError`, which names the variable, for a value that cannot be
        read and for a name that nearly is the one of a field.
        """
        from handstamp.options import read_policy  # it reads the fields of this class

        return read_policy(environ, prefix)


def _check_duration(name: str, value: object, annotation: str) -> None:
    if value is None and "None" in annotation:
        return
    if not isinstance(value, timedelta):
        raise ConfigError(f"{name} must be a timedelta, not {value!r}")
    if value < _ZERO or (value == _ZERO and name != "stale_while_down"):
        raise ConfigError(f"{name} must be longer than zero, not {value}")
    if value > _LONGEST:
        # Added to a date it would be beyond the last date, and raise at a request.
        raise ConfigError(f"{name} must be at most 100 years, not {value}")


LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]", "testserver"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Cookies:
    """Names and attributes of the two cookies.

    The default names have the prefix ``__Host-``, so a browser accepts them only from this
    host, and with ``Secure`` (RFC 6265bis, section 4.1.3.2). ``HttpOnly`` is always set.
    Raises :class:`ConfigError` for a combination that browsers drop or that weakens the
    cookie.
    """

    session_name: str = "__Host-session"
    refresh_name: str = "__Host-refresh"
    same_site: SameSite = "Lax"
    secure: bool = True
    path: str = "/"
    domain: str | None = None
    insecure_hosts: frozenset[str] = field(default=LOOPBACK)
    """Hosts that may get cookies without ``Secure``; only used if ``secure`` is False."""

    def __post_init__(self) -> None:
        self._check_name("session_name", self.session_name)
        self._check_name("refresh_name", self.refresh_name)
        if self.session_name == self.refresh_name:
            raise ConfigError("session_name and refresh_name must be two names")
        if self.same_site not in ("Lax", "Strict", "None"):
            raise ConfigError('same_site must be "Lax", "Strict" or "None"')
        if self.same_site == "None" and not self.secure:
            raise ConfigError('same_site="None" needs secure=True: browsers drop it')
        if not _PATH.fullmatch(self.path):
            raise ConfigError(f"path {self.path!r} is not valid in a cookie")
        if self.domain is not None and not _DOMAIN.fullmatch(self.domain):
            raise ConfigError(f"domain {self.domain!r} is not valid in a cookie")

    def _check_name(self, field: str, name: str) -> None:
        if not _TOKEN.fullmatch(name):
            raise ConfigError(
                f"{field} {name[:64]!r} is no cookie name (RFC 6265, section 4.1.1)"
            )
        # Browsers compare these prefixes without case (RFC 6265bis, section 5.7).
        if name.lower().startswith(_PREFIXES) and not self.secure:
            raise ConfigError(
                f"{field} {name} needs secure=True; for plain http on your own machine "
                "use Cookies.insecure()"
            )
        if name.lower().startswith("__host-") and (self.path != "/" or self.domain):
            raise ConfigError(f"{field} {name} allows no domain and no path but /")

    @classmethod
    def insecure(cls) -> Cookies:
        """Cookies for plain http on your own machine: ``session`` and ``refresh``.

        A login on any host outside ``insecure_hosts`` is refused.
        """
        return cls(session_name="session", refresh_name="refresh", secure=False)


class TrustedProxies:
    """The networks whose ``X-Forwarded-For`` is trusted; none by default.

    Arguments are addresses or networks in CIDR notation, as text. Raises
    :class:`ConfigError` for anything else.
    """

    __slots__ = ("_networks",)

    def __init__(self, *networks: str) -> None:
        try:
            self._networks: tuple[IPv4Network | IPv6Network, ...] = tuple(
                ip_network(text, strict=False) for text in networks
            )
        except ValueError as exc:
            raise ConfigError(f"trusted proxy: {exc}") from None

    def __contains__(self, address: str) -> bool:
        parsed = ip_address(address)
        return any(parsed in network for network in self._networks)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __repr__(self) -> str:
        return f"TrustedProxies{tuple(map(str, self._networks))}"
