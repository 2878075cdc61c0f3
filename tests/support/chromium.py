"""A headless Chromium with one tab, driven over its DevTools protocol."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-proxy-server",
    "--remote-debugging-port=0",
)


def find_chromium() -> str | None:
    """The path of an installed Chromium, if there is one."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class CommandFailed(Exception):
    """The browser refused a command."""


class Tab:
    """One tab. ``complaints`` are uncaught exceptions of its scripts and violations of
    the page's content security policy."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Mapping[str, Any]:
        """Send one command and return its result."""
        return self._call(30, method, parameters)

    def _call(
        self, seconds: float, method: str, parameters: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        self._connection.send(json.dumps(message))
        while True:
            answer = json.loads(self._connection.recv(timeout=seconds))
            if answer.get("id") == number:
                if "error" in answer:
                    raise CommandFailed(answer["error"])
                return answer["result"]
            if "method" in answer:
                self._notice(answer)

    def _notice(self, event: Mapping[str, Any]) -> None:
        if event["method"] == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(event["params"]["exceptionDetails"]))
        if event["method"] == "Log.entryAdded":
            entry = event["params"]["entry"]
            if entry["source"] == "security":
                self.complaints.append(entry["text"])

    def run(self, script: str, *, seconds: float = 30) -> Any:
        """Evaluate an expression in the page, awaiting it if it is a promise."""
        parameters = {"expression": script, "awaitPromise": True, "returnByValue": True}
        done = self._call(seconds, "Runtime.evaluate", parameters)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait_for(self, script: str, *, seconds: float = 60) -> Any:
        """Evaluate an expression until its value is true, and return the value.

        A page of another site may be in another process of the browser. A command that was
        sent to the page before is then refused, or is never answered: it is sent again.
        """
        until = time.monotonic() + seconds
        while True:
            with suppress(CommandFailed, TimeoutError):
                if value := self.run(script, seconds=3):
                    return value
            assert time.monotonic() < until, f"never true: {script}"
            time.sleep(0.05)

    def open(self, url: str) -> None:
        """Go to a page and wait until it is loaded."""
        self.call("Page.navigate", url=url)
        here = f"location.href.startsWith({json.dumps(url)})"
        self.wait_for(f"{here} && document.readyState === 'complete'")


@contextmanager
def open_tab(program: str, profile: Path) -> Iterator[Tab]:
    """Run Chromium with a new profile in the folder ``profile``, and stop it at the end."""
    command = [program, *_QUIET, f"--user-data-dir={profile}"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    try:
        port = _debugging_port(process, profile / "DevToolsActivePort")
        new = f"http://127.0.0.1:{port}/json/new?about:blank"
        url = httpx.put(new, trust_env=False).json()["webSocketDebuggerUrl"]
        with connect(url, max_size=None, proxy=None) as connection:
            yield Tab(connection)
    finally:
        process.terminate()
        process.wait()


def _debugging_port(process: subprocess.Popen[bytes], file: Path) -> int:
    until = time.monotonic() + 30
    while not (file.exists() and file.read_text().count("\n")):
        assert process.poll() is None, "Chromium ended by itself"
        assert time.monotonic() < until, "Chromium does not listen"
        time.sleep(0.05)
    return int(file.read_text().splitlines()[0])
