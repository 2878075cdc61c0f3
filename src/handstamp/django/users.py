"""Whose session it is, as a user: the application's own, or one that only has an id."""

from __future__ import annotations

from collections.abc import Awaitable
from inspect import iscoroutinefunction
from typing import Any, ClassVar, cast

from asgiref.sync import async_to_sync, sync_to_async
from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured, ValidationError

from handstamp.django.settings import configuration


class SessionUser:
    """A signed-in user where the application has no model of them."""

    is_authenticated: ClassVar[bool] = True
    is_anonymous: ClassVar[bool] = False
    is_active: ClassVar[bool] = True
    is_staff: ClassVar[bool] = False
    is_superuser: ClassVar[bool] = False

    def __init__(self, id: str) -> None:
        self.id = self.pk = id

    def __str__(self) -> str:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SessionUser) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def get_username(self) -> str:
        """The id: names are the application's business."""
        return self.id

    def has_perm(self, perm: str, obj: object = None) -> bool:
        """No: permissions come with a model."""
        return False

    def has_perms(self, perms: list[str], obj: object = None) -> bool:
        """No, unless none is asked for."""
        return not perms

    def has_module_perms(self, module: str) -> bool:
        """No."""
        return False


class AnonymousSessionUser(SessionUser):
    """Nobody, where ``django.contrib.auth`` is not installed."""

    is_authenticated = False
    is_anonymous = True
    is_active = False

    def __init__(self) -> None:
        super().__init__("")


def anonymous() -> Any:
    """Nobody: Django's own where that is installed."""
    if not apps.is_installed("django.contrib.auth"):
        return AnonymousSessionUser()
    from django.contrib.auth.models import AnonymousUser

    return AnonymousUser()


def user_of(user_id: str | None) -> Any:
    """The user of this id; nobody if there is none, or they are not active.

    The user comes from ``GET_USER`` of the settings, else from ``get_user_model()``, else
    it is a :class:`SessionUser`.
    """
    if user_id is None:
        return anonymous()
    find = configuration().get_user
    if find is None:
        user = _model_user(user_id)
    elif iscoroutinefunction(find):
        user = async_to_sync(find)(user_id)
    else:
        user = find(user_id)
    return _admitted(user)


async def auser_of(user_id: str | None) -> Any:
    """The same in an async view."""
    find = configuration().get_user
    if user_id is not None and find is not None and iscoroutinefunction(find):
        return _admitted(await find(user_id))
    return await cast(Awaitable[Any], sync_to_async(user_of)(user_id))


def _admitted(user: Any) -> Any:
    if user is None or not getattr(user, "is_active", True):
        return anonymous()
    return user


def _model_user(user_id: str) -> Any:
    try:
        model: Any = get_user_model()
    except ImproperlyConfigured:  # it is not installed
        return SessionUser(user_id)
    try:
        key = model._meta.pk.to_python(user_id)
    except (ValidationError, ValueError, TypeError):
        return None
    return model._default_manager.filter(pk=key).first()
