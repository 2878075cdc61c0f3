"""The clock that deadlines are counted down on.

It never jumps when somebody sets the time, and it counts while the machine is suspended:
a laptop that slept for an hour wakes to a cache that is an hour old.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

Clock = Callable[[], float]
"""Seconds since a fixed moment, as a float."""


uptime: Clock = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    if hasattr(time, "CLOCK_BOOTTIME")
    else time.monotonic
)
"""``CLOCK_BOOTTIME`` where there is one, otherwise the monotonic clock."""
