from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from genrec.data.histories import Histories
from genrec.errors import UserError
from genrec.evaluation.baselines import DenseText, ItemKNN, Popularity
from genrec.retrieval.bm25 import BM25
from genrec.retrieval.cooccurrence import CooccurrenceTransition

N_ITEMS = 30


def random_lists(n_users: int = 60, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [
        rng.integers(0, N_ITEMS - 2, rng.integers(0, 9)).tolist() for _ in range(n_users)
    ]  # two items are never seen


def dense_had(lists):
    had = np.zeros((len(lists), N_ITEMS))
    for row, items in enumerate(lists):
        had[row, items] = 1
    return had


def as_lists(histories: Histories) -> list[list[int]]:
    return [part.tolist() for part in np.split(histories.items, histories.offsets[1:-1])]


def test_histories():
    lists = [[3, 1, 4], [], [1, 1]]
    histories = Histories.from_lists(lists)
    assert len(histories) == 3 and histories.offsets.dtype == np.int64 and histories.items.dtype == np.int32
    assert as_lists(histories.take(np.array([2, 0, 2, -1]))) == [[1, 1], [3, 1, 4], [1, 1], [1, 1]]
    assert as_lists(histories.slice(1, 9)) == [[], [1, 1]] and len(histories.slice(2, 1)) == 0
    assert as_lists(histories.last_n(1)) == [[4], [], [1]]
    assert histories.to_csr(5).toarray().tolist() == [[0, 1, 0, 1, 1], [0] * 5, [0, 2, 0, 0, 0]]
    np.testing.assert_allclose(histories.to_csr(5, lambda age: 0.5**age).toarray()[0], [0, 0.5, 0, 0.25, 1])
    np.testing.assert_allclose(histories.to_csr(5, np.arange(5)).toarray()[2], [0, 7, 0, 0, 0])
    assert len(Histories.from_lists([])) == 0
    with pytest.raises(UserError, match="ids from 0 to 3"):
        histories.to_csr(4)
    with pytest.raises(UserError, match="offsets"):
        Histories(np.array([0, 2]), np.array([1]))


@pytest.mark.parametrize("transitions", ["count", "log"])
def test_cooccurrence_equals_a_dense_reference(transitions):
    lists = random_lists()
    had = dense_had(lists)
    together = had.T @ had
    scale = 1 / np.sqrt(np.diag(together) + 1)
    np.fill_diagonal(together, 0)
    moves = np.zeros((N_ITEMS, N_ITEMS))
    for items in lists:
        for before, after in pairwise(items):
            moves[before, after] += before != after
    if transitions == "log":
        moves = np.log(1 + moves)
    table = scale[:, None] * together * scale[None, :] + 0.5 * (moves + 0.5 * moves.T)
    requested = random_lists(20, seed=1)
    expected = np.zeros((20, N_ITEMS))
    for row, items in enumerate(requested):
        for age, item in enumerate(reversed(items)):
            expected[row] += 0.6**age * table[item]
    model = CooccurrenceTransition(transitions=transitions).fit(Histories.from_lists(lists), N_ITEMS)
    scores = model.score(Histories.from_lists(requested))
    assert scores.dtype == np.float32 and scores.shape == (20, N_ITEMS)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


def test_cooccurrence_survives_saving(tmp_path):
    requested = Histories.from_lists(random_lists(9, seed=2))
    model = CooccurrenceTransition(decay=0.8, transitions="log", max_history=4).fit(
        Histories.from_lists(random_lists()), N_ITEMS
    )
    model.save(tmp_path / "cooccurrence.npz")
    loaded = CooccurrenceTransition.load(tmp_path / "cooccurrence.npz")
    np.testing.assert_array_equal(loaded.score(requested), model.score(requested))
    assert (loaded.decay, loaded.transitions, loaded.max_history) == (0.8, "log", 4)
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="broken.npz"):
        CooccurrenceTransition.load(tmp_path / "broken.npz")


