"""The tokenize stage and the living catalogue on a small run."""

from __future__ import annotations

import json
import shutil

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file, save_file

from genrec.artifacts.folders import read_json
from genrec.catalogue.semantic_ids import SemanticIds, read_items
from genrec.catalogue.trie import build_trie
from genrec.config.load import load_config
from genrec.errors import UserError
from genrec.pipeline.stages import stage_prepare
from genrec.runs.run import Run
from genrec.semantic_ids import figures
from genrec.semantic_ids import tokenize as stage
from genrec.semantic_ids.tokenize import tokenize


@pytest.fixture
def no_figures(monkeypatch):
    for name in ("plot_codebook_use", "plot_prefixes", "plot_tree"):
        monkeypatch.setattr(figures, name, lambda *args: None)


@pytest.fixture(scope="module")
def ids(synthetic_run) -> SemanticIds:
    return SemanticIds.load(synthetic_run.folder / "semantic_ids")


def test_the_folder_holds_report_and_figures(synthetic_run):
    folder = synthetic_run.folder / "semantic_ids"
    report = read_json(folder / "report.json")
    assert report["queries"]["kind"] == "synthetic" and report["queries"]["pairs"] > 0
    assert report["queries"]["shared"][0] > 2 * report["queries"]["random"][0]
    assert report["collision_resolution"]["items"] == report["items"] == synthetic_run.dataset.n_items
    assert report["quantizer"]["quantizer"] == "rq-opq" and report["tree"]
    json.dumps(report, allow_nan=False)
    for name in ("codebook_use.png", "prefixes.png", "tree.png"):
        assert (folder / name).stat().st_size > 1000


def test_new_items_and_queries_get_codes(ids, synthetic_run):
    table = synthetic_run.dataset.item_table
    new = ids.encode_new(table.select("title", "brand", "category", "text"))
    assert new.codes.shape == ids.catalogue.codes.shape and new.known.all()
    first = (new.codes[:, 0] == ids.catalogue.codes[:, 0].numpy()).mean()
    assert first > 0.3  # the text alone leads to the same first code far more often than chance
    query = ids.encode_new([table["title"][0], "", "zzzz qqqq"])
    assert query.known.tolist() == [True, False, False]
    assert np.array_equal(query.codes[1], query.codes[2])
    assert ids.encode_new([]).codes.shape == (0, new.codes.shape[1])


def test_append_keeps_old_codes_and_equals_a_rebuild(ids, synthetic_run):
    table = synthetic_run.dataset.item_table
    before = ids.catalogue.codes.clone()
    grown = ids.append(table.head(25))
    codes = grown.ids.catalogue.codes
    assert torch.equal(codes[: len(before)], before) and torch.equal(ids.catalogue.codes, before)
    assert len(codes) == len(before) + 25 and grown.ids.catalogue.text.shape[0] == len(codes)
    held = {tuple(code) for code in before.tolist()}
    assert not held & {tuple(code) for code in codes[len(before) :].tolist()} or grown.collisions.collisions_after
    rebuilt = build_trie(codes, ids.codebooks.sizes)
    for name, tensor in rebuilt.saved_tensors().items():
        assert torch.equal(tensor, grown.ids.catalogue.trie.saved_tensors()[name]), name
    # appending twice is appending once
    twice = ids.append(table.head(10)).ids.append(table.head(25).tail(15))
    assert torch.equal(twice.ids.catalogue.codes, codes)


def test_a_codebook_of_another_encoder_is_refused(synthetic_run, tmp_path):
    folder = tmp_path / "semantic_ids"
    shutil.copytree(synthetic_run.folder / "semantic_ids", folder)
    path = folder / "codebooks.safetensors"
    save_file(load_file(path), path, {"space": "0" * len(read_json(folder / "manifest.json")["key"])})
    with pytest.raises(UserError, match="another encoder"):
        SemanticIds.load(folder)


@pytest.mark.parametrize(
    "override",
    [
        "quantizer=rq-kmeans", "quantizer=opq", "level_sizes=[8,4]", "opq_subcodebooks=0", "behaviour_share=0",
    ],
)  # fmt: skip
def test_every_setting_changes_the_codes(synthetic_run, tmp_path, override, no_figures):
    config = load_config(None, ["text.dim=16", f"semantic_ids.{override}"])
    tokenize(config, synthetic_run.dataset, tmp_path / "ids")
    default = synthetic_run.ids.catalogue.codes.numpy()
    assert not np.array_equal(np.load(tmp_path / "ids" / "codes.npy"), default)


