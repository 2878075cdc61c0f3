"""The settings: frozen, keyword-only, checked when they are made, never at a request.

Durations are ``timedelta``. A combination that would sign honest users out is refused
with the reason, because in production it would look like bad luck. How the settings are
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
    promises of the documentation. Every process on one table should use one policy.
    """

    session_ttl: timedelta = timedelta(minutes=15)
    """Life of a session token, whole seconds: how often tokens rotate."""
    refresh_ttl: timedelta = timedelta(days=30)
    """Life of a refresh token: how long a remembered user may stay away. Where the table
    has no refresh token, how far activity moves ``expires_at`` ahead."""
    absolute_ttl: timedelta = timedelta(days=90)
    """Counted from the sign-in and never extended by anything."""
    browser_ttl: timedelta = timedelta(hours=24)
    """The absolute limit of a session that is not remembered."""
    idle_ttl: timedelta | None = None
    """Longest pause between two active requests; None for no such limit."""
    grace: timedelta = timedelta(seconds=30)
    """How long a replaced refresh token is still met with its successor."""
    touch_every: timedelta = timedelta(seconds=60)
    """Resolution of ``last_activity_at``."""
    flush_every: timedelta = timedelta(seconds=5)
    """How often the collected activity is written, and the most a crash loses."""
    max_staleness: timedelta = timedelta(seconds=5)
    """Longest time a cached session is believed without proof."""
    longest_trust: timedelta = timedelta(seconds=60)
    """Longest time until a cached session is read again, however much the notifications
    are trusted: what the trigger cannot hear is noticed by then. Not shorter than
    ``max_staleness``."""
    time_budget: timedelta = timedelta(seconds=1)
    """The most that authentication adds to a request when the database is silent."""
    stale_while_down: timedelta = timedelta(0)
    """How much longer than ``max_staleness`` cached sessions are believed while the
    database gives no answer. Revocations are not heard meanwhile, so: zero."""
    retention: timedelta = timedelta(days=30)
    """How long ``prune`` keeps a row after the session died, for your audit."""
    max_sessions: int | None = None
    """Live sessions a user may have; None for no limit."""
    on_limit: OnLimit = "evict"
    """At the limit, end the oldest session or refuse the new one."""
    end_on_password_change: bool = False
    """Refuse sessions older than the user's ``last_password_change``."""
    accept_unsigned: bool = False
    """Honour tokens your application issued before handstamp came. Each unknown
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
                f"({self.grace}): whether a new token was seen must be known by then"
            )

    def _check_limits(self) -> None:
        if self.longest_trust < self.max_staleness:
            raise ConfigError(
                f"longest_trust ({self.longest_trust}) must not be shorter than "
                f"max_staleness ({self.max_staleness}): a session is believed that long "
                "even without a notification"
            )
        if self.refresh_ttl < self.session_ttl:
            raise ConfigError("refresh_ttl must not be shorter than session_ttl")
        if self.absolute_ttl < self.session_ttl:
            raise ConfigError("absolute_ttl must not be shorter than session_ttl")
        if self.idle_ttl is not None and self.idle_ttl < 4 * self.flush_every:
            raise ConfigError(
                f"idle_ttl ({self.idle_ttl}) must be at least 4 × flush_every "
                f"({self.flush_every}): activity is written that late"
            )
        if self.max_sessions is not None and self.max_sessions < 1:
            raise ConfigError("max_sessions must be at least 1, or None for no limit")
        if self.on_limit not in ("evict", "refuse"):
            raise ConfigError('on_limit must be "evict" or "refuse"')

    @property
    def touch_interval(self) -> timedelta:
        """How often one session's activity is noted: fine enough for ``idle_ttl``, and
        for an expiry that moves ahead with it."""
        idle = self.idle_ttl or self.refresh_ttl
        return min(self.touch_every, idle / 4, self.refresh_ttl / 4)

    def lifetime(self, *, remember: bool) -> timedelta:
        """The longest a session lives, counted from its creation."""
        if remember:
            return self.absolute_ttl
        return min(self.browser_ttl, self.absolute_ttl)

    @classmethod
    def from_env(
        cls, environ: Mapping[str, str] | None = None, *, prefix: str = "HANDSTAMP_"
    ) -> Policy:
        """A policy from environment variables such as ``HANDSTAMP_SESSION_TTL=900``.

        Durations are in seconds. With a short ``session_ttl`` and nothing said of
        ``grace`` and ``flush_every``, those shrink along with it, so that a whole
        life can be watched in seconds by setting a single variable. Likewise
        ``longest_trust`` is never shorter than ``max_staleness`` unless it is given.

        Raises :class:`ConfigError` naming the variable that is not a number.
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
        # Counted from a date it would leave the calendar, and raise at a request.
        raise ConfigError(f"{name} must be at most 100 years, not {value}")


LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]", "testserver"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Cookies:
    """Names and attributes of the two cookies.

    The default names carry the ``__Host-`` prefix, so a browser takes them from this
    host over https only (RFC 6265bis, section 4.1.3.2). ``HttpOnly`` is always set.
    Raises :class:`ConfigError` for a combination that browsers would drop or that
    would weaken the cookie.
    """

    session_name: str = "__Host-session"
    refresh_name: str = "__Host-refresh"
    same_site: SameSite = "Lax"
    secure: bool = True
    path: str = "/"
    domain: str | None = None
    insecure_hosts: frozenset[str] = field(default=LOOPBACK)
    """Hosts that may get cookies without ``Secure``; used only when it is off."""

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
            raise ConfigError(f"path {self.path!r} cannot stand in a cookie")
        if self.domain is not None and not _DOMAIN.fullmatch(self.domain):
            raise ConfigError(f"domain {self.domain!r} cannot stand in a cookie")

    def _check_name(self, field: str, name: str) -> None:
        if not _TOKEN.fullmatch(name):
            raise ConfigError(
                f"{field} {name[:64]!r} is no cookie name (RFC 6265, section 4.1.1)"
            )
        # Browsers know these prefixes in any case (RFC 6265bis, section 5.7).
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
    """The networks whose ``X-Forwarded-For`` is believed; none by default.

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
