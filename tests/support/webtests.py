"""WebTest's client of a WSGI application over https, which accepts Secure cookies."""

from __future__ import annotations

from typing import Any

from webtest import TestApp as TestApp

HTTPS = {"wsgi.url_scheme": "https", "HTTP_HOST": "app.example:443"}


class Browser(TestApp):
    """A client over https. A response with 4xx or 5xx is not an exception.

    WebTest also checks the application against PEP 3333.
    """

    __test__ = False

    def __init__(self, app: Any) -> None:
        super().__init__(app, extra_environ=dict(HTTPS))

    def do_request(self, req: Any, status: Any = None, expect_errors: Any = None) -> Any:
        return super().do_request(req, status="*", expect_errors=True)

    def jar(self) -> dict[str, str]:
        """The values of the stored cookies, by name."""
        return dict(self.cookies)


def set_cookies(response: Any) -> list[str]:
    """The names of the cookies that a response sets, one entry for each header."""
    values = response.headers.getall("set-cookie")
    return sorted(value.partition("=")[0].strip() for value in values)