def test_collisions_are_resolved(synthetic_run, tmp_path, no_figures):
    crowded = ["text.dim=16", "semantic_ids.level_sizes=[4,4,8]", "semantic_ids.opq_subcodebooks=0"]
    folder = tokenize(load_config(None, crowded), synthetic_run.dataset, tmp_path / "ids")
    report = read_json(folder / "report.json")["collision_resolution"]
    codes = np.load(folder / "codes.npy")
    assert report["collisions_before"] > report["collisions_after"] == len(codes) - len(np.unique(codes, axis=0))


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("quantizer=kmeans", "rq-kmeans"), ("level_sizes=[]", "level_sizes"),
        ("opq_subcodebooks=-1", "opq_subcodebooks"),
    ],
)  # fmt: skip
def test_impossible_settings_name_their_key(override, named):
    with pytest.raises(UserError, match=named):
        load_config(None, [f"semantic_ids.{override}"])


EVENTS = [
    {"user_id": f"u{user}", "item_id": f"i{(user + step) % 4}", "timestamp": step}
    for user in range(3)
    for step in range(4)
]


def test_items_without_words(prepare_table, tmp_path, no_figures):
    dataset = prepare_table(EVENTS, [{"item_id": f"i{item}", "title": ""} for item in range(4)])
    tokenize(load_config(None, []), dataset, tmp_path / "ids")  # co-consumption alone tells them apart
    ids = SemanticIds.load(tmp_path / "ids")
    assert len(np.unique(ids.catalogue.codes, axis=0)) > 1
    with pytest.raises(UserError, match="no item has words or co-consumption"):
        tokenize(load_config(None, ["semantic_ids.behaviour_share=0"]), dataset, tmp_path / "none")


def test_a_catalogue_of_one_item(prepare_table, tmp_path, no_figures):
    events = [{"user_id": f"u{user}", "item_id": "i0", "timestamp": step} for user in range(2) for step in range(3)]
    dataset = prepare_table(events, [{"item_id": "i0", "title": "the only one"}])
    tokenize(load_config(None, []), dataset, tmp_path / "ids")
    ids = SemanticIds.load(tmp_path / "ids")
    assert ids.catalogue.n_items == 1 and ids.append(["the only one"]).ids.catalogue.n_items == 2


def test_read_items(tmp_path):
    table = pl.DataFrame({"title": ["a thing"], "category": ["tools"]})
    table.write_csv(tmp_path / "items.csv")
    assert read_items(tmp_path / "items.csv").equals(table)
    with pytest.raises(UserError, match="not found"):
        read_items(tmp_path / "none.csv")
    (tmp_path / "items.txt").write_text("x")
    with pytest.raises(UserError, match="expected a file that ends in"):
        read_items(tmp_path / "items.txt")
    (tmp_path / "items.parquet").write_text("x")
    with pytest.raises(UserError, match="cannot be read"):
        read_items(tmp_path / "items.parquet")


def test_new_items_need_a_text_column_and_may_have_a_plain_category(ids):
    with pytest.raises(UserError, match="at least one of title"):
        ids.encode_new(pl.DataFrame({"colour": ["red"]}))
    plain = ids.encode_new(pl.DataFrame({"title": ["thing"], "category": ["tools"]}))
    listed = ids.encode_new(pl.DataFrame({"title": ["thing"], "category": [["tools"]]}))
    assert np.array_equal(plain.codes, listed.codes)


def test_stage_is_repeatable(synthetic_run, tiny_overrides, tmp_path, no_figures):
    run = Run.create(
        None,
        tiny_overrides(
            tmp_path,
            "name=again",
            "data.options.search_share=0",
            "queries.synthetic=[category,title]",
            "queries.share=0.4",
        ),
    )
    stage_prepare(run)
    tokenize(run.config, run.dataset, tmp_path / "ids")
    for name in ("codes.npy", "codebooks.safetensors", "drift.json", "report.json"):
        assert (tmp_path / "ids" / name).read_bytes() == (synthetic_run.folder / "semantic_ids" / name).read_bytes(), (
            name
        )


def test_a_stopped_stage_keeps_its_codebooks(synthetic_run, tmp_path, no_figures, monkeypatch):
    """Stopped behind the codebooks, the stage reads them, and the codes are those of one that was not stopped."""
    config, dataset, target = synthetic_run.config, synthetic_run.dataset, tmp_path / "semantic_ids"
    report = stage.quality_report
    monkeypatch.setattr(stage, "quality_report", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tokenize(config, dataset, target)
    monkeypatch.setattr(stage, "quality_report", report)
    monkeypatch.setattr(stage, "fit_quantizer", lambda *_: 1 / 0)
    tokenize(config, dataset, target)
    whole = synthetic_run.folder / "semantic_ids"
    assert (np.load(target / "codes.npy") == np.load(whole / "codes.npy")).all()
    assert read_json(target / "report.json") == read_json(whole / "report.json")
    assert [path.name for path in tmp_path.iterdir()] == ["semantic_ids"]
