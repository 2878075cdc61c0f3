"""Settings of the site: the first to be imported, for Django needs them before models."""

from __future__ import annotations

import atexit
import shutil
import tempfile

import django
from django.conf import settings

FOLDER = tempfile.mkdtemp(prefix="handstamp-django-")
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
OURS = "handstamp.django.SessionAuthMiddleware"
PLAIN = ["django.contrib.sessions.middleware.SessionMiddleware", OURS]
TEMPLATE = "{{ user.username }}{% if user.is_authenticated %} is in{% endif %}"
FORM = "{% csrf_token %}{{ form.errors }}"

if not settings.configured:
    settings.configure(
        SECRET_KEY="for Django's own signatures",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF="tests.django.django_site",
        USE_TZ=True,
        LOGIN_URL="/login-form",
        LOGIN_REDIRECT_URL="/me",
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        INSTALLED_APPS=[
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "django.contrib.messages",
            "django.contrib.admin",
            "handstamp.django",
            "rest_framework",
            "tests.django.people",
        ],
        MIDDLEWARE=PLAIN,
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": f"{FOLDER}/site.sqlite3",
            }
        },
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "OPTIONS": {
                    "loaders": [
                        (
                            "django.template.loaders.locmem.Loader",
                            {
                                "hello.html": TEMPLATE,
                                "registration/login.html": "{{ form.errors }}",
                                "registration/logged_out.html": "bye",
                                "registration/password_change_form.html": FORM,
                                "registration/password_reset_confirm.html": FORM,
                            },
                        ),
                        "django.template.loaders.app_directories.Loader",
                    ],
                    "context_processors": [
                        "django.contrib.auth.context_processors.auth",
                        "django.template.context_processors.request",
                        "django.contrib.messages.context_processors.messages",
                    ],
                },
            }
        ],
        LOGGING_CONFIG=None,
    )
    django.setup()
