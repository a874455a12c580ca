"""Fetching: sources in order, checks that reject a wrong copy, and nothing half-done left behind."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import zipfile
from pathlib import Path

import pytest
import requests

from genrec.data import registry as datasets
from genrec.data.readers import read_log as read_parts
from genrec.data.registry import DATASETS, DatasetCorruptError, DatasetUnavailableError, fetch, list_datasets
from genrec.data.schema import RawLog, join_parts
from genrec.errors import UserError


def read_log(*arguments) -> RawLog:
    """A whole log at once."""
    return join_parts(read_parts(*arguments))


NAME = "movielens-100k"
RATINGS = [(1, 7, 3, 50), (2, 7, 5, 40), (1, 8, 1, 60)]
FLAGS = "|".join("0" * 19)
OFFICIAL = {
    "ml-100k/u.data": "".join("\t".join(map(str, row)) + "\n" for row in RATINGS),
    "ml-100k/u.item": f"7|Lamp (1995)|01-Jan-1995|||{FLAGS}\n8|Cup (1996)||||{FLAGS}\n",
    "ml-100k/u.user": "1|24|M|writer|1\n2|53|F|other|2\n",
    "ml-100k/../evil": "out",
}
MIRROR = {
    "recbole/dataset_example/ml-100k/ml-100k.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    + "".join("\t".join(map(str, row)) + "\n" for row in reversed(RATINGS)),
    "recbole/dataset_example/ml-100k/ml-100k.item": "item_id:token\tmovie_title:token_seq\n7\tLamp\n8\tCup\n",
    "recbole/dataset_example/ml-100k/ml-100k.user": "user_id:token\tage:token\n1\t24\n2\t53\n",
    "recbole/__init__.py": "",
}


def zipped(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


@pytest.fixture
def sources(monkeypatch, tmp_path):
    """A world with a tiny data set of the same name; set ``official`` and ``mirror`` to bytes or None (unreachable)."""
    world = {"official": None, "mirror": None, "requests": []}
    (tmp_path / "truth").mkdir()
    for name, text in OFFICIAL.items():
        if name.startswith("ml-100k/u."):
            (tmp_path / "truth" / name.split("/")[1]).write_text(text)
    truth = datasets.content_hash(read_log("movielens", tmp_path / "truth", {}))
    tiny = dataclasses.replace(DATASETS[NAME], counts={"users": 2, "items": 2, "events": 3}, sha256=truth)
    monkeypatch.setitem(DATASETS, NAME, tiny)

    def retrieve(url, known_hash, fname, path, downloader):
        world["requests"].append("official")
        assert downloader.kwargs["timeout"] == 10
        if world["official"] is None:
            raise requests.ConnectionError("no route")
        (path / fname).write_bytes(world["official"])
        return str(path / fname)

    def run(command, **options):
        world["requests"].append("mirror")
        assert command[1:4] == ["-m", "pip", "download"] and "--no-deps" in command
        if world["mirror"] is None:
            return subprocess.CompletedProcess(command, 1, "", "ERROR: no network")
        (Path(command[command.index("--dest") + 1]) / "recbole-9-py3-none-any.whl").write_bytes(world["mirror"])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(datasets.pooch, "retrieve", retrieve)
    monkeypatch.setattr(datasets.subprocess, "run", run)
    return world


def test_registry_is_complete():
    assert [entry.name for entry in list_datasets()] == sorted(DATASETS) and NAME in DATASETS
    assert all(entry.terms and entry.page.startswith("https://") for entry in list_datasets())
    assert len(DATASETS[NAME].sha256) == 64
    with pytest.raises(UserError, match="did you mean 'movielens-100k'"):
        fetch("movielens100k", Path("anywhere"))


def test_official_source_first_then_skip(sources, tmp_path):
    sources["official"] = zipped(OFFICIAL)
    messages: list[str] = []
    folder = fetch(NAME, tmp_path / "data", messages.append)
    assert folder == tmp_path / "data" / NAME and sources["requests"] == ["official"] and messages
    assert sorted(path.name for path in folder.iterdir()) == ["u.data", "u.item", "u.user"]
    assert fetch(NAME, tmp_path / "data") == folder and sources["requests"] == ["official"]
    assert [path.name for path in (tmp_path / "data").iterdir()] == [NAME]


def test_mirror_holds_the_same_content(sources, tmp_path):
    sources["mirror"] = zipped(MIRROR)
    folder = fetch(NAME, tmp_path / "data")
    assert sources["requests"] == ["official", "mirror"]
    assert read_log("movielens", folder, {}).events.height == 3


def test_no_network_is_unavailable_and_leaves_nothing(sources, tmp_path):
    with pytest.raises(DatasetUnavailableError, match="no route.*no network"):
        fetch(NAME, tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("kind", ["changed", "short", "cut", "empty"])
def test_corrupt_download_is_rejected(sources, tmp_path, kind):
    changed = {name: text.replace("\t3\t50", "\t4\t50") for name, text in MIRROR.items()}
    short = {name: text.replace("1\t7\t3\t50\n", "") for name, text in MIRROR.items()}
    sources["mirror"] = {
        "changed": zipped(changed),
        "short": zipped(short),
        "cut": zipped(MIRROR)[:-40],
        "empty": zipped({}),
    }[kind]
    with pytest.raises(DatasetCorruptError):
        fetch(NAME, tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_an_invalid_copy_is_replaced_only_by_a_valid_one(sources, tmp_path):
    sources["official"] = zipped(OFFICIAL)
    folder = fetch(NAME, tmp_path)
    (folder / "u.data").write_text("1\t7\t3\t50\n")
    sources["official"] = None
    with pytest.raises(DatasetUnavailableError):
        fetch(NAME, tmp_path)
    assert (folder / "u.data").exists()
    sources["mirror"] = zipped(MIRROR)
    assert sorted(path.suffix for path in fetch(NAME, tmp_path).iterdir()) == [".inter", ".item", ".user"]


@pytest.mark.parametrize("name", ["amazon-beauty-2014", "kuairand-pure"])
def test_by_hand_says_where_and_which_reader(tmp_path, name):
    with pytest.raises(UserError) as caught:
        fetch(name, tmp_path)
    assert DATASETS[name].page in str(caught.value) and DATASETS[name].reader in str(caught.value)
