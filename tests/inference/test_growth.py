"""A large catalogue: nodes that no search reads are not kept, added items are merged while requests are answered."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from genrec.catalogue.trie import build_trie
from genrec.inference.requests import RecommendationRequest
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
    monkeypatch.setattr("genrec.model.code_decoder.LARGE_TRIE", 0)
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

    monkeypatch.setattr("genrec.inference.changing_catalogue.threading.Thread", Now)
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


def in_trie(model) -> set[str]:
    trie = model.snapshot.catalogue.trie
    return {model.snapshot.item_ids[item] for item in trie.leaf_items.tolist()}


def code_search(model, history):
    """Ids and scores of the code search, and how much of them is proven."""
    request = RecommendationRequest(history=history, k=30, mode="generate")
    response = model.ask([request])[0]
    return [(one.item_id, one.score) for one in response.items], response.n_proven


@pytest.mark.parametrize("large_trie", [0, 1 << 30])
def test_a_removed_item_is_as_if_it_had_never_been_added(model, history, monkeypatch, large_trie):
    monkeypatch.setattr("genrec.model.code_decoder.LARGE_TRIE", large_trie)
    model, never = type(model)(model.run), type(model)(model.run)
    for one in (model, never):
        one.add_items(things(0, 5))
    model.add_items(things(5, 40))
    before = code_search(never, history)
    assert code_search(model, history) != before  # the items take a part of the probability
    model.remove_items([f"n{number}" for number in range(5, 40)])
    trie, other = (one.snapshot.catalogue.trie for one in (model, never))
    assert in_trie(model) == in_trie(never) and trie.n_nodes == other.n_nodes and trie.n_items > other.n_items
    items, n_proven = code_search(model, history)
    same(items, before[0])
    assert n_proven == before[1]
    facets = [one.facets(["brand", "price"]) for one in (model, never)]
    assert facets[0] == facets[1]
    walks = [[(leaf.node, leaf.items) for leaf in one.walk(history=history).leaves] for one in (model, never)]
    assert walks[0] == walks[1]
    assert model.recommend(history=[*history, "n20"], k=5)  # it still counts in histories
    assert not {one.item_id for one in model.search("polvoxka thing 20", k=50)} & {"n20", "n39"}
    # Its words are forgotten, also as corrections of misspelt and half-typed ones, until an item has them again.
    model.add_items([{"item_id": "zorb", "title": "Zorblax flumptious"}])
    model.remove_items(["zorb"])
    for query in ("zorblax", "zorblox", "flumpti"):
        ours, theirs = (one.search(query, k=20) for one in (model, never))
        assert ours.no_match and (ours.no_match, ours.match, ours.corrected) == (
            theirs.no_match,
            theirs.match,
            theirs.corrected,
        )
        same([(one.item_id, one.score) for one in ours], [(one.item_id, one.score) for one in theirs])
    model.add_items([{"item_id": "other", "title": "A zorblax"}])
    assert model.search("zorblox", k=1)[0].item_id == "other"
    model.add_items([{"item_id": "zorb"}])
    assert model.search("flumptious", k=1)[0].item_id == "zorb" and not model.search("flumptious").no_match


@pytest.mark.parametrize("large_trie", [0, 1 << 30])
def test_an_item_that_comes_back_is_as_it_was(model, history, monkeypatch, large_trie):
    """With the trained vectors of the nodes that left with it."""
    monkeypatch.setattr("genrec.model.code_decoder.LARGE_TRIE", large_trie)
    model = type(model)(model.run)
    items, (before, n_proven) = model.snapshot.item_ids[: model.snapshot.n_items // 2], code_search(model, history)
    best = [item for item, _ in before[:3]]
    model.remove_items([*best, *(item for item in items if item not in best)])
    assert not in_trie(model) & {*best, *items}
    assert not {item for item, _ in code_search(model, history)[0]} & {*best, *items}
    model.remove_items([model.snapshot.item_ids[-1]])
    model.add_items([{"item_id": item} for item in dict.fromkeys((*best, *items[::2])) if not model.snapshot.has(item)])
    model.add_items([{"item_id": model.snapshot.item_ids[-1]}])
    model.add_items([{"item_id": item} for item in items if not model.snapshot.has(item)])
    after = code_search(model, history)
    same(after[0], before)
    assert after[1] == n_proven and not model.ranker.generator.network.decoder.departed
    assert model.explain(best[0], history=history).path


def test_removed_items_leave_a_large_trie_with_the_next_merge(model, history, large):
    model.add_items(things(0, 5))
    gone = [*model.snapshot.item_ids[:4], "n1"]
    model.remove_items(gone)
    assert in_trie(model) >= set(gone[:4]) and "n0" not in in_trie(model)
    assert not {one.item_id for one in model.recommend(history=history, k=50, mode="generate")} & set(gone)
    assert model.walk(history=history).leaves  # the trie lacks the added items
    model.merge_items()
    assert not in_trie(model) & set(gone) and "n0" in in_trie(model)
    model.add_items([{"item_id": gone[0]}])
    assert gone[0] not in in_trie(model) and model.explain(gone[0], history=history).path  # merges
    assert gone[0] in in_trie(model) and not model.snapshot.ids.n_waiting(model.snapshot.removed)


def test_enough_removed_items_leave_by_themselves(model, large, monkeypatch):
    class Now:
        def __init__(self, target, **_):
            self.start = target

    monkeypatch.setattr("genrec.inference.changing_catalogue.threading.Thread", Now)
    monkeypatch.setattr("genrec.catalogue.semantic_ids.PENDING", 4 / model.snapshot.n_items)
    gone = model.snapshot.item_ids[:5]
    model.remove_items(gone[:4])
    assert in_trie(model) >= set(gone)
    model.remove_items(gone[4:])
    assert not in_trie(model) & set(gone)


def test_all_items_may_be_removed_and_come_back(model, history):
    before, items = code_search(model, history), model.snapshot.item_ids[:]
    model.remove_items(items)
    assert model.recommend(history=history, k=5) == [] and code_search(model, history)[0] == []
    model.add_items([{"item_id": item} for item in items])
    same(code_search(model, history)[0], before[0])
