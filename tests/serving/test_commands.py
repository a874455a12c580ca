"""``genrec export`` and the commands that take a bundle in place of a run."""

from __future__ import annotations

import polars as pl

from genrec.inference.recommender import Recommender


def test_export_and_ask(genrec, trained_run, tmp_path):
    position = tmp_path / "bundle"
    code, out, _ = genrec(
        "export",
        trained_run.folder,
        "--output",
        position,
        "--fitted-on",
        "train",
        "--licence",
        "mine",
    )
    assert code == 0 and "bundle:" in out and "MB" in out and "mine" in (position / "README.md").read_text()
    user = trained_run.dataset.user_ids[0]
    answers = [answer.item_id for answer in Recommender.load(trained_run.folder, "train").recommend(user, k=3)]
    code, out, _ = genrec("recommend", position, "--user", user, "-k", "3")
    assert code == 0 and all(item in out for item in answers)
    assert genrec("search", position, "scarf", "-k", "3")[0] == 0
    pl.DataFrame({"request_id": ["a"], "user_id": [user]}).write_parquet(tmp_path / "requests.parquet")
    code, _, _ = genrec(
        "predict",
        position,
        "--requests",
        tmp_path / "requests.parquet",
        "--output",
        tmp_path / "out.parquet",
        "-k",
        "3",
    )
    assert code == 0 and pl.read_parquet(tmp_path / "out.parquet")["item_id"].to_list() == answers
    code, out, _ = genrec("doctor", position)
    assert code == 0 and "bundle: whole" in out


def test_mistakes(genrec, bundle, prepared_run, tmp_path):
    (tmp_path / "keys").write_text("\n")
    for arguments, words in (
        (("export", tmp_path / "none", "--output", tmp_path / "b"), "does not exist"),
        (("export", prepared_run.folder, "--output", tmp_path / "b"), "no trained model"),
        (("serve", tmp_path / "none"), "does not exist"),
        (("serve", bundle, "--max-batch", "0"), "--max-batch"),
        (("serve", bundle, "--api-key-file", tmp_path / "keys"), "holds no key"),
        (("recommend", bundle, "--fitted-on", "train"), "fitted on train+valid"),
        (("serve", bundle, "--events", tmp_path / "keys" / "x"), "event store"),
    ):  # fmt: skip
        code, _, err = genrec(*arguments)
        assert code == 2 and words in err and len(err.strip().splitlines()) == 1, (arguments, err)


def test_a_store_is_backed_up_and_trimmed(genrec, bundle, tmp_path):
    from genrec.serving.sqlite_store import SqliteStore
    from genrec.serving.store import StoredEvent

    path = tmp_path / "events.sqlite"
    code, _, err = genrec("backup-events", bundle, "--output", tmp_path / "copy", "--events", path)
    assert code == 2 and "does not exist" in err
    store = SqliteStore(path)
    store.append([StoredEvent("u", "a", 1), StoredEvent("u", "b", 2**33)])
    code, out, _ = genrec("backup-events", bundle, "--output", tmp_path / "copy", "--events", path)
    assert code == 0 and "bytes" in out
    code, out, _ = genrec("trim-events", bundle, "--days", "30", "--events", path)
    assert code == 0 and "deleted 1 events and 0 impressions" in out
    assert [one.item_id for one in store.all_events()] == ["b"]
    assert len(list(SqliteStore(tmp_path / "copy").all_events())) == 2
    assert genrec("trim-events", bundle, "--days", "-1", "--events", path)[0] == 2
    store.close()
