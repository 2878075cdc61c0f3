"""The tree of errors: as drawn, with evidence, a status and no secrets."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any, get_args

import pytest

from handstamp import errors
from handstamp.errors import (
    AuthenticationRequired,
    FreshLoginRequired,
    HandstampError,
    LoginRefused,
    RefusedReason,
    SessionsUnavailable,
    StepUpRequired,
)

FRESH = FreshLoginRequired(within=timedelta(minutes=5), age=timedelta(hours=1, seconds=0.9))
CLASSES = [
    v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, Exception)
]


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """Every class is drawn once, under its parent, with its status and its close code."""
    lines = re.findall(
        r"^ {4}([│├└─ ]*)(\w+) {2,}(.*)$", errors.__doc__ or "", re.MULTILINE
    )
    drawn = {name: len(branch) // 4 for branch, name, _ in lines if hasattr(errors, name)}
    assert {c.__name__ for c in CLASSES} == set(drawn)
    for kind in CLASSES:
        assert len(kind.__mro__) - len(HandstampError.__mro__) == drawn[kind.__name__]
    codes = {name: tuple(map(int, text.split()[-2:])) for _, name, text in lines}
    assert codes == {c.__name__: (c.status, c.close_code) for c in CLASSES}


def test_one_class_catches_them_all() -> None:
    """The root is the parent of everything that is raised."""
    assert all(issubclass(kind, HandstampError) for kind in CLASSES)
    assert issubclass(FreshLoginRequired, AuthenticationRequired)


@pytest.mark.parametrize("reason", get_args(RefusedReason))
def test_a_refused_login_carries_its_reason(reason: RefusedReason) -> None:
    """The reason is an attribute, and readable in the text."""
    error = LoginRefused(reason)
    assert reason == error.reason
    assert reason.replace("_", " ") in str(error)


def test_a_stale_sign_in_carries_its_age() -> None:
    """Both durations are attributes, and whole seconds in the text."""
    assert (timedelta(minutes=5), timedelta(hours=1, seconds=0.9)) == (
        FRESH.within,
        FRESH.age,
    )
    assert "3600 s old" in str(FRESH)
    assert "within 300 s" in str(FRESH)


@pytest.mark.parametrize(("level", "shown"), [(None, "none"), (0, "0"), (1, "1")])
def test_a_step_up_carries_both_levels(level: int | None, shown: str) -> None:
    """What is needed and what is there."""
    error = StepUpRequired(required=2, level=level)
    assert (2, level) == (error.required, error.level)
    assert f"this needs trust level 2 and the session has {shown}" == str(error)


def test_an_outage_says_when_to_come_back() -> None:
    """A whole number of seconds for Retry-After, and the cause as an attribute."""
    error = SessionsUnavailable("no connection within 1 s")
    assert error.cause == "no connection within 1 s"
    assert error.cause in str(error)
    assert isinstance(error.retry_after, int)
    assert error.retry_after >= 1


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_says_in_its_docstring_what_it_means(kind: Any) -> None:
    """A caught error can be looked up."""
    assert (kind.__doc__ or "").strip().endswith((".", "``."))
