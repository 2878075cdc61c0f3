"""The page about FastAPI: the application that it wraps, before and after its diff."""

from __future__ import annotations

import asyncio
import re
import runpy
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.support.browsers import TestClient

PAGE = Path(__file__).resolve().parents[1] / "docs" / "fastapi.md"
SECRET = "the secret of the page about FastAPI: 32 bytes and more"
ALICE = "01J9ZC3M6V2Q8W4X5Y6Z7A8B9C"
ACCOUNTS = f"""
def check_password(username, password):
    right = (username, password) == ("alice", "wonderland")
    return "{ALICE}" if right else None
"""


def diff() -> list[str]:
    """The lines of the diff that the page shows, which has the whole application."""
    [text] = re.findall(r"```diff\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    return text.splitlines()


@pytest.fixture
def folder(tmp_path: Path, dsn: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the application of the page finds what it needs."""
    (tmp_path / "accounts.py").write_text(ACCOUNTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SECRET", SECRET)
    monkeypatch.setenv("DATABASE_URL", dsn)
    return tmp_path


def load(folder: Path, sign: str) -> Any:
    """Run the application with the lines of one sign: "-" before, "+" after the diff."""
    path = folder / "app.py"
    path.write_text("\n".join(line[1:] for line in diff() if line[:1] in ("", " ", sign)))
    return runpy.run_path(str(path))["app"]


def use(client: TestClient) -> list[Any]:
    """What a visitor sees who signs in, looks around and signs out."""
    account = client.get("/account").status_code
    wrong = client.post("/login", data={"username": "alice", "password": "x"})
    right = client.post("/login", data={"username": "alice", "password": "wonderland"})
    pages = [client.get("/account").json() for _ in range(2)]
    out = client.post("/logout").status_code
    after = client.get("/account").status_code
    return [account, wrong.status_code, right.status_code, *pages, out, after]


async def sql(dsn: str, statement: str, *values: object) -> list[asyncpg.Record]:
    """One statement, as an administrator."""
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(statement, *values)
    finally:
        await connection.close()


def test_an_existing_fastapi_application_is_wrapped_in_nine_lines(
    dsn: str, folder: Path
) -> None:
    """Before and after the diff a visitor sees the same; after it a revocation counts."""
    assert sum(line[:1] in ("+", "-") for line in diff()) == 9
    add = "insert into users (id, username, password_hash) values ($1, 'alice', 'x')"
    asyncio.run(sql(dsn, add, ALICE))
    pages = [{"user_id": ALICE, "visits": n} for n in (1, 2)]
    expected = [401, 401, 204, *pages, 204, 401]
    for sign in "-+":
        with TestClient(load(folder, sign), base_url="https://testserver") as client:
            assert use(client) == expected
    with TestClient(load(folder, "+"), base_url="https://testserver") as client:
        client.post("/login", data={"username": "alice", "password": "wonderland"})
        assert client.get("/account").status_code == 200
        end = "update user_sessions set is_active = false where is_active returning id"
        assert len(asyncio.run(sql(dsn, end))) == 1
        asyncio.run(sql(dsn, "select pg_notify('handstamp', 'all')"))
        while client.get("/account").status_code != 401:
            pass  # until the notice arrives, or the bound of five seconds
