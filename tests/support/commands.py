"""Runs the command line in this process.

That saves the second that it takes to start Python and to import everything.
`tests/cli/test_init.py` runs it in a process of its own.
"""

from __future__ import annotations

import subprocess
import traceback
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from typer.testing import CliRunner

from handstamp.cli import load

_one_at_a_time = Lock()
"""Everything that this process prints while a command runs is taken as its output."""


def handstamp(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run ``handstamp`` with these arguments; ``DATABASE_URL`` is set only by ``environ``.

    It runs in a thread, because the test may have an event loop and the command starts one.
    """
    given = {"DATABASE_URL": None, **environ}
    with _one_at_a_time, ThreadPoolExecutor(1) as thread:
        running = thread.submit(CliRunner().invoke, load(), arguments, env=given)
        done = running.result()
    errors = done.stderr
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        errors += "".join(traceback.format_exception(done.exception))
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, errors)
