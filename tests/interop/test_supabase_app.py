"""The real @supabase/ssr and an application of ours: one cookie, one real database.

The package has no Supabase to talk to but a small endpoint on :class:`SupabaseSessions`,
which is what an application could put in GoTrue's place.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from handstamp.starlette import session_auth, wrap
from handstamp.supabase import SupabaseSessions
from handstamp.supabase.cookies import (
    SupabaseCookie,
    SupabaseCookieWriter,
    decode_session,
    storage_key,
)
from tests.interop.package_client import Missing, PackageClient, install, run_client
from tests.support.supabase_site import Held, World, living
from tests.support.waiting import until

pytestmark = pytest.mark.npm


@pytest.fixture(scope="module")
def package(request: pytest.FixtureRequest) -> Iterator[PackageClient]:
    """The real package, for all tests of this module."""
    assert request.config.cache is not None
    try:
        folder = install(request.config.cache.mkdir("handstamp-interop"))
    except Missing as reason:
        pytest.skip(str(reason))
    with run_client(folder) as client:
        yield client


class Endpoint:
    """The three answers of GoTrue's that the package asks for."""

    def __init__(self) -> None:
        self.sessions: SupabaseSessions | None = None
        self.asked: list[str] = []

    @property
    def _sessions(self) -> SupabaseSessions:
        assert self.sessions is not None
        return self.sessions

    async def token(self, request: Request) -> Response:
        self.asked.append("token")
        body = await request.json()
        issued = await self._sessions.refresh(body["refresh_token"])
        if issued is None:
            answer = {"code": "refresh_token_not_found", "message": "Not Found"}
            return JSONResponse(answer, status_code=400)
        return JSONResponse(issued.body)

    async def user(self, request: Request) -> Response:
        self.asked.append("user")
        return JSONResponse({"id": session_auth(request).require().user_id})

    async def logout(self, request: Request) -> Response:
        self.asked.append("logout")
        auth = session_auth(request)
        await self._sessions.revoke_user(auth.require().user_id)
        return Response(status_code=204)

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/auth/v1/token", self.token, methods=["POST"]),
                Route("/auth/v1/user", self.user),
                Route("/auth/v1/logout", self.logout, methods=["POST"]),
            ]
        )


class Town:
    """A browser, our application, the package's, and the one database behind both."""

    def __init__(
        self, world: World, package: PackageClient, endpoint: Endpoint, url: str
    ) -> None:
        self.world = world
        self.endpoint = endpoint
        self.url = url
        self.name = storage_key(url)
        self.jar: dict[str, str] = {}
        self._package = package

    async def start(self, **rules: Any) -> None:
        cookie = SupabaseCookie(name=self.name, http_only=False, secure=False)
        self.sessions = await self.world.process(url=None, cookie=cookie, rules=rules)
        self.endpoint.sessions = self.sessions
        self._ours = await self.world.browser(self.sessions, cookies=None)

    def _keep(self, lines: list[str]) -> None:
        for line in lines:
            name, _, rest = line.partition("=")
            self.jar[name] = rest.partition(";")[0]
            if "Max-Age=0" in rest:
                del self.jar[name]

    @property
    def _header(self) -> str:
        return "; ".join(f"{name}={value}" for name, value in self.jar.items())

    async def ours(self, path: str, method: str = "GET") -> httpx.Response:
        """A request of this browser to our application."""
        headers = {"cookie": self._header} if self.jar else {}
        answer = await self._ours.request(method, path, headers=headers)
        self._ours.cookies.clear()
        self._keep(answer.headers.get_list("set-cookie"))
        return answer

    async def theirs(self, operation: str) -> dict[str, Any]:
        """A request of this browser to an application with the package."""
        ask = partial(self._package.ask, operation, self.url, cookie=self._header)
        answer: dict[str, Any] = await asyncio.to_thread(ask)
        self._keep(answer["lines"])
        return answer

    def held(self) -> dict[str, Any]:
        """What is in the cookie now."""
        whole = self.jar.get(self.name) or "".join(
            self.jar[name] for name in sorted(self.jar, key=len)
        )
        found = decode_session(whole)
        assert found is not None
        return {"access": found.access_token, "refresh": found.refresh_token}

    def age(self, held: Held) -> None:
        """Let the access token run out, as time would."""
        body = held.body(-5, refresh_token=self.held()["refresh"])
        cookie = SupabaseCookie(name=self.name, http_only=False, secure=False)
        lines = SupabaseCookieWriter(cookie).session(body, dict(self.jar))
        self._keep([line.decode() for line in lines])

    async def sign_in(self) -> Held:
        user = await self.world.add_user()
        answer = await self.ours(f"/login/{user}", "POST")
        return Held(answer.json()["id"], user, self.held()["refresh"])

    async def pad(self, size: int) -> None:
        """Let the user's metadata, and so the cookie, be so large."""
        await self.world.psql.execute(
            "update auth.users set raw_user_meta_data ="
            " jsonb_build_object('name', 'Žofie 🎉', 'x', repeat('y', $1))",
            size,
        )


