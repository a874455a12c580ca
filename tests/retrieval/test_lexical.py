"""Queries as people type them: typos, prefixes, joined and split words, synonyms, and nonsense."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from genrec.config.load import load_config
from genrec.data.dataset import Dataset
from genrec.data.prepare.pipeline import prepare
from genrec.errors import UserError
from genrec.retrieval.bm25 import BM25
from genrec.retrieval.lexical import LexicalIndex
from genrec.retrieval.lexical_fit import fit_judge, fit_lexical, tuned
from genrec.retrieval.match_judge import shuffled
from genrec.retrieval.synonyms import QueryChoices, find_synonyms
from genrec.retrieval.vocabulary import Vocabulary

TITLES = [
    "The Godfather", "Star Wars", "Star Kid", "Toy Story", "Terminator", "Terminal Velocity", "Jurassic Park",
    "Silence of the Lambs", "Spiderman", "Story of a Kid", "LED lamp 500ml rtx4090", "Romance in Paris",
]  # fmt: skip


@pytest.fixture
def index() -> LexicalIndex:
    popularity = np.array([400, 500, 2, 300, 300, 10, 200, 200, 50, 1, 1, 5])
    return LexicalIndex.fit(TITLES, popularity)


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("godfater", "godfather"),  # a letter is missing
        ("goodfather", "godfather"),
        ("jursasic", "jurassic"),  # two letters swapped
        ("starwars", "star wars"),
        ("toystory", "toy story"),
        ("500 ml lamp", "500ml lamp"),
        ("spider man", "spiderman"),
        ("silence of the la", "silence of the lambs"),
        ("star wa", "star wars"),
        ("termina", "terminator"),  # the popular one of two
        ("godfather", None),
        ("star", None),
        ("rtx4080", None),  # model numbers differ in one digit
        ("romantic paris", None),  # a related form matches and is no correction
    ],
)
def test_queries_are_read_as_the_catalogue_writes_them(index, typed, read):
    match = index.match(typed)
    assert match.read.corrected == read
    assert match.no_match == (typed == "rtx4080")
    if typed == "romantic paris":
        assert index.score([typed])[0].argmax() == 11


def test_a_misspelt_word_scores_as_the_word_itself(index):
    np.testing.assert_allclose(index.score(["jurasic park"]), index.score(["jurassic park"]))
    assert index.score(["godfater"])[0].argmax() == 0


def test_a_half_typed_word_is_completed_to_what_goes_with_the_others(index):
    assert index.read("star w").corrected == "star wars"
    assert index.read("toy st").corrected == "toy story"  # "star" is more popular
    assert index.read("st ").corrected is None  # a blank ends the word


def test_nonsense_is_told_from_queries(index):
    judge = fit_judge(index, TITLES, 0)
    judged = LexicalIndex(index.index, index.vocabularies, index.popularity, judge=judge)
    assert not any(judged.match(title).no_match for title in TITLES)
    assert all(judged.match(text).no_match for text in ("xqzvkj", "asdf qwer", "", "?!", "kjhgf bnmvx"))
    assert not any(judged.match(f"{title} qwvxz").no_match for title in TITLES)  # an unknown word is no reason
    assert 0 <= judged.match("xqzvkj").probability < judged.match("godfater").probability <= 1
    assert shuffled(["abc def"], 0) == shuffled(["abc def"], 0) != ["abc def"]


def test_added_items_are_found_at_once_and_keep_the_old_index(index):
    grown = index.grow(["Zanzibar Nights", "Star Voyage"])
    assert grown.n_items == len(TITLES) + 2 and index.match("zanzibr").no_match
    assert grown.read("zanzibr").corrected == "zanzibar"
    assert grown.score(["zanzi"])[0].argmax() == len(TITLES)
    np.testing.assert_allclose(grown.score(["star"])[0, : len(TITLES)], index.score(["star"])[0])
    for number in range(9):
        grown = grown.grow([f"word{number}x Quokka"])
    assert len(grown.vocabularies) <= 5 and (grown.score(["quoka"])[0] > 0).sum() == 9


def test_requests_read_what_evaluation_reads(index):
    queries = ["star", "godfater", "", "toy story"]
    sparse = index.sparse_scores(queries, 10).toarray()
    np.testing.assert_allclose(sparse, index.score(queries))
    ids = np.tile(np.arange(len(TITLES)), (4, 1))
    np.testing.assert_allclose(index.score_at(queries, ids), sparse)


def test_files(index, tmp_path):
    full = LexicalIndex(
        index.index, index.vocabularies, index.popularity, {"film": [("star", 0.4)]}, frozenset(["imax"]),
        fit_judge(index, TITLES, 0),
    )  # fmt: skip
    full.save(tmp_path / "lexical.npz")
    loaded = LexicalIndex.load(tmp_path / "lexical.npz")
    for one, other in ((full, loaded), (full.grow(["Zanzibar"]), loaded.grow(["Zanzibar"]))):
        for query in ("star w", "godfater", "film", "imax", "zanzibr", "xqzvkj", ""):
            assert one.match(query) == other.match(query)
            np.testing.assert_array_equal(one.score([query]), other.score([query]))
    with pytest.raises(UserError, match="not a saved lexical index"):
        LexicalIndex.load(tmp_path / "missing.npz")
    empty = LexicalIndex.fit(["", ""])
    empty.save(tmp_path / "empty.npz")
    assert LexicalIndex.load(tmp_path / "empty.npz").grow(["lamp"]).score(["lamp"])[0, 2] > 0


def test_a_changed_table_keeps_what_was_learnt(index):
    learnt = LexicalIndex(index.index, index.vocabularies, index.popularity, {"film": [("star", 0.4)]})
    table = pl.DataFrame(
        {
            "item_id": [str(row) for row in range(len(TITLES))],
            "title": ["Changed", *TITLES[1:]],
            "text": None,
            "brand": None,
            "category": None,
            "price": None,
        },
        schema_overrides={
            "text": pl.String, "brand": pl.String, "category": pl.List(pl.String), "price": pl.Float64,
        },
    )  # fmt: skip
    changed = learnt.refit(table)
    assert changed.score(["film"])[0].argmax() == 1 and changed.score(["changd"])[0].argmax() == 0
    assert changed.score(["godfather"]).max() == 0


def test_synonyms_come_from_what_people_choose_and_not_from_one_item():
    index = BM25(language="none").fit(["couch red", "couch blue", "couch green", "chair red", "chair blue", "lamp"])
    sofa = QueryChoices(
        ["sofa", "couch", "chair", "glow"],
        np.array([0, 0, 0, 1, 2, 3]),
        np.array([0, 1, 2, 0, 3, 5]),
        np.array([4, 4, 4, 40, 40, 9]),
    )
    actual = find_synonyms(sofa, index.terms, index.segments[0], "none")
    assert [word for word, _ in actual.get("sofa", [])][:1] == [] or actual["sofa"][0][0] == "couch"
    assert "glow" not in actual  # one item alone says nothing about words
    rare = QueryChoices(sofa.texts, sofa.query, sofa.item, np.array([4, 4, 4, 2, 90, 9]))
    assert find_synonyms(rare, index.terms, index.segments[0], "none")["sofa"][0][0] == "couch"


def test_settings_are_chosen_by_validation_searches_alone():
    """Titles mislead and categories are right: the weight of titles falls."""
    from genrec.retrieval.bm25 import FieldCounts

    n = 60
    counted = FieldCounts.of(
        {
            "title": [f"word{(index + 1) % n}" for index in range(n)],
            "category": [f"word{index} " * 2 for index in range(n)],
        }
    )
    queries = [f"word{index}" for index in range(n)]
    chosen = tuned(counted, queries, np.arange(n), BM25(language="none"), 0)
    assert chosen.weights["title"] < 2
    few = tuned(counted, queries[:5], np.arange(5), BM25(language="none"), 0)
    assert few.weights == BM25().weights


def test_nothing_after_training_is_read_into_words_or_popularity(prepared_run):
    data = prepared_run.dataset
    lexical = fit_lexical(data, "auto", 0)
    np.testing.assert_array_equal(lexical.popularity, data.item_counts(0))
    assert sum(QueryChoices.of(data).count) == int(((data.split == 0) & (data.queries >= 0)).sum())


def test_a_catalogue_of_ids_alone_has_an_empty_index(tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    rows = [f"u{n % 4},i{n * 7 % 11},{10**9 + n * 100_000}" for n in range(40)]
    (folder / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    config = load_config(None, ["data.reader=table", f"data.path={folder}"])
    lexical = fit_lexical(Dataset(prepare(config, tmp_path / "dataset")), "auto", 0)
    assert not lexical.index.terms and lexical.match("lamp").no_match


def test_a_vocabulary_finds_every_word_within_one_edit():
    rng = np.random.default_rng(0)
    words = sorted({"".join(rng.choice(list("abcdef"), rng.integers(3, 12))) for _ in range(400)})
    vocabulary = Vocabulary(words, np.arange(len(words)), np.ones(len(words)))
    for word in words[::7]:
        place = int(rng.integers(len(word)))
        for typed in (
            word[:place] + word[place + 1 :],
            word[:place] + "z" + word[place:],
            word[:place] + "z" + word[place + 1 :],
        ):
            if len(typed) >= 3 and typed not in vocabulary:
                assert word in dict(vocabulary.misspelt(typed)), (word, typed)
    completed = vocabulary.completions("ab")
    assert set(completed) == {word for word in words if word.startswith("ab") and word != "ab"}