def test_max_history_reads_the_newest_events():
    long = Histories.from_lists([[9, 8, 7, 1, 2]])
    short = Histories.from_lists([[1, 2]])
    for make in (lambda n: CooccurrenceTransition(max_history=n), lambda n: ItemKNN(max_history=n)):
        np.testing.assert_array_equal(make(2).fit(long, 10).score(short), make(50).fit(short, 10).score(short))


def test_item_knn_equals_a_dense_reference():
    lists = random_lists()
    had = dense_had(lists)
    root = np.sqrt(had.sum(0))
    similarity = had.T @ had / (np.outer(root, root) + 2.0)
    np.fill_diagonal(similarity, 0)
    order = np.argsort(-similarity, axis=1, kind="stable")
    for row in range(N_ITEMS):
        similarity[row, order[row, 5:]] = 0
    requested = random_lists(20, seed=1)
    scores = (
        ItemKNN(k=5, shrinkage=2.0).fit(Histories.from_lists(lists), N_ITEMS).score(Histories.from_lists(requested))
    )
    np.testing.assert_allclose(scores, dense_had(requested) @ similarity, rtol=1e-5, atol=1e-6)


def test_popularity_counts_events():
    scores = Popularity().fit(Histories.from_lists([[1, 1, 2], [1]]), 4).score(Histories.from_lists([[], [3]]))
    assert scores.tolist() == [[0, 3, 1, 0]] * 2 and scores.dtype == np.float32


@pytest.mark.parametrize("model", [Popularity(), ItemKNN(), CooccurrenceTransition()])
def test_no_events_and_no_fit(model):
    with pytest.raises(UserError, match="fit"):
        model.score(Histories.from_lists([[1]]))
    scores = model.fit(Histories.from_lists([[], []]), 3).score(Histories.from_lists([[1], []]))
    assert scores.shape == (2, 3) and not scores.any()


def items_table() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "title": ["Rose water toner", "Argan oil shampoo", "Hair dryer model 5", None, "玫瑰水 爽肤水"],
            "brand": ["Heritage", None, "Conair", None, None],
            "category": [["Beauty", "Skin"], ["Beauty", "Hair"], ["Beauty", "Hair", "Tools"], None, None],
            "text": [None, "for dry hair", None, None, None],
        },
        schema={"title": pl.String, "brand": pl.String, "category": pl.List(pl.String), "text": pl.String},
    )


def test_bm25_finds_titles_brands_and_model_numbers():
    model = BM25().fit(items_table())
    queries = ["rose water toner", "ARGAN OIL shampoo", "hair dryer model 5", "conair", "玫瑰水"]
    scores = model.score(queries)
    assert scores.shape == (5, 5) and scores.dtype == np.float32
    assert scores.argmax(1).tolist() == [0, 1, 2, 2, 4]
    assert not model.score(["unheard", "", "the"]).any() and model.score([]).shape == (0, 5)


def test_bm25_equals_its_formula():
    texts = ["red shoe red", "blue shoe", "green hat with feather"]
    model = BM25(k1=1.5, b=0.6).fit(texts)
    # red: in one of three texts, twice in a text of three words; the mean length is 3: too little text to tell its
    # language, so "with" is no stop word
    weight = np.log(1 + (3 - 1 + 0.5) / (1 + 0.5)) * 2 / (2 + 1.5 * (1 - 0.6 + 0.6 * 3 / 3))
    np.testing.assert_allclose(model.score(["red"])[0], [weight, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(model.score(["red shoe"]), model.score(["red"]) + model.score(["shoe"]), rtol=1e-5)
    assert BM25().fit(["", ""]).score(["red"]).tolist() == [[0, 0]]


def test_dense_text_is_the_cosine():
    model = DenseText().fit(np.array([[2.0, 0.0], [1.0, 1.0], [0.0, 0.0]]))
    np.testing.assert_allclose(model.score(np.array([[3.0, 0.0]])), [[1, 2**-0.5, 0]], rtol=1e-6)
    with pytest.raises(UserError, match="expected"):
        model.score(np.zeros((1, 3)))
