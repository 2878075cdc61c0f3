"""A site of Django with a user model, its own sessions and both kinds of views.

Import :mod:`tests.django.django_setup` first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib import admin, auth
from django.contrib.auth import get_user_model
from django.contrib.auth import views as auth_views
from django.contrib.auth.decorators import login_required, user_passes_test
from django.contrib.auth.hashers import make_password
from django.contrib.auth.mixins import LoginRequiredMixin
from django.contrib.auth.models import User
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.middleware.csrf import get_token
from django.shortcuts import render
from django.urls import path
from django.utils.decorators import async_only_middleware
from django.views import View
from django.views.decorators.cache import cache_control
from rest_framework.decorators import (
    api_view,
    authentication_classes,
    permission_classes,
)
from rest_framework.permissions import IsAuthenticated
from rest_framework.response import Response

from handstamp.django import (
    acall,
    alogin,
    alogout,
    aupdate_session_auth_hash,
    call,
    get_sessions,
    login,
    logout,
    update_session_auth_hash,
)
from handstamp.django.handles import call_handle
from handstamp.django.rest import SessionAuthentication
from handstamp.django.views import LoginView, LogoutView, PasswordChangeView
from handstamp.errors import LoginRefused, StepUpRequired


def sync_login(request: Any) -> HttpResponse:
    user = User.objects.get(username=request.GET.get("user", "alice"))
    session = login(request, user, remember=True)
    return JsonResponse([session.user_id, request.user.username], safe=False)


async def async_login(request: Any) -> HttpResponse:
    user = await User.objects.aget(username=request.GET.get("user", "alice"))
    session = await alogin(request, user, remember=True)
    return JsonResponse([session.user_id, (await request.auser()).username], safe=False)


def set_password(request: Any) -> HttpResponse:
    """As a view does that wants the user to sign in again."""
    user = User.objects.get(pk=request.user.pk)
    user.set_password(request.GET["to"])
    user.save()
    return HttpResponse("saved")


def keeping(request: Any) -> HttpResponse:
    """A change that no save tells, and this session is to go on."""
    new = make_password(request.GET["to"])
    User.objects.filter(pk=request.user.pk).update(password=new)
    user = User.objects.get(pk=request.user.pk)
    if "django" in request.GET:
        auth.update_session_auth_hash(request, user)
    else:
        update_session_auth_hash(request, user)
    return HttpResponse("saved")


async def async_keeping(request: Any) -> HttpResponse:
    user = await User.objects.aget(pk=(await request.auser()).pk)
    user.set_password(request.GET["to"])
    await user.asave()
    await aupdate_session_auth_hash(request, user)
    return HttpResponse("saved")


async def async_django(request: Any) -> HttpResponse:
    new = make_password(request.GET["to"])
    user = await request.auser()
    await User.objects.filter(pk=user.pk).aupdate(password=new)
    changed = await User.objects.aget(pk=user.pk)
    await auth.aupdate_session_auth_hash(request, changed)
    return HttpResponse("saved")


def both(request: Any) -> HttpResponse:
    """The user, then the session."""
    known = request.user.is_authenticated, request.session_auth.is_authenticated
    return JsonResponse(known, safe=False)


def confirm(request: Any) -> HttpResponse:
    """Ask for the password once more, as before something that matters."""
    return HttpResponse(str(request.user.check_password(request.GET["is"])))


def login_without_hash(request: Any) -> HttpResponse:
    """As before tokens carried a hash."""
    user = User.objects.get(username=request.GET["user"])
    call_handle(request.handstamp, "login", str(user.pk))
    return HttpResponse("in")


def login_model(request: Any) -> HttpResponse:
    model: Any = get_user_model()
    login(request, model._default_manager.get(pk=request.GET["pk"]))
    return HttpResponse("in")


def login_by_id(request: Any) -> HttpResponse:
    login(request, str(User.objects.get(username="alice").pk))
    return HttpResponse(request.user.username)


def sync_logout(request: Any) -> HttpResponse:
    logout(request)
    return HttpResponse(str(request.user.is_authenticated), status=200)


async def async_logout(request: Any) -> HttpResponse:
    await alogout(request)
    return HttpResponse(str((await request.auser()).is_authenticated))


def described(user: Any) -> HttpResponse:
    return JsonResponse([user.is_authenticated, str(user.pk), user.username], safe=False)


def djangos_logout(request: Any) -> HttpResponse:
    auth.logout(request)
    return HttpResponse(str(request.user.is_authenticated))


async def async_djangos_logout(request: Any) -> HttpResponse:
    own = getattr(auth, "alogout", None) or sync_to_async(auth.logout)  # Django 4.2
    await own(request)
    return HttpResponse(str((await request.auser()).is_authenticated))


def me(request: Any) -> HttpResponse:
    return described(request.user)


async def async_me(request: Any) -> HttpResponse:
    return described(await request.auser())


@login_required
def secret(request: Any) -> HttpResponse:
    return HttpResponse(request.user.username)


@user_passes_test(lambda user: user.username == "alice")
def for_alice(request: Any) -> HttpResponse:
    return HttpResponse("for alice")


class Mixed(LoginRequiredMixin, View):
    def get(self, request: Any) -> HttpResponse:
        return HttpResponse(request.user.username)


def hello(request: Any) -> HttpResponse:
    return render(request, "hello.html")


def required(request: Any) -> HttpResponse:
    return HttpResponse(request.session_auth.require().user_id)


async def async_required(request: Any) -> HttpResponse:
    return HttpResponse(request.session_auth.require().user_id)


def stepping_up(request: Any) -> HttpResponse:
    raise StepUpRequired(required=2, level=1)


def refusing(request: Any) -> HttpResponse:
    raise LoginRefused("user_locked")


def public(request: Any) -> HttpResponse:
    return HttpResponse("hello")


async def async_public(request: Any) -> HttpResponse:
    return HttpResponse("hello")


async def pieces(name: str) -> AsyncIterator[str]:
    for piece in ("a", name, "b"):
        yield piece


def stream(request: Any) -> StreamingHttpResponse:
    return StreamingHttpResponse(iter(["a", request.user.username, "b"]))


async def async_stream(request: Any) -> StreamingHttpResponse:
    return StreamingHttpResponse(pieces((await request.auser()).username))


def late(request: Any) -> StreamingHttpResponse:
    def body() -> Iterator[str]:
        yield "a"
        try:
            login(request, "1")
        except Exception as exc:
            yield str(exc)

    return StreamingHttpResponse(body())


def broken(request: Any) -> HttpResponse:
    raise ValueError


async def async_broken(request: Any) -> HttpResponse:
    raise ValueError


def list_sessions(request: Any) -> HttpResponse:
    lines = request.session_auth.list_sessions()
    return JsonResponse([[line.id, line.current] for line in lines], safe=False)


async def alist_sessions(request: Any) -> HttpResponse:
    lines = await request.session_auth.alist_sessions()
    return JsonResponse([[line.id, line.current] for line in lines], safe=False)


def revoke(request: Any, id: str) -> HttpResponse:
    return JsonResponse(request.session_auth.revoke(id), safe=False)


async def arevoke(request: Any, id: str) -> HttpResponse:
    return JsonResponse(await request.session_auth.arevoke(id), safe=False)


def revoke_others(request: Any) -> HttpResponse:
    return JsonResponse(request.session_auth.revoke_others(), safe=False)


async def arevoke_others(request: Any) -> HttpResponse:
    return JsonResponse(await request.session_auth.arevoke_others(), safe=False)


def revoke_user(request: Any, id: str) -> HttpResponse:
    return JsonResponse(call(get_sessions().revoke_user, id), safe=False)


async def arevoke_user(request: Any, id: str) -> HttpResponse:
    return JsonResponse(await acall(get_sessions().revoke_user, id), safe=False)


async def blocking(request: Any) -> HttpResponse:
    return JsonResponse(request.session_auth.list_sessions(), safe=False)


def count(request: Any) -> HttpResponse:
    request.session["n"] = request.session.get("n", 0) + 1
    return JsonResponse([request.session["n"], request.user.username], safe=False)


def cycle(request: Any) -> HttpResponse:
    """Another key for Django's own session, and the user is loaded."""
    request.session.cycle_key()
    return HttpResponse(request.user.username)


