"""The text space of a run: what is saved is what serves, and every key of its config has an effect."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from genrec.artifacts.folders import open_artifact
from genrec.catalogue.semantic_ids import SemanticIds
from genrec.data.dataset import Dataset
from genrec.errors import UserError
from genrec.runs.run import Run
from genrec.semantic_ids.text_space import TextSpace, clicked_pairs, text_cache
from genrec.semantic_ids.tokenize import tokenize, tokenize_key


@pytest.fixture(scope="module")
def space(prepared_run):
    return TextSpace.fit(prepared_run.config, prepared_run.dataset)


def changed(run: Run, tiny_overrides, *overrides: str) -> Run:
    made = Run.create(
        None, tiny_overrides(run.folder.parent, "name=prepared", "model.layers=2", "decoding.beam=10", *overrides)
    )
    return made


def test_the_folder_gives_back_the_same_vectors_and_keywords(prepared_run, space):
    saved, items = prepared_run.ids.words, prepared_run.dataset.item_table
    for one, two in zip(saved.item_vectors(items), space.item_vectors(items), strict=True):
        assert np.array_equal(one, two)
    queries = prepared_run.dataset.query_texts[:20]
    for one, two in zip(saved.query_vectors(queries), space.query_vectors(queries), strict=True):
        assert np.array_equal(one, two)
    assert np.array_equal(prepared_run.ids.catalogue.text.numpy(), saved.item_vectors(items)[0])
    visible = pl.read_parquet(prepared_run.folder / "semantic_ids" / "keywords.parquet")
    assert visible.columns == ["item_id", "keyword", "type"] and len(visible)
    item = visible["item_id"][0]
    assert set(prepared_run.ids.keywords_of(item)) == set(
        visible.filter(pl.col("item_id") == item).select("keyword", "type").iter_rows()
    )
    assert prepared_run.ids.keywords_of("no such item") == []
    names = saved.names_of(pl.Series([*items["item_id"][:30], "no such item"]))
    for given, words in zip(items["item_id"], names.to_list()[:30], strict=False):
        assert words == [word for word, kind in saved.keywords_of(given) if kind != "price"]
    assert names.to_list()[30] == []


def test_keywords_move_vectors_towards_their_words(space, prepared_run):
    items = prepared_run.dataset.item_table
    plain, enhanced = space.item_vectors(items)
    np.testing.assert_allclose(np.linalg.norm(enhanced, axis=1), 1, atol=1e-5)
    assert (np.abs(plain - enhanced).max(1) > 1e-3).mean() > 0.5
    assert np.array_equal(space.item_vectors(items[3:5])[1], enhanced[3:5])


def test_without_keywords_the_vectors_are_plain(prepared_run, tiny_overrides):
    config = changed(prepared_run, tiny_overrides, "semantic_ids.keywords=false").config
    space = TextSpace.fit(config, prepared_run.dataset)
    plain, enhanced = space.item_vectors(prepared_run.dataset.item_table)
    np.testing.assert_allclose(enhanced, plain, atol=1e-5)


@pytest.mark.parametrize("override", ["text.dim=8"])
def test_keys_change_vectors_and_the_fingerprint(prepared_run, tiny_overrides, space, override):
    config, data = changed(prepared_run, tiny_overrides, override).config, prepared_run.dataset
    assert tokenize_key(config, data) != tokenize_key(prepared_run.config, data)
    other, plain = (made.item_vectors(data.item_table)[0] for made in (TextSpace.fit(config, data), space))
    assert other.shape != plain.shape or not np.allclose(other, plain, atol=1e-3)


def test_clicked_pairs_are_training_searches(prepared_run):
    data: Dataset = prepared_run.dataset
    pairs = clicked_pairs(data)
    rows = [row for row in range(len(data.items)) if data.split[row] == 0 and data.queries[row] >= 0]
    assert pairs.rows() == [(data.query_texts[data.queries[row]], int(data.items[row])) for row in rows] and rows


def test_the_cache_of_a_config(prepared_run, tiny_overrides):
    assert text_cache(prepared_run.config) is None
    slow = changed(prepared_run, tiny_overrides, "text.encoder=minilm").config
    assert text_cache(slow) == prepared_run.folder.parent / "text-cache"


def test_a_run_without_keywords_round_trips(prepared_run, tiny_overrides, tmp_path):
    config = changed(prepared_run, tiny_overrides, "semantic_ids.keywords=false").config
    tokenize(config, prepared_run.dataset, tmp_path / "ids")
    ids = SemanticIds.load(tmp_path / "ids")
    assert ids.keywords_of(prepared_run.dataset.item_table["item_id"][0]) == []
    plain = ids.words.item_vectors(prepared_run.dataset.item_table)[0]
    assert np.array_equal(plain, np.load(tmp_path / "ids" / "text.npy"))
    assert "keywords.parquet" in open_artifact(tmp_path / "ids", "semantic-ids")["files"]


def test_missing_parts_are_named(space, tmp_path):
    space.save(tmp_path)
    assert len(TextSpace.load(tmp_path).keywords) == len(space.keywords)
    (tmp_path / "keyword_vectors.safetensors").unlink()
    with pytest.raises(UserError, match="keyword_vectors.safetensors is missing; run genrec tokenize again"):
        TextSpace.load(tmp_path)
