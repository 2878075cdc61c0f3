"""Our part of a response of Django: its headers, and the answer to an error of ours."""

from __future__ import annotations

from http.cookies import Morsel
from typing import TYPE_CHECKING, Any

from django.http import HttpResponse
from django.utils.cache import patch_vary_headers

from handstamp.errors import HandstampError
from handstamp.handles import BaseHandle

if TYPE_CHECKING:
    _Morsel = Morsel[str]
else:
    _Morsel = Morsel


class CookieLine(_Morsel):
    """A Set-Cookie that leaves as it is, to the byte, and can be looked at as usual."""

    line = ""

    @classmethod
    def of(cls, line: str) -> CookieLine:
        """A morsel of the value of a Set-Cookie header."""
        pair, *attributes = line.split("; ")
        name, _, value = pair.partition("=")
        morsel = cls()
        morsel.set(name, value, value)
        for attribute in attributes:
            key, is_text, text = attribute.partition("=")
            morsel[key.lower()] = text if is_text else True
        morsel.line = line
        return morsel

    def OutputString(self, attrs: Any = None) -> str:
        """The line."""
        return self.line

    def output(self, attrs: Any = None, header: str = "Set-Cookie:") -> str:
        """The line behind a name, and without the blank where that is empty."""
        return f"{header} {self.line}".lstrip()


def answer(exc: HandstampError) -> Any:
    """An error of ours as a response: its status, and its text where that is the
    client's business."""
    plain = "text/plain; charset=utf-8"
    response = HttpResponse(f"{exc.told}\n".encode(), status=exc.status, content_type=plain)
    for name, value in exc.headers.items():
        response[name] = value
    return response


def seal(handle: BaseHandle, response: Any) -> Any:
    """The response with what this request's session adds; its body is not touched."""
    before = [(key.lower().encode(), value.encode()) for key, value in response.items()]
    before += [
        (b"set-cookie", morsel.OutputString().encode())
        for morsel in response.cookies.values()
    ]
    after = handle.response_headers(list(before))
    for name in {name for name, _ in before} - {name for name, _ in after}:
        del response[name.decode()]
    for key, morsel in list(response.cookies.items()):
        if (b"set-cookie", morsel.OutputString().encode()) not in after:
            del response.cookies[key]
    for name, value in after:
        if (name, value) in before:
            continue
        if name == b"set-cookie":
            _add(response.cookies, CookieLine.of(value.decode()))
        else:
            response[name.decode().title()] = value.decode()
    return response


def _add(cookies: Any, morsel: CookieLine) -> None:
    """Also a second one of a name, for another domain: Django looks at morsels alone."""
    key = morsel.key
    while key in cookies:
        key += "'"
    # Not by [], which would make a plain morsel of it.
    dict.__setitem__(cookies, key, morsel)


def vary(handle: BaseHandle, response: Any) -> Any:
    """The response with its Vary, where a middleware around us adds the rest: Django's
    cache must know before it."""
    if handle._sent or handle._looked:
        bearer = ["Authorization"] if handle._bearer else []
        patch_vary_headers(response, [*bearer, "Cookie"])
    return response