@cache_control(public=True, max_age=60)
def cookies(request: Any) -> HttpResponse:
    response = HttpResponse("ok", headers={"Expires": "0", "Vary": "Accept"})
    response.set_cookie("one", "1", max_age=60, samesite="Strict")
    response.set_cookie("two", "a b")
    response.set_cookie("__Host-session", "mine")
    return response


def form(request: Any) -> HttpResponse:
    return HttpResponse(get_token(request))


@api_view(["GET", "POST"])
@authentication_classes([SessionAuthentication])
@permission_classes([IsAuthenticated])
def api(request: Any) -> Response:
    return Response([request.user.username, request.auth.user_id])


class WithToken(SessionAuthentication):
    csrf_token = True


@api_view(["GET", "POST"])
@authentication_classes([WithToken])
@permission_classes([IsAuthenticated])
def strict_api(request: Any) -> Response:
    return Response(request.user.username)


@api_view(["POST"])
@authentication_classes([SessionAuthentication])
def api_login(request: Any) -> Response:
    login(request, User.objects.get(username="alice"))
    return Response(request.user.username)


try:
    from django.contrib.auth.decorators import login_not_required
except ImportError:  # Django before 5.1

    def login_not_required(view: Any) -> Any:
        return view


urlpatterns = [
    path("login", login_not_required(sync_login)),
    path("alogin", login_not_required(async_login)),
    path("login-without-hash", login_without_hash),
    path("login-model", login_model),
    path("set-password", set_password),
    path("keeping", keeping),
    path("akeeping", async_keeping),
    path("adjango", async_django),
    path("both", both),
    path("confirm", confirm),
    path("password", auth_views.PasswordChangeView.as_view(success_url="/me")),
    path("our-password", PasswordChangeView.as_view(success_url="/me")),
    path(
        "reset/<uidb64>/<token>/",
        login_not_required(
            auth_views.PasswordResetConfirmView.as_view(success_url="/public")
        ),
    ),
    path("admin/", admin.site.urls),
    path("login-by-id", login_by_id),
    path("logout", sync_logout),
    path("alogout", async_logout),
    path("djangos-logout", djangos_logout),
    path("adjangos-logout", async_djangos_logout),
    path("me", me),
    path("ame", async_me),
    path("secret", secret),
    path("for-alice", for_alice),
    path("mixed", Mixed.as_view()),
    path("hello", hello),
    path("required", required),
    path("arequired", async_required),
    path("stepping-up", stepping_up),
    path("refusing", refusing),
    path("public", login_not_required(public)),
    path("apublic", async_public),
    path("stream", stream),
    path("astream", async_stream),
    path("late", late),
    path("broken", broken),
    path("abroken", async_broken),
    path("list", list_sessions),
    path("alist", alist_sessions),
    path("revoke/<id>", revoke),
    path("arevoke/<id>", arevoke),
    path("others", revoke_others),
    path("aothers", arevoke_others),
    path("revoke-user/<id>", revoke_user),
    path("arevoke-user/<id>", arevoke_user),
    path("blocking", blocking),
    path("count", count),
    path("cycle", cycle),
    path("cookies", cookies),
    path("form", form),
    path("api", api),
    path("strict-api", strict_api),
    path("api-login", api_login),
    path("login-form", login_not_required(LoginView.as_view())),
    path("logout-form", LogoutView.as_view()),
]


class SyncOnly:
    """A middleware from before Django knew async: all above it run in a thread."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        return self.get_response(request)


class Asking(SyncOnly):
    """A middleware that wants to know the user before any view."""

    def __call__(self, request: Any) -> Any:
        str(request.user)
        return self.get_response(request)


class Teapot(SyncOnly):
    """An application's own answer to errors of handstamp."""

    def process_exception(self, request: Any, exception: Exception) -> Any:
        return HttpResponse("mine", status=418)


@async_only_middleware
def async_asking(get_response: Any) -> Any:
    """The same in async."""

    async def middleware(request: Any) -> Any:
        await request.auser()
        return await get_response(request)

    return middleware
