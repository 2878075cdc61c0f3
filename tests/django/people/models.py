"""Models of users that are not Django's own."""

from __future__ import annotations

from typing import ClassVar

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.hashers import PBKDF2PasswordHasher
from django.db import models
from django.utils.crypto import salted_hmac


class Plain(models.Model):
    """A user who is no AbstractBaseUser: Django checks no hash of theirs either."""

    name = models.CharField(max_length=40, unique=True)
    password = models.CharField(max_length=200, default="")
    last_login = models.DateTimeField(null=True)

    is_authenticated = True
    is_anonymous = False
    is_active = True
    username = property(lambda self: self.name)
    objects: ClassVar[models.Manager[Plain]] = models.Manager()

    USERNAME_FIELD = "name"
    REQUIRED_FIELDS: ClassVar[list[str]] = []


class Strict(AbstractBaseUser):
    """A user whom a new address signs out, too."""

    name = models.CharField(max_length=40, unique=True)
    email = models.CharField(max_length=80, default="")

    username = property(lambda self: self.name)
    objects: ClassVar[BaseUserManager[Strict]] = BaseUserManager()

    USERNAME_FIELD = "name"

    def get_session_auth_hash(self) -> str:
        """Of the password and the address."""
        text = f"{self.password}|{self.email}"
        return salted_hmac("tests", text, algorithm="sha256").hexdigest()


class Quick(PBKDF2PasswordHasher):
    """A hasher that is not the first one of the settings' list, until a test says so."""

    iterations = 1000
