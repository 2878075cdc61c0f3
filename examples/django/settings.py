"""Django's settings: what a small API needs, and HANDSTAMP."""

from __future__ import annotations

import os

from examples import settings

SECRET_KEY = os.environ.get("SECRET_KEY", "only Django's own signatures use this one")
ALLOWED_HOSTS = os.environ.get("ALLOWED_HOSTS", "*").split(",")
ROOT_URLCONF = "examples.django.urls"
USE_TZ = True

INSTALLED_APPS = ["handstamp.django"]
MIDDLEWARE = [
    "handstamp.django.SessionAuthMiddleware",
    "django.middleware.common.CommonMiddleware",
    "examples.django.views.AccountsMiddleware",
]
HANDSTAMP = {
    "SESSIONS": settings.sessions(),  # or DATABASE_URL, SECRETS, SHAPE, POLICY
    "COOKIES": settings.cookies(),
    "GET_USER": "examples.django.views.find_user",
}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {"django": {"handlers": ["console"], "level": "ERROR"}},
}
