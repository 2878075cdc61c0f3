"""How the tokens of a kind of session travel: which cookies are read, and which written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from handstamp.config import Cookies
from handstamp.core.cookies import CookieWriter
from handstamp.core.credentials import CookieReader, Credentials
from handstamp.engine.answers import Issued

NO_STORE = ((b"cache-control", b"private, no-store"),)
Came = Mapping[str, str | None]


class Reader(Protocol):
    """Request headers -> credentials."""

    @property
    def agrees(self) -> Callable[[bytes, str], bool] | None:
        """Whether a header that has the token of this session has none of another; for
        whoever looked at the session token alone. None where that needs no look."""
        ...

    def sole(self, header: bytes) -> bytes | None:
        """What identifies the session, where nothing about the header is unusual."""
        ...

    def read(
        self,
        headers: Iterable[tuple[bytes, bytes]],
        *,
        bearer: bool = False,
        every: bool = False,
    ) -> Credentials:
        """Everything in the headers that claims to be a credential; ``every`` one, to end
        its session, where others are limited in number."""
        ...

    def came(self, headers: Iterable[tuple[bytes, bytes]]) -> Came:
        """The cookies that a writer has to know of, by name."""
        ...


class Writer(Protocol):
    """Tokens -> the values of Set-Cookie headers, over the cookies that came."""

    @property
    def names(self) -> Container[bytes]:
        """The cookies that are ours to set."""
        ...

    @property
    def no_store(self) -> Collection[tuple[bytes, bytes]]:
        """The headers that go with them, so that no cache keeps them."""
        ...

    def deliver(self, issued: Issued, came: Came) -> tuple[bytes, ...]:
        """The lines that hand out these tokens."""
        ...

    def clear(self, came: Came) -> tuple[bytes, ...]:
        """The lines that remove whatever there may be."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """Both, and the settings of the cookies they speak of."""

    cookies: Cookies
    reader: Reader
    writer: Writer


class PairWriter:
    """Two cookies, or one where there is no refresh token."""

    __slots__ = ("_writer", "names", "no_store")

    def __init__(self, cookies: Cookies) -> None:
        self._writer = CookieWriter(cookies)
        self.names = self._writer.names
        self.no_store = NO_STORE

    def deliver(self, issued: Issued, came: Came) -> tuple[bytes, ...]:
        """See :meth:`Writer.deliver`."""
        session = self._writer.session(issued.session_token, issued.session_lifetime)
        if issued.refresh_token is None:
            return (session,)
        refresh = self._writer.refresh(issued.refresh_token, issued.refresh_lifetime)
        return session, refresh

    def clear(self, came: Came) -> tuple[bytes, ...]:
        """See :meth:`Writer.clear`; both, for a browser does not always say."""
        return self._writer.clear()


def pair_of(cookies: Cookies) -> Speech:
    """The speech of tokens of our own."""
    return Speech(cookies=cookies, reader=CookieReader(cookies), writer=PairWriter(cookies))
