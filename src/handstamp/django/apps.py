"""The application that Django knows: system checks and ``manage.py handstamp``."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks

from handstamp.django.checks import TAG, check_for_production, check_setup


class HandstampConfig(AppConfig):
    """``"handstamp.django"`` in INSTALLED_APPS. It has no models and no migrations."""

    name = "handstamp.django"
    label = "handstamp"
    verbose_name = "handstamp"

    def ready(self) -> None:
        """Register the checks, and have every save of a user looked at."""
        from handstamp.django.passwords import connect  # needs the registry of apps

        connect()
        checks.register(check_setup, TAG)
        checks.register(check_for_production, TAG, deploy=True)
