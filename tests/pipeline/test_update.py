"""Updates of a run by the last two days of a simulated log: what is kept, what is refused, what a kill leaves."""

from __future__ import annotations

import shutil

import numpy as np
import polars as pl
import pytest

from genrec.artifacts.folders import atomic_folder, read_json
from genrec.data.prepare.appended import SERVED_LOG
from genrec.data.readers import read_log
from genrec.data.readers.guess import guess_log
from genrec.data.schema import join_parts
from genrec.data.simulator.simulate import simulate
from genrec.data.simulator.world import SimulatorConfig
from genrec.errors import UserError
from genrec.inference.recommender import Recommender
from genrec.pipeline import update as module
from genrec.pipeline import update_gate
from genrec.pipeline.stages import stage_train
from genrec.pipeline.update import DAY, finish_swap, update
from genrec.preference.acceptance import GateDecision
from genrec.runs.run import Run

STEPS = 15


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_overrides):
    """A run on all but the last two days, and the folder of those days with a new item among them."""
    folder = tmp_path_factory.mktemp("days")
    log = simulate(SimulatorConfig(n_users=120, n_items=70, n_events=2500, n_categories=6, n_brands=5, days=25, seed=4))
    cut = (int(log.events["timestamp"].max()) // DAY - 1) * DAY
    events = log.events.with_columns(late=pl.col("timestamp") >= cut)
    for name, late in (("old", False), ("new", True)):
        (folder / name).mkdir()
        events.filter(pl.col("late") == late).drop("late").write_parquet(folder / name / "events.parquet")
        log.items.write_parquet(folder / name / "items.parquet")
    late = events.filter("late").drop("late")
    fresh = late.head(3).with_columns(item_id=pl.lit("fresh"))
    pl.concat([late, fresh]).write_parquet(folder / "new" / "events.parquet")
    new = pl.DataFrame({"item_id": ["fresh"], "title": [log.items["title"][0]]})
    pl.concat([log.items, new], how="diagonal").write_parquet(folder / "new" / "items.parquet")
    options = [f"data.path={folder / 'old'}", "data.options={events: events.parquet, items: items.parquet}"]
    plain = [one for one in tiny_overrides(folder, "name=run") if "data." not in one]
    run = Run.create(None, [*plain, "data.reader=table", *options, "evaluation.baselines=[popularity]"])
    stage_train(run)
    return run.folder, folder / "new"


@pytest.fixture
def copied(trained, tmp_path):
    """A run that the test may change, and the new days."""
    shutil.copytree(trained[0], tmp_path / "run")
    return tmp_path / "run", trained[1]


def decided(kept: bool):
    return lambda *_: GateDecision(kept, ["for the test"], [])


def files(folder):
    return {
        path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and "checksums" not in path.name
    }


def test_two_more_days_end_to_end(copied, monkeypatch, genrec):
    folder, new = copied
    before, gate = Run.open(folder), update_gate.decide
    old_codes, old_users = before.ids.catalogue.codes.numpy().copy(), before.dataset.user_ids
    seen = []
    monkeypatch.setattr(update_gate, "decide", lambda *given: seen.append(gate(*given)) or decided(True)())
    code, out, err = genrec("update", folder, "--log", new, "--steps", STEPS)
    assert code == 0 and "accepted" in out, out + err
    assert {row.name for row in seen[0].rows} >= {"recall", "ndcg", "coverage"}
    run = Run.open(folder)
    data, report = run.dataset, read_json(folder / "update.json")
    assert (
        data.user_ids[: len(old_users)].equals(old_users) and report["items"] == data.n_items - before.dataset.n_items
    )
    codes = run.ids.catalogue.codes.numpy()
    assert np.array_equal(codes[: len(old_codes)], old_codes) and len(codes) == data.n_items > len(old_codes)
    assert "fresh" in data.item_index and report["events"] == len(data.items) - len(before.dataset.items) > 50
    held_out = np.asarray(data.timestamps)[np.asarray(data.split) > 0]
    assert held_out.min() >= data.timestamps.max() // DAY * DAY  # yesterday, and nothing else
    assert run.fitted == ["train"] and run.stages.fault("reranker") is None
    model = Recommender.load(folder)
    assert len(model.recommend(user=old_users[0], k=5)) == 5 and model.search("lamp", k=5)
    assert (folder.parent / "run.previous" / "model" / "manifest.json").is_file()
    with pytest.raises(UserError, match="is part of"):
        update(folder, new)


def test_a_refused_update_leaves_the_run_as_it_was(copied, monkeypatch):
    folder, new = copied
    before = files(folder)
    monkeypatch.setattr(update_gate, "decide", decided(False))
    report = update(folder, new, STEPS)
    after = files(folder)
    assert not report.decision.kept and after.pop(folder / "update_refused.json") and after == before
    assert not (folder.parent / "run.previous").exists()


def test_a_killed_update_is_resumed_and_changes_nothing(copied, monkeypatch):
    folder, new = copied
    before = files(folder)
    monkeypatch.setattr(update_gate, "decide", decided(True))
    gate = module.decide_update

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "decide_update", killed)
    with pytest.raises(KeyboardInterrupt):
        update(folder, new, STEPS)
    assert files(folder) == before
    made = (folder.parent / "run.update" / "model" / "manifest.json").stat().st_mtime_ns
    monkeypatch.setattr(module, "decide_update", gate)
    assert update(folder, new, STEPS).decision.kept
    assert (folder / "model" / "manifest.json").stat().st_mtime_ns == made  # not trained twice


