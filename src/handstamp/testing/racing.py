"""Several calls released at one moment, for what only shows when they meet.

Each call waits at a barrier until all of them are there. What a call returned or raised
comes back in the order of their numbers, so nothing is lost and nothing needs a lock.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from inspect import signature
from typing import TypeVar, cast

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds until a barrier that not all have reached is given up."""


def concurrently(
    n: int, function: Callable[[], T] | Callable[[int], T]
) -> list[T | Exception]:
    """Call ``function`` in ``n`` threads at once.

    It gets its number, from 0, if it takes an argument. Returns what each call returned,
    or the exception it raised, by number.
    """
    numbered, barrier = _numbered(function), threading.Barrier(n, timeout=PATIENCE)

    def one(number: int) -> T | Exception:
        barrier.wait()
        try:
            return numbered(number)
        except Exception as exc:
            return exc

    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(one, range(n)))


async def aconcurrently(
    n: int, function: Callable[[], Awaitable[T]] | Callable[[int], Awaitable[T]]
) -> list[T | Exception]:
    """Await ``function`` in ``n`` tasks at once; the rest as :func:`concurrently`."""
    numbered, barrier = _numbered(function), asyncio.Barrier(n)

    async def one(number: int) -> T | Exception:
        await barrier.wait()
        try:
            return await numbered(number)
        except Exception as exc:
            return exc

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(number)) for number in range(n)]
    return [task.result() for task in tasks]


def _numbered(function: Callable[[], T] | Callable[[int], T]) -> Callable[[int], T]:
    """``function`` as one that takes a number, whether it wants it or not."""
    try:
        signature(function).bind(0)
    except (TypeError, ValueError):
        plain = cast("Callable[[], T]", function)
        return lambda number: plain()
    return cast("Callable[[int], T]", function)
