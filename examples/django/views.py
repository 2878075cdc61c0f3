"""The views: plain functions, the same under WSGI and ASGI."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.deprecation import MiddlewareMixin
from django.views.decorators.http import require_POST, require_safe

from examples import settings
from examples.accounts import Accounts, AccountsUnavailable, WrongPassword
from examples.answers import health, summary
from handstamp import LoginRefused
from handstamp.django import SessionUser, call, get_sessions, login, logout

accounts = Accounts(settings.database_url())


class User(SessionUser):
    """``request.user``."""

    def __init__(self, id: str, username: str) -> None:
        super().__init__(id)
        self.username = username


def find_user(user_id: str) -> User | None:
    username = call(accounts.username, user_id)
    return None if username is None else User(user_id, username)


@require_POST
def sign_in(request: HttpRequest) -> HttpResponse:
    username = request.POST.get("username", "")
    password = request.POST.get("password", "")
    remember = request.POST.get("remember") in {"1", "on", "true", "yes"}
    try:
        user_id = call(accounts.verify, username, password)
        login(request, user_id, remember=remember)
    except (WrongPassword, LoginRefused):
        return HttpResponse("wrong username or password", status=401)
    return HttpResponse(status=204)


@require_POST
def sign_out(request: HttpRequest) -> HttpResponse:
    logout(request)
    return HttpResponse(status=204)


@require_safe
def me(request: Any) -> HttpResponse:
    session, user = request.session_auth.require(), request.user
    return JsonResponse(
        {"user_id": user.pk, "session_id": session.id, "username": user.username}
    )


@require_safe
def list_sessions(request: Any) -> HttpResponse:
    lines = [summary(session) for session in request.session_auth.list_sessions()]
    return JsonResponse(lines, safe=False)


@require_POST
def revoke(request: Any, id: str) -> HttpResponse:
    if not request.session_auth.revoke(id):
        return HttpResponse("no such session", status=404)
    return HttpResponse(status=204)


@require_POST
def revoke_others(request: Any) -> HttpResponse:
    request.session_auth.revoke_others()
    return HttpResponse(status=204)


@require_safe
def public(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"hello": "world"})


@require_safe
def healthz(request: HttpRequest) -> HttpResponse:
    return JsonResponse(call(health, get_sessions()))


class AccountsMiddleware(MiddlewareMixin):
    """Answers where the database has nothing to say about accounts."""

    def process_exception(
        self, request: HttpRequest, exception: Exception
    ) -> HttpResponse | None:
        if not isinstance(exception, AccountsUnavailable):
            return None
        later = {"Retry-After": "1"}
        return HttpResponse("temporarily unavailable", status=503, headers=later)