def test_a_day_of_a_server_brings_its_impressions(copied, tmp_path):
    folder, new = copied
    run = Run.open(folder)
    events = pl.read_parquet(new / "events.parquet").select("user_id", "item_id", "timestamp", "action")
    impressions = events.with_columns(request_id=pl.lit("r"), position=pl.lit(1))
    with atomic_folder(tmp_path / "served", SERVED_LOG, "key") as served:
        events.write_parquet(served / "events.parquet")
        impressions.write_parquet(served / "impressions.parquet")
    guess = guess_log(tmp_path / "served")
    log = join_parts(read_log(guess.reader, guess.path, guess.options))  # for a first training, too
    assert log.events.height == log.impressions.height == len(events)
    data = module._prepare(run, tmp_path / "served").dataset
    assert len(data.items) - len(run.dataset.items) > 0.9 * len(events)
    assert data.info["impressions"]["kept"] == data.impressions.height > 0.9 * len(impressions)
    assert data.item_table["item_id"][: run.dataset.n_items].equals(run.dataset.item_table["item_id"])


def test_drift_rebuilds_the_codes_and_the_model(copied, monkeypatch):
    folder, new = copied
    monkeypatch.setattr("genrec.semantic_ids.drift.MIN_ITEMS", 1)
    monkeypatch.setattr("genrec.semantic_ids.drift.MAX_GROWTH", 1.0)
    monkeypatch.setattr(update_gate, "decide", decided(True))
    monkeypatch.setattr(module, "_train", None)  # no warm start: the old weights belong to other codes
    report = update(folder, new, STEPS)
    run = Run.open(folder)
    assert report.rebuilt_codes and "growth" in report.drift["reasons"]
    assert run.ids.baseline["items"] == run.dataset.n_items and run.fitted == ["train"]
    assert run.stages.fault("reranker") is None


def test_items_of_earlier_updates_count_as_drift(copied):
    folder, new = copied
    run = Run.open(folder)
    candidate = module._prepare(run, new)
    assert module._tokenize(run, candidate)["new_items"] == candidate.dataset.n_items - run.dataset.n_items
    grown = Run.open(candidate.folder)
    assert grown.ids.baseline["items"] == run.dataset.n_items < grown.dataset.n_items
    assert module._tokenize(grown, grown)["new_items"] == grown.dataset.n_items - run.dataset.n_items > 0


def test_a_swap_that_was_killed_is_finished(tmp_path):
    for name, kept in (("accepted", True), ("unfinished", None)):
        folder = tmp_path / name / "run"
        for part in ("previous", "update"):
            (tmp_path / name / f"run.{part}").mkdir(parents=True)
            (tmp_path / name / f"run.{part}" / "which").write_text(part)
        if kept:
            (tmp_path / name / "run.update" / "update.json").write_text('{"decision": {"kept": true}}')
        finish_swap(folder)
        assert (folder / "which").read_text() == ("update" if kept else "previous")


def test_what_is_wrong_is_named(copied, tmp_path):
    folder, new = copied
    with pytest.raises(UserError, match="does not exist"):
        update(folder, tmp_path / "nowhere")
    with pytest.raises(UserError, match="--replay"):
        update(folder, new, replay=1.0)
    other = tmp_path / "other"
    other.mkdir()
    events = pl.read_parquet(new / "events.parquet").with_columns(action=pl.lit("return"))
    events.write_parquet(other / "events.parquet")
    with pytest.raises(UserError, match="have actions"):
        update(folder, other)
