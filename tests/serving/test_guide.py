"""The page of the server keeps its word: its requests are answered and its commands run as they stand."""

from __future__ import annotations

import asyncio
import re
import shlex
from pathlib import Path

from genrec.serving.sqlite_store import SqliteStore
from genrec.serving.store import StoredEvent

GUIDE = (Path(__file__).parents[2] / "genrec" / "serving" / "README.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    """The words of every command in a bash block, continuation lines joined, comments left out."""
    text = "\n".join(re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL)).replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def test_the_requests_are_answered(serving):
    async def go():
        async with serving() as (client, _):
            requested = [words for words in commands() if words[0] == "curl"]
            assert len(requested) >= 3
            for words in requested:
                path = next(word for word in words if "localhost" in word).partition("8000")[2]
                body = words[words.index("-d") + 1]
                reply = await client.post(path, content=body, headers={"content-type": "application/json"})
                assert reply.status_code == 200, (words, reply.text)

    asyncio.run(go())


def test_the_commands_run(genrec, bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundle").symlink_to(bundle)
    store = SqliteStore(tmp_path / "bundle.events.sqlite")
    store.append([StoredEvent("u", "a", 2**33)])
    store.close()
    settings = f"bundle --events {store.path}".split()
    ran = []
    for words in commands():
        if words[0] == "genrec" and words[1].endswith("-events"):
            code, _, err = genrec(words[1], *settings, *words[3:])
            assert code == 0, (words, err)
            ran.append(words[1])
    assert ran == ["backup-events", "export-events", "trim-events"]
    assert (tmp_path / "served-log" / "events.parquet").is_file()


def test_every_option_that_the_page_names_exists(genrec):
    _, out, _ = genrec("serve", "--help")
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", GUIDE)) - {
        "--output", "--without-users", "--days", "--requests", "--workers",  # of other commands
    }  # fmt: skip
    known = set(re.findall(r"--[a-z][a-z-]+", out))
    assert named <= known, named - known


def test_every_route_is_in_the_table(serving):
    async def go():
        async with serving() as (client, _):
            paths = (await client.get("/openapi.json")).json()["paths"]
            assert not [path for path in paths if path.removeprefix("/v1") not in GUIDE.replace("/v1", "")]

    asyncio.run(go())
