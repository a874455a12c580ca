"""The quality report against numbers worked out by hand, and its figures."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from genrec.errors import UserError
from genrec.semantic_ids.figures import code_tree, plot_codebook_use, plot_prefixes, plot_tree
from genrec.semantic_ids.quantizers import Codebooks, default_sizes, fit_codebooks
from genrec.semantic_ids.report import headline, prefix_agreement, quality_report, summary


@pytest.fixture(scope="module")
def fitted(clustered):
    vectors = clustered(900, 24)
    return vectors, *fit_codebooks(vectors, (16, 8, 8), 2, 8, seed=3)


def test_quality_report(fitted):
    vectors, codebooks, codes = fitted
    popularity = np.arange(len(vectors))
    report = quality_report(codes, vectors, codebooks, popularity)
    _, counts = np.unique(codes, axis=0, return_counts=True)
    assert report["independent_coding_rate"] == pytest.approx((counts == 1).sum() / len(codes))
    assert report["distinct_prefixes"][1] == len(np.unique(codes[:, :2], axis=0))
    assert report["utilisation"]["CUR_L1L2"] == pytest.approx(report["distinct_prefixes"][1] / 128)
    assert report["gini"][2] < 0.05 < report["gini"][0]
    shared, random = report["neighbours"]["shared"], report["neighbours"]["random"]
    assert len(shared) == 5 and shared == sorted(shared, reverse=True) and shared[0] > 3 * random[0]
    assert json.loads(json.dumps(report)) == report


def test_report_counts_collisions_by_popularity():
    vectors = np.array([[0.0], [0.0], [5.0], [9.0]], np.float32)
    codebooks = Codebooks([np.array([[0.0], [5.0], [9.0], [20.0]], np.float32)])
    report = quality_report(np.array([[0], [0], [1], [2]]), vectors, codebooks, np.array([6, 2, 1, 1]))
    assert report["collisions"] == {"shared_items": 0.5, "weighted": 0.8, "popular": 1.0, "largest": 2}
    assert report["utilisation"] == {"CUR_L1": 0.75} and report["utilisation_reachable"] == {"CUR_L1": 0.75}
    assert report["reconstruction_error"] == [0.0]
    assert report["entropy_bits"] == [pytest.approx(1.5)]
    assert report["gini"] == [pytest.approx(0.375)]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_report_of_tiny_catalogues(n, tmp_path, clustered):
    vectors = clustered(n, 4)
    codebooks, codes = fit_codebooks(vectors, *default_sizes(n), seed=0)
    report = quality_report(codes, vectors, codebooks, None)
    json.dumps(report, allow_nan=False)
    assert len(headline(report)[0]) == 6 and str(n) in summary(report)
    if n == 1:
        plot_codebook_use(report, tmp_path / "use.png")
        plot_prefixes(report, tmp_path / "prefixes.png")


def test_neighbours_are_by_cosine():
    # by length each vector is nearest to one of another direction
    vectors = np.array([[1, 0], [10, 0.1], [0, 1], [0.1, 10]], np.float32)
    codebooks = Codebooks([np.eye(2, dtype=np.float32)])
    report = quality_report(np.array([[0], [0], [1], [1]]), vectors, codebooks)
    assert report["neighbours"] == {"shared": [pytest.approx(1 / 3)], "random": [pytest.approx(1 / 3)]}


def test_prefix_agreement_counts_common_prefixes():
    left = np.array([[0, 1], [0, 2], [1, 1], [1, 1]])
    right = np.array([[0, 1], [0, 1], [1, 1], [0, 1]])
    result = prefix_agreement(left, right)
    assert result["shared"] == [0.75, 0.5]
    assert result["random"] == [pytest.approx(0.5 * 0.75 + 0.5 * 0.25), pytest.approx(0.25 * 0.75 + 0.5 * 0.25)]


def texts_of(texts):
    return lambda rows: [texts[row] for row in rows]


def test_the_tree_names_nodes_by_their_own_words(tmp_path):
    texts = [
        "red lipstick x1",
        "red lipstick x2",
        "blue shampoo x3",
        "dry shampoo x4",
        "dry shampoo x5",
        "dry shampoo x6",
    ]
    codes = np.array([[3, 0], [3, 0], [5, 1], [5, 2], [5, 2], [5, 2]])
    tree = code_tree(codes, texts_of(texts))
    assert [(node["code"], node["items"]) for node in tree] == [(5, 4), (3, 2)]
    assert tree[0]["words"][0] in ("shampoo", "dry") and "lipstick" not in tree[0]["words"]
    assert set(tree[1]["words"]) == {"lipstick", "red"}
    assert [(child["code"], child["items"]) for child in tree[0]["children"]] == [(2, 3), (1, 1)]
    assert "blue" in tree[0]["children"][1]["words"]
    plot_tree(tree, tmp_path / "tree.png", 2)
    assert (tmp_path / "tree.png").stat().st_size > 1000
    for name in ("tree.svg", "tree-dark.svg"):
        assert (tmp_path / name).is_file()
    assert "lipstick" in (tmp_path / "tree.svg").read_text()


def test_children_are_named_by_contrast_with_their_siblings():
    """ "shampoo" is rare in the catalogue and common to both children: it names the parent, not them."""
    texts = ["shampoo dry"] * 3 + ["shampoo oily"] * 3 + ["lamp"] * 6
    codes = np.array([[0, 0]] * 3 + [[0, 1]] * 3 + [[1, 0]] * 6)
    tree = code_tree(codes, texts_of(texts))
    parent = next(node for node in tree if node["code"] == 0)
    assert "shampoo" in parent["words"]
    assert [child["words"] for child in parent["children"]] == [["dry"], ["oily"]]
    assert tree[0]["example"] == "lamp" or tree[1]["example"] == "lamp"


def test_keywords_name_nodes_before_words_do():
    keywords = pl.Series(
        [["opi nail lacquer", "opi"], ["opi nail lacquer", "opi"], ["dry shampoo"], []], dtype=pl.List(pl.String)
    )
    tree = code_tree(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), texts_of(["nothing of this"] * 4), keywords)
    assert tree[0]["words"] in (["opi"], ["opi nail lacquer"])  # the one says the other
    assert tree[1]["words"] == [] and tree[1]["children"][0]["words"] == ["dry shampoo"]  # one item of two has it


@pytest.mark.parametrize("keywords", [None, pl.Series([[], []], dtype=pl.List(pl.String))])
def test_a_catalogue_without_words_has_a_tree(tmp_path, keywords):
    tree = code_tree(np.array([[0], [1]]), texts_of(["", ""]), keywords)
    assert [node["words"] for node in tree] == [[], []]
    plot_tree(tree, tmp_path / "tree.png", 2)


def test_arrays_that_do_not_fit(fitted):
    vectors, codebooks, codes = fitted
    with pytest.raises(UserError, match="codes"):
        quality_report(codes[:, :3], vectors, codebooks)
    with pytest.raises(UserError, match="popularity"):
        quality_report(codes, vectors, codebooks, np.full(len(codes), -1))