@asynccontextmanager
async def serving(endpoint: Endpoint) -> AsyncIterator[str]:
    """The endpoint on a free port, which gives the cookie its name."""
    app: Any = None

    async def late(scope: Any, receive: Any, send: Any) -> None:
        nonlocal app
        app = app or wrap(endpoint.app, endpoint._sessions)
        await app(scope, receive, send)

    config = uvicorn.Config(late, port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task


@pytest.fixture
async def town(supabase_dsn: str, package: PackageClient) -> AsyncIterator[Town]:
    """Everything that is needed, but for our engine and its rules."""
    endpoint = Endpoint()
    async with serving(endpoint) as url, living(supabase_dsn) as world:
        yield Town(world, package, endpoint, url)


@pytest.mark.parametrize("size", [0, 3000])
async def test_who_signs_in_with_us_is_signed_in_with_them(town: Town, size: int) -> None:
    """Their getSession reads our cookie, whole or in pieces, and leaves it alone."""
    await town.start()
    held = await town.sign_in()
    await town.pad(size)
    town.age(held)
    await town.ours("/me")
    assert (len(town.jar) > 1) == (size > 0)
    before = dict(town.jar)
    answer = await town.theirs("session")
    assert answer["error"] is None
    session = answer["data"]["session"]
    assert session["access_token"] == town.held()["access"]
    assert session["user"]["id"] == held.user_id
    assert (town.jar, town.endpoint.asked) == (before, [])


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 3000), (3000, 0)])
async def test_they_refresh_and_we_refresh_in_turns(
    town: Town, version: int, before: int, after: int
) -> None:
    """Each reads what the other wrote; grown or shrunk, no old piece is left."""
    await town.start(algorithm_version=version)
    held = await town.sign_in()
    tokens = [town.held()["refresh"]]
    for refresh in ("theirs", "ours", "theirs"):
        await town.pad(before if len(tokens) % 2 else after)
        town.age(held)
        if refresh == "theirs":
            answer = await town.theirs("session")
            assert answer["data"]["session"]["user"]["id"] == held.user_id
        else:
            assert (await town.ours("/me")).json()["id"] == held.id
        tokens.append(town.held()["refresh"])
        asked = list(town.endpoint.asked)
        assert (await town.ours("/me")).json()["id"] == held.id
        session = (await town.theirs("session"))["data"]["session"]
        assert session["access_token"] == town.held()["access"]
        assert town.endpoint.asked == asked  # nobody refreshed again
        numbered = [f"{town.name}.{n}" for n in range(len(town.jar))]
        assert sorted(town.jar) in ([town.name], numbered)
    assert len(set(tokens)) == 4


async def test_an_answer_that_one_of_us_lost_is_given_again(town: Town) -> None:
    """We refresh, the browser never hears of it, and they go on with the old cookie."""
    await town.start(algorithm_version=2)
    held = await town.sign_in()
    town.age(held)
    old = dict(town.jar)
    await town.ours("/me")
    current = town.held()["refresh"]
    town.jar = old
    answer = await town.theirs("session")
    assert answer["data"]["session"]["refresh_token"] == current


async def test_who_signs_out_with_us_is_signed_out_with_them(town: Town) -> None:
    """The cookie is gone, and a copy of it is worth nothing to either."""
    await town.start()
    held = await town.sign_in()
    await town.pad(3000)
    town.age(held)
    await town.ours("/me")
    copy = dict(town.jar)
    await town.ours("/logout", "POST")
    assert town.jar == {}
    assert (await town.theirs("session"))["data"]["session"] is None
    town.jar = copy
    assert (await town.ours("/me")).status_code == 401
    town.age(Held(held.id, held.user_id, held.refresh_token))
    answer = await town.theirs("session")
    assert (answer["data"]["session"], town.jar) == (None, {})


async def test_who_signs_out_with_them_is_signed_out_with_us(town: Town) -> None:
    """Every piece is gone, and the copy in our cache too."""
    await town.start()
    held = await town.sign_in()
    await town.pad(3000)
    town.age(held)
    await town.ours("/me")
    assert (await town.ours("/me")).status_code == 200
    copy = dict(town.jar)
    answer = await town.theirs("signOut")
    assert (answer["error"], town.jar, town.endpoint.asked) == (None, {}, ["logout"])
    town.jar = copy
    assert (await town.ours("/me")).status_code == 401
    assert await town.world.row(held) is None
