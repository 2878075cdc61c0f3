"""`handstamp demo`, run as its user runs it: as a program, with a browser before it."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import httpx
import pytest
import typer

from handstamp.cli import demo as demo_package
from handstamp.cli.demo import listen
from handstamp.testing.postgres import running_pid
from tests.support.chromium import find_chromium, open_tab

pytestmark = [pytest.mark.server, pytest.mark.slow]

T = TypeVar("T")

ALICE = {"username": "alice", "password": "wonderland"}
NOWHERE = "postgresql://nobody:secret-word@127.0.0.1:1/nowhere"
FAST = {"HANDSTAMP_SESSION_TTL": "2"}
"""A whole life in two seconds: grace and the flushes follow from it."""


def environment(cache: Path, settings: dict[str, str]) -> dict[str, str]:
    """The environment of a shell in another project, with a database of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HANDSTAMP_")}
    kept["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return kept | {"HANDSTAMP_CACHE": str(cache), "DATABASE_URL": NOWHERE} | settings


class Demo:
    """A running demo."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self.process = process
        self._errors = errors
        self.output = self._read_until_ready()
        found = re.search(r"ready: +(http://\S+)", self.output)
        assert found, f"{self.output}\n{self.errors_so_far()}"
        self.url = found[1]
        self.client = httpx.Client(base_url=self.url, trust_env=False)

    def _read_until_ready(self) -> str:
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if line.startswith("Ctrl-C"):
                break
        return "".join(lines)

    def errors_so_far(self) -> str:
        """All of its stderr so far."""
        self._errors.seek(0)
        return self._errors.read()

    def sign_in(self) -> httpx.Response:
        """Sign in as alice; the client keeps the cookies."""
        answer = self.client.post("/login", data=ALICE)
        assert answer.status_code == 204
        return answer

    def state(self) -> dict[str, Any]:
        """The state that the page shows."""
        return self.client.get("/demo/figures").json()

    def happened(self, action: str) -> bool:
        """Whether the feed has such an event."""
        return any(event["action"] == action for event in self.state()["feed"])

    def stop(self, number: signal.Signals = signal.SIGINT) -> str:
        """Send a signal and wait for the end; return the last output."""
        self.client.close()
        self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=300)
        return output


@contextmanager
def running(cache: Path, *arguments: str, **settings: str) -> Iterator[Demo]:
    """Run a demo for the time of a ``with`` block, on any free port."""
    command = [sys.executable, "-m", "handstamp", "demo", "--port", "0", *arguments]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd="/",
            env=environment(cache, settings),
        )
        try:
            demo = Demo(process, errors)
            yield demo
            demo.stop()
        finally:
            process.kill()
            process.communicate()


def refused(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a demo that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "handstamp", "demo", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd="/",
        env=environment(cache, {}),
    )


def until(condition: Callable[[], T], seconds: float = 180) -> T:
    """Call until the result is true; returns it."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, "never came true"
        time.sleep(0.02)
    return answer


@contextmanager
def new_cache() -> Iterator[Path]:
    """A cache folder that the account PostgreSQL runs as can enter."""
    with tempfile.TemporaryDirectory(prefix="handstamp-demo-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def cache() -> Iterator[Path]:
    """A cache folder for one test."""
    with new_cache() as folder:
        yield folder


@pytest.fixture(scope="module")
def shared_cache() -> Iterator[Path]:
    """The cache folder of the demo that several tests share."""
    with new_cache() as folder:
        yield folder


@pytest.fixture(scope="module")
def fast(shared_cache: Path) -> Iterator[Demo]:
    """One demo with a very short session token, shared by the tests that only look."""
    with running(shared_cache, **FAST) as demo:
        yield demo


@pytest.fixture
def demo(fast: Demo) -> Demo:
    """The shared demo, with no user signed in."""
    fast.client.cookies.clear()
    return fast


def test_it_runs_the_example_with_the_users_it_prints(demo: Demo) -> None:
    """The printed user signs in, and the example returns the name."""
    assert "alice / wonderland" in demo.output
    demo.sign_in()
    assert demo.client.get("/me").json()["username"] == "alice"


def test_the_printed_curl_line_works(demo: Demo) -> None:
    """The curl line, pasted into a shell, signs in and shows the user."""
    found = re.search(r"curl .*\\\n.*", demo.output)
    assert found
    done = subprocess.run(found[0], shell=True, capture_output=True, text=True)
    if done.returncode == 127:
        pytest.skip("curl is not installed")
    assert '"username":"alice"' in done.stdout


def test_the_figures_move(demo: Demo) -> None:
    """Hits, flushes, written activity and rotations rise."""
    demo.sign_in()
    before = demo.state()["figures"]
    until(lambda: demo.client.get("/me").is_success and demo.happened("refreshed"))

    def moved() -> bool:
        assert demo.client.get("/me").is_success
        after = demo.state()["figures"]
        names = ("requests", "hits", "queries", "flushes", "written_touches")
        return all(after[name] > before[name] for name in names)

    until(moved)


def test_the_page_is_not_counted(demo: Demo) -> None:
    """Requests of the page reach neither the example nor a session."""
    demo.sign_in()
    before = demo.state()["figures"]
    for path in ("/", "/demo/figures", "/"):
        assert demo.client.get(path).is_success
    after = demo.state()["figures"]
    for name in ("requests", "hits", "misses"):
        assert before[name] == after[name]


def test_lifetimes_come_from_the_environment(demo: Demo) -> None:
    """A variable sets a lifetime, and the others follow from it."""
    policy = demo.state()["policy"]
    assert (policy["session_ttl"], policy["grace"]) == (2.0, 1.0)


def test_the_figures_hold_no_token_and_no_full_address(demo: Demo) -> None:
    """No session can be opened with what the page shows."""
    demo.sign_in()
    until(lambda: demo.client.get("/me").is_success and demo.happened("refreshed"))
    text = demo.client.get("/demo/figures").text
    for secret in [*demo.client.cookies.values(), "127.0.0.1"]:
        assert secret not in text
    assert "127.0.…" in text


def test_a_stolen_refresh_token_ends_the_session(demo: Demo) -> None:
    """The demonstration shows that a replay is detected."""
    demo.sign_in()

    def struck() -> bool:
        demo.client.get("/me")
        return demo.client.post("/demo/replay").json() == {"outcome": "revoked"}

    until(struck)
    assert demo.client.get("/me").status_code == 401
    assert demo.happened("replayed")


def test_the_thief_needs_a_session(demo: Demo) -> None:
    """Without a session of the browser there is no token to replay."""
    answer = demo.client.post("/demo/replay")
    assert answer.json() == {"outcome": "no_stale_token"}
    forged = {"Cookie": "refresh=" + "x" * 40}
    answer = demo.client.post("/demo/replay", headers=forged)
    assert answer.json() == {"outcome": "no_stale_token"}


def test_a_replay_from_another_site_is_refused(demo: Demo) -> None:
    """Another page cannot end the session of its visitor."""
    answer = demo.client.post("/demo/replay", headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 403


def test_the_page_loads_nothing_from_elsewhere(demo: Demo) -> None:
    """The page is one file, and its policy forbids everything that is not in it."""
    pages = [demo.client.get("/") for _ in range(2)]
    policies = [page.headers["Content-Security-Policy"] for page in pages]
    assert policies[0].startswith("default-src 'none'; script-src 'nonce-")
    assert policies[0] != policies[1]
    links = re.findall(r"""(?:src|href)=["']([^"']*)""", pages[0].text)
    assert all(link.startswith("data:") for link in links)
    assert "{nonce}" not in pages[0].text


def test_a_second_demo_reports_the_first(demo: Demo, shared_cache: Path) -> None:
    """It ends with one line, and the first demo continues."""
    second = refused(shared_cache, "--port", "0")
    assert second.returncode == 1
    assert "another demo is running" in second.stderr
    assert "Traceback" not in second.stderr
    assert demo.client.get("/public").is_success


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_on_a_signal_and_leaves_nothing_running(
    cache: Path, number: signal.Signals
) -> None:
    """Ctrl-C and SIGTERM end it with status 0, and its PostgreSQL with it."""
    data = cache / "demo" / "data"
    with running(cache, **FAST) as demo:
        demo.sign_in()
        assert running_pid(data) is not None
        demo.process.send_signal(number)  # and the impatient send it twice
        output = demo.stop(number)
        assert demo.process.returncode == 0
        assert running_pid(data) is None
        assert "Stopped" in output
        assert "Traceback" not in demo.errors_so_far()


def test_a_session_survives_a_restart_of_the_demo(cache: Path) -> None:
    """Data and secret are kept for the next run, the secret for its owner only."""
    with running(cache) as demo:
        demo.sign_in()
        cookies = dict(demo.client.cookies)
        user = demo.client.get("/me").json()
        assert demo.state()["policy"]["session_ttl"] == 20
    with running(cache) as demo:
        demo.client.cookies.update(cookies)
        assert user == demo.client.get("/me").json()
    assert stat.S_IMODE((cache / "demo" / "secret").stat().st_mode) == 0o600


def test_a_database_can_be_given(cache: Path, empty_dsn: str) -> None:
    """With --dsn the demo says so before it creates tables there, and starts no server."""
    with running(cache, "--dsn", empty_dsn, **FAST) as demo:
        assert "created" in demo.output
        assert demo.output.index("the database you gave") < demo.output.index("created")
        demo.sign_in()
        assert demo.client.get("/me").json()["username"] == "alice"
        assert not (cache / "demo" / "data").exists()


def test_an_open_host_refuses_sign_in_under_other_names(cache: Path, dsn: str) -> None:
    """On all interfaces it warns, sets no cookie for another host, and has no thief."""
    with running(cache, "--dsn", dsn, "--host", "0.0.0.0") as demo:
        assert "refused under any other name" in demo.output
        once = {"Host": "a.example", "Connection": "close"}
        elsewhere = demo.client.post("/login", data=ALICE, headers=once)
        assert elsewhere.status_code == 500
        assert "set-cookie" not in elsewhere.headers
        assert demo.client.post("/demo/replay").status_code == 404
        demo.sign_in()


def test_a_port_in_use_is_reported(cache: Path) -> None:
    """The demo ends with one line, before it starts anything."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = refused(cache, "--port", port)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1, port {port}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (cache / "demo").exists()


def test_without_a_port_the_next_free_one_is_used() -> None:
    """Two demos get two ports."""
    first, second = listen("127.0.0.1", None), listen("127.0.0.1", None)
    with first.socket, second.socket:
        assert first.port < second.port


def test_an_unreachable_database_is_reported(cache: Path) -> None:
    """The demo ends with one line, without the password."""
    done = refused(cache, "--port", "0", "--dsn", NOWHERE)
    assert done.returncode == 2
    assert "cannot reach the database" in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret-word" not in done.stdout + done.stderr


def test_a_missing_package_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line names the package and the extra to install."""
    monkeypatch.setattr(demo_package, "find_spec", lambda name: None)
    with pytest.raises(typer.Exit) as ended:
        demo_package.demo()
    assert ended.value.exit_code == 2
    assert "pip install 'handstamp[demo]'" in capsys.readouterr().err


@pytest.mark.browser
def test_the_page_works_in_a_browser(cache: Path, dsn: str, tmp_path: Path) -> None:
    """A user signs in, sees hits and a refresh, revokes a device, and is robbed."""
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no Chromium is installed")
    with (
        running(cache, "--dsn", dsn, HANDSTAMP_SESSION_TTL="4") as demo,
        open_tab(chromium, tmp_path / "profile") as tab,
    ):
        demo.sign_in()  # a second device
        tab.open(demo.url)
        shown = "document.querySelector({!r}).getClientRects().length > 0".format
        text = "document.querySelector({!r}).innerText".format
        click = "document.querySelector({!r}).click()".format
        tab.wait_for(shown("#sign-in"))
        tab.run(click("#sign-in button"))
        tab.wait_for(shown("#signed-in"))
        assert tab.run(text("#who")) == "alice"

        tab.run(click("#poll"))
        tab.wait_for("parseInt(document.querySelector('#figure-hits').innerText) > 20")
        tab.wait_for(text("#feed") + ".includes('Refreshed')")
        tab.wait_for("document.querySelector('#life').matches('.renewed')")
        tab.run(click("#poll"))
        tab.wait_for(text("#left") + ".includes('expired')")
        tab.run(click("#ask"))
        tab.wait_for(text("#left") + ".includes('left of')")

        tab.wait_for(shown("#devices button"))
        tab.run(click("#devices button"))
        tab.wait_for(
            f"!({shown('#devices')}) || !document.querySelector('#devices button')"
        )
        assert demo.client.get("/me").status_code == 401

        robbed = shown("#sign-in")
        tab.wait_for(f"({click('#ask')}, {click('#steal')}, {robbed})")
        tab.wait_for(text("#feed") + ".includes('refresh token replayed')")
        tab.run(click("#sign-in button"))
        tab.wait_for(text("#socket") + ".includes('open')")

        demo.stop()  # with a WebSocket open
        tab.wait_for(text("#message") + ".includes('does not answer')")
        assert tab.complaints == []
        assert demo.process.returncode == 0
        assert "Traceback" not in demo.errors_so_far()
