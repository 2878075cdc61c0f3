"""What handstamp adds to the headers of a response: a pure edit of the raw list.

Rule 1. ``Vary: Cookie`` where the response may depend on one of our cookies, and
``Authorization`` as well where a bearer token replaced them; merged into an existing Vary,
``*`` is kept. (Flask, CVE-2023-30861 and CVE-2026-27205; RFC 9111, section 3.5: a response
that is ``public`` may be stored even for a request with Authorization.)
Rule 2. A response with our cookie is never stored: ``Cache-Control: private, no-store``
replaces the application's own value, and every header for other caches is removed. (Rails,
CVE-2024-26144; RFC 9111, section 7.3: Set-Cookie does not inhibit caching.)
Rule 3. A response has one Set-Cookie of a name (RFC 6265bis, section 4.1.1): ours replaces
one of the application with the same name.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from handstamp.core.cookies import NO_STORE

Headers = list[tuple[bytes, bytes]]
_FOR_CACHES = frozenset(
    {
        b"cache-control",
        b"edge-control",
        b"expires",
        b"pragma",
        b"surrogate-control",
        b"x-accel-expires",
    }
)


def vary_on_cookie(headers: Headers, *, bearer: bool = False) -> Headers:
    """Return ``headers`` with our cookies named in their Vary (rule 1)."""
    present = [v for k, v in headers if k.lower() == b"vary"]
    names = {part.strip().lower() for value in present for part in value.split(b",")}
    wanted = (b"Authorization", b"Cookie") if bearer else (b"Cookie",)
    lacking = [name for name in wanted if name.lower() not in names]
    if b"*" in names or not lacking:
        return headers
    merged = b", ".join([*present, *lacking])
    return [h for h in headers if h[0].lower() != b"vary"] + [(b"vary", merged)]


def with_cookies(
    headers: Headers,
    set_cookies: Sequence[bytes],
    names: Container[bytes],
    no_store: Iterable[tuple[bytes, bytes]] = NO_STORE,
) -> Headers:
    """Return ``headers`` with our cookies, and out of every cache (rules 2 and 3)."""
    kept = []
    for name, value in headers:
        lowered = name.lower()
        # CDN-Cache-Control and the variants of its vendors (RFC 9213) end alike.
        for_caches = lowered in _FOR_CACHES or lowered.endswith(b"-cache-control")
        if not for_caches and not sets_cookie((name, value), names):
            kept.append((name, value))
    kept.extend(no_store)
    kept.extend((b"set-cookie", cookie) for cookie in set_cookies)
    return kept


def sets_cookie(header: tuple[bytes, bytes], names: Container[bytes]) -> bool:
    """Whether this response header sets a cookie of one of these names."""
    return header[0].lower() == b"set-cookie" and cookie_name(header[1]) in names


def cookie_name(set_cookie: bytes) -> bytes:
    """Return the name of the cookie in the value of a Set-Cookie header."""
    return set_cookie.partition(b"=")[0].strip(b" \t")
