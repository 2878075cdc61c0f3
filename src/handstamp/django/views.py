"""Django's own views for login, logout and a new password, with our sessions; also for the
admin.

    path("login/", LoginView.as_view()), path("logout/", LogoutView.as_view())

Needs ``django.contrib.auth`` in INSTALLED_APPS.
"""

from __future__ import annotations

from typing import Any

from django.contrib.auth import views
from django.http import HttpResponseRedirect
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect

from handstamp.django.auth import login, logout, update_session_auth_hash
from handstamp.errors import LoginRefused


class LoginView(views.LoginView):
    """:class:`django.contrib.auth.views.LoginView`, with an optional field ``remember``."""

    def form_valid(self, form: Any) -> Any:
        """Log in, or show the form again if the login is refused."""
        remember = self.request.POST.get("remember") in ("1", "on", "true", "yes")
        try:
            login(self.request, form.get_user(), remember=remember)
        except LoginRefused:
            form.add_error(None, form.get_invalid_login_error())
            return self.form_invalid(form)
        return HttpResponseRedirect(self.get_success_url())


class PasswordChangeView(views.PasswordChangeView):
    """:class:`django.contrib.auth.views.PasswordChangeView` for a site without Django's
    ``SessionMiddleware``. With it, Django's own view does the same."""

    def form_valid(self, form: Any) -> Any:
        """Save the password, keep this session and end the others."""
        form.save()
        update_session_auth_hash(self.request, form.user)
        return HttpResponseRedirect(self.get_success_url())


@method_decorator([csrf_protect, never_cache], name="post")
class LogoutView(views.LogoutView):
    """:class:`django.contrib.auth.views.LogoutView`, by POST only."""

    http_method_names = ("post", "options")

    def post(self, request: Any, *args: Any, **options: Any) -> Any:
        """Log out and redirect as the base class does."""
        logout(request)
        target = self.get_success_url()
        if target != request.get_full_path():
            return HttpResponseRedirect(target)
        return self.render_to_response(self.get_context_data())
