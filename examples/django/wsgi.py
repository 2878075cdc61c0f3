"""Django under WSGI: ``gunicorn examples.django.wsgi:app`` from the repository root."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "examples.django.settings")
app = get_wsgi_application()
