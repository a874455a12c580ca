"""A large catalogue: nodes that no search reads are not kept, added items are merged while requests are answered."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from genrec.catalogue.trie import build_trie
from genrec.inference.snapshot import CatalogueSnapshot
from genrec.model.node_vectors import NodeVectors, means_of, node_means, read_nodes, row_of_nodes
from genrec.retrieval.similar_texts import SimilarTexts

MODES = ("fused", "retrieve", "generate")


@pytest.fixture
def large(monkeypatch):
    """Makes every catalogue a large one, whose added items wait."""
    monkeypatch.setattr("genrec.catalogue.semantic_ids.LARGE", 0)
    monkeypatch.setattr("genrec.catalogue.semantic_ids.PENDING", 10)


@pytest.fixture
def history(model):
    return [model.snapshot.item_ids[position] for position in (3, 9, 27)]


def things(first: int, last: int) -> list[dict]:
    return [{"item_id": f"n{n}", "title": f"Polvoxka thing {n}"} for n in range(first, last)]


def answers(model, history) -> list[tuple[str, float]]:
    lists = [model.recommend(history=history, k=30, mode=mode) for mode in MODES]
    lists += [model.recommend(history=history, k=30, mode="generate", exclude_seen=False)]
    return [(answer.item_id, answer.score) for actual in lists for answer in actual]


def same(ours, theirs):
    assert [item for item, _ in ours] == [item for item, _ in theirs]
    assert [score for _, score in ours] == pytest.approx([score for _, score in theirs], abs=1e-4)


def test_nodes_that_no_search_reads_are_left_out(model, history, monkeypatch):
    """With the same answers, but for rounding, also after the trie has grown."""
    monkeypatch.setattr("genrec.model.saved.LARGE_TRIE", 0)
    other = type(model)(model.run)
    nodes = other.ranker.generator.nodes
    assert isinstance(nodes, NodeVectors) and len(nodes.table) < len(nodes)
    assert len(other.ranker.generator.network.decoder.nodes.weight) == len(nodes.table)
    for one in (model, other):
        one.recommend(history=history)
    same(answers(other, history), answers(model, history))
    paths = [one.explain(one.snapshot.item_ids[5], history=history).path for one in (model, other)]
    for ours, theirs in zip(*paths, strict=True):
        assert ours.probability == pytest.approx(theirs.probability, rel=1e-4)
    walks = [[leaf.node for leaf in one.walk(history=history).leaves] for one in (model, other)]
    assert walks[0] == walks[1]
    for one in (model, other):
        one.add_items(things(0, 40))
    grown = other.ranker.generator
    assert not grown.network.decoder.nodes.weight[-1].any() and not grown.nodes.table[-1].any()
    same(answers(other, history), answers(model, history))


def test_means_of_some_nodes_equal_those_of_all():
    torch.manual_seed(0)
    trie = build_trie(torch.randint(0, 4, (60, 4)), [4] * 4)
    items, nodes = torch.randn(60, 8), read_nodes(trie)
    means = means_of(trie, items, nodes, row_of_nodes(trie, nodes))
    assert 0 < len(nodes) < trie.n_nodes and not means[-1].any()
    torch.testing.assert_close(means[:-1], node_means(trie, items)[nodes])


def during_merge(monkeypatch, act):
    """Calls ``act`` once, when the first merge is computed and not yet in place."""
    merged, acts = CatalogueSnapshot.merged, [act]

    def slow(snapshot):
        result = merged(snapshot)
        if acts:
            acts.pop()()
        return result

    monkeypatch.setattr(CatalogueSnapshot, "merged", slow)


def test_items_change_while_added_ones_are_merged(model, history, large, monkeypatch):
    model.add_items(things(0, 20))
    gone = model.snapshot.item_ids[4]

    def act():
        model.add_items(things(20, 25))
        model.remove_items([gone, "n1"])
        model.update_items([{"item_id": "n2", "price": 3.0}])
        assert answers(model, history) and model.search("polvoxka thing 21", k=5)[0].item_id == "n21"

    during_merge(monkeypatch, act)
    snapshot = model.merge_items()
    assert snapshot.catalogue.n_pending == 5 and snapshot.catalogue.trie.n_items == snapshot.n_items - 5
    assert not snapshot.has(gone) and not snapshot.has("n1") and model.item("n2")["price"] == 3.0
    actual = {answer.item_id for answer in model.recommend(history=history, k=snapshot.n_items, mode="generate")}
    assert {"n0", "n2", "n19"} <= actual and not actual & {gone, "n1", "n20"}
    assert model.merge_items().catalogue.n_pending == 0
    actual = {answer.item_id for answer in model.recommend(history=history, k=snapshot.n_items, mode="generate")}
    assert {"n0", "n20", "n24"} <= actual
    other = type(model)(model.run)
    other.add_items(things(0, 25))
    other.remove_items([gone, "n1"])
    other.update_items([{"item_id": "n2", "price": 3.0}])
    other.merge_items()
    assert answers(model, history) == answers(other, history)


def test_a_text_that_changes_during_a_merge_is_in_the_node_vectors(model, history, large, monkeypatch):
    changed = {"item_id": model.snapshot.item_ids[7], "title": "Zorblax green teapot"}
    other = type(model)(model.run)
    for one in (model, other):
        one.add_items(things(0, 20))
    during_merge(monkeypatch, lambda: model.update_items([changed]))
    model.merge_items()
    other.update_items([changed])
    other.merge_items()
    assert not model.snapshot.catalogue.n_pending and answers(model, history) == answers(other, history)


def test_enough_added_items_are_merged_by_themselves(model, large, monkeypatch):
    threads = []

    class Now:
        def __init__(self, target, **_):
            self.start = target
            threads.append(target)

    monkeypatch.setattr("genrec.inference.recommender.threading.Thread", Now)
    n = model.snapshot.n_items
    monkeypatch.setattr("genrec.catalogue.semantic_ids.PENDING", 4 / n)
    model.add_items(things(0, 4))
    assert model.snapshot.catalogue.n_pending == 4 and not threads
    model.add_items(things(4, 5))
    assert not model.snapshot.catalogue.n_pending and len(threads) == 1


def test_what_a_merge_replaces_leaves_memory(model, history, large):
    """Suggestions read the first state for ever, but not its trie and node vectors."""
    generator = model.ranker.generator
    trie = generator.network.catalogue.trie
    old = [weakref.ref(part) for part in (generator.nodes, generator.network.decoder, trie, trie.item_path)]
    before = model.suggest(history=history)
    other = type(model)(model.run)
    del generator, trie
    model.add_items(things(0, 20))
    model.merge_items()
    model.recommend(history=history, mode="generate")
    gc.collect()
    assert [part() for part in old] == [None] * 4
    other.add_items(things(0, 20))
    assert other.suggest(history=history) == model.suggest(history=history) == before


def test_similar_texts_are_looked_up_for_searches_alone(model, history, monkeypatch):
    """Not for the queries that histories hold, whose similar items nobody reads."""
    of, looked_up = SimilarTexts.of, []

    def counted(similar, texts, queries, progress=None):
        looked_up.append(len(queries))
        return of(similar, texts, queries, progress)

    monkeypatch.setattr(SimilarTexts, "of", counted)
    past = [
        {"item_id": item, "query": f"{word} lamp"} for item, word in zip(history, ("red", "blue", "old"), strict=True)
    ]
    assert model.search("green kettle", history=past) and looked_up == [1]
    assert model.recommend(history=past) and looked_up == [1]
