"""Artefact folders: whole or refused, and an old one survives whatever goes wrong while a new one is made."""

from __future__ import annotations

import json

import pytest

from genrec.artifacts import MANIFEST, atomic_folder, file_fingerprint, fingerprint, is_current, open_artifact, read_json, write_json
from genrec.errors import UserError


@pytest.fixture
def folder(tmp_path):
    target = tmp_path / "stage"
    make(target, "first")
    return target


def make(target, text, key="key"):
    with atomic_folder(target, "thing", key, {"note": text}) as place:
        (place / "sub").mkdir()
        (place / "sub" / "data.txt").write_text(text)
        (place / "other.bin").write_bytes(bytes(100))


def edit_manifest(folder, **changes):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | changes))


def refused(folder, words, verify=False, kind="thing"):
    with pytest.raises(UserError, match=words) as error:
        open_artifact(folder, kind, verify)
    assert len(str(error.value).splitlines()) == 1
    assert verify or not is_current(folder, kind, "key")


def test_a_whole_folder_opens(folder):
    manifest = open_artifact(folder, "thing", verify=True)
    assert manifest["info"] == {"note": "first"} and set(manifest["files"]) == {"sub/data.txt", "other.bin"}
    assert is_current(folder, "thing", "key") and not is_current(folder, "thing", "other")


def test_missing(tmp_path):
    refused(tmp_path / "stage", "does not exist")


def test_half_written(folder):
    (folder / MANIFEST).unlink()
    refused(folder, "half-written")


def test_manifest_cut_short(folder):
    (folder / MANIFEST).write_text((folder / MANIFEST).read_text()[:50])
    refused(folder, "cannot be read")


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_another_format_version(folder, version):
    edit_manifest(folder, format_version=version)
    refused(folder, f"format version {version}")


def test_another_kind(folder):
    refused(folder, "holds a thing, not a model", kind="model")


def test_a_file_is_missing(folder):
    (folder / "sub" / "data.txt").unlink()
    refused(folder, r"data\.txt is missing")


def test_a_file_is_cut_short(folder):
    (folder / "other.bin").write_bytes(bytes(99))
    refused(folder, r"other\.bin is not what was written")


def test_a_changed_byte_is_found_when_asked(folder):
    (folder / "other.bin").write_bytes(bytes(99) + b"x")
    assert open_artifact(folder, "thing")  # the quick look compares sizes alone
    refused(folder, r"other\.bin is not what was written", verify=True)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_inside_leaves_the_old_folder(folder, error):
    with pytest.raises(error), atomic_folder(folder, "thing", "new") as place:
        (place / "data.txt").write_text("second")
        raise error
    assert open_artifact(folder, "thing", verify=True)["key"] == "key" and (folder / "sub" / "data.txt").read_text() == "first"
    assert [path.name for path in folder.parent.iterdir()] == ["stage"]


def test_an_exception_inside_the_first_time_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "stage", "thing", "new"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_new_folder_replaces_all_of_the_old_one(folder):
    (folder / "stray.txt").write_text("of an older version")
    make(folder, "second", "next")
    assert open_artifact(folder, "thing", verify=True)["key"] == "next" and not (folder / "stray.txt").exists()
    assert (folder / "sub" / "data.txt").read_text() == "second"
    assert [path.name for path in folder.parent.iterdir()] == ["stage"]


def test_what_is_being_written_is_not_visible(folder):
    with atomic_folder(folder, "thing", "new") as place:
        (place / "sub").mkdir()
        assert place != folder and open_artifact(folder, "thing")["key"] == "key"
    assert open_artifact(folder, "thing")["key"] == "new"


def test_info_may_be_filled_inside(tmp_path):
    info = {}
    with atomic_folder(tmp_path / "stage", "thing", "key", info):
        info["epochs"] = 3
    assert open_artifact(tmp_path / "stage", "thing")["info"] == {"epochs": 3}


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        loop: list = []
        loop.append(loop)
        write_json(path, loop)
    assert read_json(path) == {"a": 1}
    with pytest.raises(UserError, match="missing"):
        read_json(tmp_path / "b.json")


def test_fingerprints(tmp_path):
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    (tmp_path / "x").write_text("1")
    before = file_fingerprint(tmp_path)
    assert file_fingerprint(tmp_path) == before
    (tmp_path / "x").write_text("12")
    changed = file_fingerprint(tmp_path)
    (tmp_path / "y").write_text("")
    assert before != changed != file_fingerprint(tmp_path)
