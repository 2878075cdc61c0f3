"""The entry of INSTALLED_APPS: the system checks of ``manage.py check``, which report
mistakes in the settings before users meet them, and ``manage.py handstamp``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core import checks
from django.core.checks import CheckMessage, Error, Warning
from django.core.exceptions import ImproperlyConfigured

from handstamp.django.settings import cookies_of, read
from handstamp.django.users import has_auth_hash
from handstamp.engine.sessions import Sessions
from handstamp.errors import ConfigError
from handstamp.options import OPTIONS, Settings

TAG = "handstamp"
_PACKAGE = "handstamp.django"
_OURS = (
    f"{_PACKAGE}.SessionAuthMiddleware",
    f"{_PACKAGE}.middleware.SessionAuthMiddleware",
)
_AUTHENTICATION = "django.contrib.auth.middleware.AuthenticationMiddleware"
_LOGIN_REQUIRED = "django.contrib.auth.middleware.LoginRequiredMiddleware"
_CACHE = "django.middleware.cache.UpdateCacheMiddleware"
_CSRF = "django.middleware.csrf.CsrfViewMiddleware"
_COOKIE_SETTINGS = ("SESSION_COOKIE_NAME", "CSRF_COOKIE_NAME", "LANGUAGE_COOKIE_NAME")


def check_setup(app_configs: Any, **_: Any) -> list[CheckMessage]:
    """Check HANDSTAMP, the order of MIDDLEWARE, the names of cookies and the user model."""
    try:
        found = read(getattr(settings, "HANDSTAMP", None))
    except ConfigError as exc:
        return [Error(str(exc), id="handstamp.E001")]
    return [*_order(list(settings.MIDDLEWARE)), *_names(found), *_passwords(found)]


def check_for_production(app_configs: Any, **_: Any) -> list[CheckMessage]:
    """Check for what is right on a developer's machine only: ``check --deploy``."""
    try:
        found = read(getattr(settings, "HANDSTAMP", None))
    except ConfigError:
        return []  # check_setup reports it
    return list(_deployed(found))


def _order(middleware: list[str]) -> Iterator[CheckMessage]:
    ours = next((middleware.index(path) for path in _OURS if path in middleware), None)
    if ours is None:
        hint = f'Add "{_OURS[0]}" near the top.'
        yield Warning("MIDDLEWARE has no session middleware.", hint, id="handstamp.W001")
        return
    if _AUTHENTICATION in middleware[ours:]:
        yield Error(
            "AuthenticationMiddleware comes later and replaces request.user.",
            f'Put "{_OURS[0]}" below it, or remove it.',
            id="handstamp.E002",
        )
    if _LOGIN_REQUIRED in middleware[:ours]:
        yield Error(
            "LoginRequiredMiddleware comes earlier, when request.user is not set yet.",
            f'Put it below "{_OURS[0]}".',
            id="handstamp.E003",
        )
    if _CACHE in middleware[ours:]:
        yield Error(
            "UpdateCacheMiddleware comes later and stores pages before they have Vary.",
            "Put it at the top.",
            id="handstamp.E004",
        )


def _names(found: Settings[Sessions]) -> Iterator[CheckMessage]:
    cookies = cookies_of(found)
    for setting in _COOKIE_SETTINGS:
        name = getattr(settings, setting)
        if name in (cookies.session_name, cookies.refresh_name):
            yield Error(
                f"{setting} is {name!r}, which is the name of a cookie of handstamp.",
                "Give one of them another name.",
                id="handstamp.E005",
            )


def _passwords(found: Settings[Sessions]) -> Iterator[CheckMessage]:
    try:
        model = get_user_model()
    except ImproperlyConfigured:
        return  # passwords are not Django's here
    if not has_auth_hash(model):
        yield Warning(
            f"A change of password ends no session: {settings.AUTH_USER_MODEL} has no "
            "get_session_auth_hash.",
            "Inherit from AbstractBaseUser, or call get_sessions().revoke_user where a "
            "password changes.",
            id="handstamp.W006",
        )
    elif not found.sessions.carries_claims:
        yield Warning(
            "A change of password ends sessions only if the user is saved: the tokens of "
            "these sessions carry no hash to compare.",
            "Where a password changes by update() or outside Django, call "
            "get_sessions().revoke_user.",
            id="handstamp.W007",
        )


def _deployed(found: Settings[Sessions]) -> Iterator[CheckMessage]:
    given = settings.HANDSTAMP
    secrets = [
        secret
        for name in ("secret", "secrets")
        for secret in OPTIONS[name].kind.parse(given.get(name.upper()) or [])
    ]
    if not cookies_of(found).secure:
        hint = "Leave COOKIES as they are, and serve over https."
        yield Warning("Cookies have no Secure.", hint, id="handstamp.W002")
    if not {settings.SECRET_KEY}.isdisjoint(secrets):
        hint = "Use another secret: a leak of one must not reveal the other."
        yield Warning("SECRET contains SECRET_KEY.", hint, id="handstamp.W003")
    if found.middleware.get("cross_site") == "allow" and _CSRF not in settings.MIDDLEWARE:
        hint = "Remove CROSS_SITE, or add CsrfViewMiddleware."
        yield Warning("Nothing refuses cross-site writes.", hint, id="handstamp.W004")
    if settings.USE_X_FORWARDED_HOST and not found.middleware.get("trusted_proxies"):
        hint = "List your proxies in TRUSTED_PROXIES."
        yield Warning("Every client has a proxy's address.", hint, id="handstamp.W005")


class HandstampConfig(AppConfig):
    """``"handstamp.django"`` in INSTALLED_APPS. It has no models and no migrations."""

    name = "handstamp.django"
    label = "handstamp"
    verbose_name = "handstamp"

    def ready(self) -> None:
        """Register the checks, and have every save of a user examined."""
        from handstamp.django.auth import connect_signals  # needs the registry of apps

        connect_signals()
        checks.register(check_setup, TAG)
        checks.register(check_for_production, TAG, deploy=True)
