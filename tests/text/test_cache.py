"""The cache of vectors: what was kept comes back bit for bit, and a broken shard costs time, never a wrong vector."""

from __future__ import annotations

import numpy as np
import pytest

from genrec.errors import UserError
from genrec.text.cache import VectorCache, text_keys


def test_round_trip_over_shards_and_processes(tmp_path):
    texts = [f"text {number}" for number in range(50)] + ["", "红茶", "\ud800"]
    keys, vectors = text_keys(texts), np.random.default_rng(0).normal(size=(53, 4)).astype(np.float32)
    first = VectorCache(tmp_path, 4)
    first.put(keys[:20], vectors[:20])
    first.put(keys[20:], vectors[20:])
    for cache in (first, VectorCache(tmp_path, 4)):
        order = np.random.default_rng(1).permutation(53)
        actual, known = cache.get(np.concatenate([keys[order], text_keys(["never seen"])]))
        assert known[:-1].all() and not known[-1] and (actual[-1] == 0).all()
        assert np.array_equal(actual[:-1], vectors[order])


def test_keys_differ_where_texts_do():
    keys = text_keys(["a", "b", "a ", "A", "a"])
    assert len(np.unique(keys, axis=0)) == 4 and (keys[0] == keys[4]).all() and text_keys([]).shape == (0, 2)


@pytest.mark.parametrize("broken", ["vectors", "keys"])
def test_a_shard_cut_short_is_not_read(tmp_path, broken):
    keys = text_keys(["one", "two"])
    cache = VectorCache(tmp_path, 3)
    cache.put(keys, np.ones((2, 3), np.float32))
    path = next(tmp_path.glob(f"{broken}-*.npy"))
    path.write_bytes(path.read_bytes()[:-8])
    assert not VectorCache(tmp_path, 3).get(keys)[1].any()


def test_vectors_of_another_width_are_not_mixed_in(tmp_path):
    VectorCache(tmp_path, 3).put(text_keys(["one"]), np.ones((1, 3), np.float32))
    assert not VectorCache(tmp_path, 5).get(text_keys(["one"]))[1].any()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="text vectors: .*cannot be made"):
        VectorCache(tmp_path / "file" / "folder", 3)
