"""What a response's headers must say because of us, as a pure edit of the raw list.

Rule 1. ``Vary: Cookie`` when the answer may depend on one of our cookies, and
``Authorization`` too where a bearer token came in their place; merged into what is there,
``*`` kept. (Flask, CVE-2023-30861 and CVE-2026-27205; RFC 9111, section 3.5: what is
``public`` may be stored also for a request with Authorization.)
Rule 2. A response that carries our cookie is never stored: ``Cache-Control: private,
no-store`` in place of whatever the application said, and nothing that speaks to other
caches is left. (Rails, CVE-2024-26144; RFC 9111, section 7.3: Set-Cookie does not
inhibit caching.)
Rule 3. One Set-Cookie of a name in one response (RFC 6265bis, section 4.1.1): where we
set ours, one of the application's of that name gives way.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from handstamp.core.cookies import cookie_name

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
    """``headers`` with ``Cookie`` in their Vary, and ``Authorization`` (rule 1)."""
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
    no_store: Iterable[tuple[bytes, bytes]] = ((b"cache-control", b"private, no-store"),),
) -> Headers:
    """``headers`` with our cookies on them, uncacheable (rules 2 and 3)."""
    kept = [
        (key, value)
        for key, value in headers
        if not _is_for_caches(key.lower()) and not sets_cookie((key, value), names)
    ]
    kept.extend(no_store)
    kept.extend((b"set-cookie", cookie) for cookie in set_cookies)
    return kept


def _is_for_caches(name: bytes) -> bool:
    # CDN-Cache-Control and its vendors' variants (RFC 9213) end alike.
    return name in _FOR_CACHES or name.endswith(b"-cache-control")


def sets_cookie(header: tuple[bytes, bytes], names: Container[bytes]) -> bool:
    """Whether this response header sets a cookie of one of these names."""
    return header[0].lower() == b"set-cookie" and cookie_name(header[1]) in names
