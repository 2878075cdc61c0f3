"""A headless Chromium with one tab, driven over its DevTools protocol."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import tempfile
import time
from base64 import b64decode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

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
)


def find_chromium() -> str | None:
    """The path of an installed Chromium, if there is one."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Tab:
    """One tab; ``errors`` collects what its console and its scripts complained of."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Mapping[str, Any]:
        """Send one command and wait for its answer."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        self._connection.send(json.dumps(message))
        while True:
            answer = json.loads(self._connection.recv(timeout=30))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _note(self, event: Mapping[str, Any]) -> None:
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(event["params"]["exceptionDetails"]))
        if event.get("method") == "Log.entryAdded":
            entry = event["params"]["entry"]
            if entry["level"] == "error":
                self.errors.append(f"{entry['text']} {entry.get('url', '')}")

    def run(self, script: str) -> Any:
        """Evaluate an expression in the page, awaiting it if it is a promise."""
        done = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait_for(self, script: str, *, seconds: float = 30) -> Any:
        """Evaluate until it is true; give its value."""
        until = time.monotonic() + seconds
        while not (value := self.run(script)):
            text = self.run("document.body.innerText")
            assert time.monotonic() < until, f"never true: {script}\n{text}"
            time.sleep(0.05)
        return value

    def open(self, url: str) -> None:
        """Go to a page and wait until it is loaded."""
        self.call("Page.navigate", url=url)
        self.wait_for(f"location.href.startsWith({url!r}) && document.readyState == 'complete'")

    def screenshot(self, file: Path) -> None:
        """Write a picture of the whole page."""
        taken = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(b64decode(taken["data"]))


@contextmanager
def browser(program: str) -> Iterator[Browser]:
    """Run Chromium with a profile of its own; end it and remove the profile."""
    profile = tempfile.mkdtemp(prefix="handstamp-chromium-")
    command = [program, *_QUIET, f"--user-data-dir={profile}", "--remote-debugging-port=0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        yield Browser(_debugging_address(process))
    finally:
        process.terminate()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
        shutil.rmtree(profile, ignore_errors=True)


class Browser:
    """A running Chromium."""

    def __init__(self, address: str) -> None:
        self._address = address

    @contextmanager
    def tab(self) -> Iterator[Tab]:
        """Open a tab; close it at the end."""
        request = Request(f"http://{self._address}/json/new?about:blank", method="PUT")
        with urlopen(request) as answer:
            url = json.load(answer)["webSocketDebuggerUrl"]
        with connect(url, max_size=None, proxy=None) as connection:
            yield Tab(connection)


def _debugging_address(process: subprocess.Popen[bytes]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        _, found, address = line.decode().partition("DevTools listening on ws://")
        if found:
            return address.partition("/")[0]
    raise AssertionError("Chromium ended before it listened")
