"""The recommender: filters, ranks, reasons, batches, threads, and a catalogue that changes while it answers."""

from __future__ import annotations

import threading

import numpy as np
import polars as pl
import pytest
import torch

from genrec.catalogue.trie import build_trie
from genrec.errors import UserError
from genrec.inference.recommender import Diversity, Filters, RecommendationRequest
from genrec.ranking.candidates import CandidateGenerator

MODES = ("fused", "retrieve", "generate")


def ids(answers) -> list[str]:
    return [answer.item_id for answer in answers]


@pytest.fixture
def history(model):
    return [model.snapshot.item_ids[position] for position in (3, 9, 27)]


# --- filters and lists ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("someone", [True, False])
def test_filters_hold_for_everybody(model, history, mode, someone):
    snapshot, history = model.snapshot, history if someone else None
    masks = {name: snapshot.categories.mask(name) for name in snapshot.categories.names}
    name = next(name for name, mask in masks.items() if 4 <= mask.sum() < 40)
    inside = {snapshot.item_ids[item] for item in np.flatnonzero(masks[name])}
    actual = ids(
        model.recommend(history=history, k=80, mode=mode, filters=Filters(category=[name]), exclude_seen=False)
    )
    assert set(actual) == inside and len(actual) == len(inside)
    stock = snapshot.item_ids[10:20] + ["never heard of"]
    assert set(
        ids(model.recommend(history=history, k=80, mode=mode, filters=Filters(in_stock=stock), exclude_seen=False))
    ) == set(stock[:-1])
    blocked = ids(model.recommend(history=history, k=5, mode=mode))
    actual = ids(
        model.recommend(history=history, k=80, mode=mode, filters=Filters(blocked=blocked), exclude_seen=False)
    )
    assert not set(actual) & set(blocked) and len(actual) == snapshot.n_items - 5
    assert model.recommend(history=history, mode=mode, filters=Filters(in_stock=[])) == []


def test_unknown_categories_are_named(model):
    name = model.snapshot.categories.names[0]
    with pytest.raises(UserError, match=f"did you mean '{name}'"):
        model.recommend(filters=Filters(category=[name + "x"]))


def test_seen_items(model, history):
    assert not set(ids(model.recommend(history=history, k=80))) & set(history)
    assert set(ids(model.recommend(history=history, k=80, exclude_seen=False))) >= set(history)


@pytest.mark.parametrize("mode", MODES)
def test_rank_orders_exactly_the_candidates(model, history, mode):
    candidates = model.snapshot.item_ids[30:55]
    ranked = model.rank(candidates, history=history, mode=mode)
    assert sorted(ids(ranked)) == sorted(candidates) and [a.score for a in ranked] == sorted(
        (a.score for a in ranked), reverse=True
    )
    if mode != "fused":  # one source: the order among candidates is that of the whole list
        whole = [
            item
            for item in ids(model.recommend(history=history, k=80, mode=mode, exclude_seen=False))
            if item in candidates
        ]
        assert ids(ranked) == whole
    searched = model.rank(candidates, history=history, query=model.snapshot.titles[33], mode=mode)
    assert sorted(ids(searched)) == sorted(candidates)
    with pytest.raises(UserError, match="'nope'"):
        model.rank(["nope"])
    assert len(model.rank(candidates + candidates)) == len(candidates)


def test_diversity_by_code_prefix(model, history):
    plain = ids(model.recommend(history=history, k=40))
    codes = {
        item: int(model.snapshot.catalogue.codes[model.snapshot.index_of(item), 0]) for item in model.snapshot.item_ids
    }
    mixed = ids(model.recommend(history=history, k=8, diversity=Diversity(1, 1)))
    assert len({codes[item] for item in mixed}) == 8 > len({codes[item] for item in plain[:8]})
    firsts = list(dict.fromkeys(codes[item] for item in plain))
    assert [codes[item] for item in mixed] == firsts[:8], "the best item of each prefix, in the order of the plain list"
    assert ids(model.recommend(history=history, k=8, diversity=Diversity(5, 80))) == plain[:8]


def test_batches_equal_single_answers(model, history):
    name = model.snapshot.categories.names[0]
    users = model.dataset.user_ids[:6].to_list()
    questions = [
        *(RecommendationRequest(user, k=k) for user, k in zip(users, (1, 5, 10, 80, 3, 7), strict=True)),
        RecommendationRequest(history=history, query="scarf", exclude_seen=False),
        RecommendationRequest(history=history, filters=Filters(category=[name])),
        RecommendationRequest(),
        RecommendationRequest(history=history, mode="retrieve"),
        RecommendationRequest(
            history=history, candidates=tuple(model.snapshot.item_ids[:30]), k=30, exclude_seen=False
        ),
        RecommendationRequest(users[0], mode="generate", k=4),
    ]
    together = model.ask(questions)
    for question, response in zip(questions, together, strict=True):
        answers, alone = response.items, model.ask([question])[0].items
        assert ids(alone) == ids(answers) and len(answers) <= question.k
        assert np.allclose([a.score for a in alone], [a.score for a in answers], atol=1e-4)


def test_histories_with_times_are_put_in_order(model, history):
    events = [{"item_id": item, "timestamp": 1_000_000 + position * 86_400} for position, item in enumerate(history)]
    assert model.recommend(history=events) == model.recommend(history=events[::-1])
    assert model.recommend(history=[events[0] | {"timestamp": np.int64(1_000_000)}, *events[1:]]) == model.recommend(
        history=events
    )
    mixed = [{"item_id": history[0], "timestamp": 5_000}, history[1], {"item_id": history[2], "timestamp": 9_000}]
    same = [
        {"item_id": history[0], "timestamp": 5_000},
        {"item_id": history[1], "timestamp": 5_000},
        {"item_id": history[2], "timestamp": 9_000},
    ]
    assert model.recommend(history=mixed) == model.recommend(history=same)
    for wrong, words in (([{"item": "x"}], "unknown field 'item'"),
        ([{}], "no item_id"),
        ([{"item_id": "x", "timestamp": "noon"}], "wrong type"),
                         ([{"item_id": "x", "timestamp": 10**30}], "no number of seconds")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            model.recommend(history=wrong)


def test_a_known_user_seen_from_an_earlier_time(model):
    user = model.dataset.user_ids[4]
    stamps = np.asarray(model.dataset.timestamps[model.dataset.offsets[4] : model.dataset.offsets[5]])
    table = pl.DataFrame(
        {"user_id": [user], "timestamp": [int(stamps[2])], "query": [None]}, schema_overrides={"query": pl.String}
    )
    requests = model.requests(table)
    assert len(requests.items) == int((stamps <= stamps[2]).sum()) < len(stamps)
    assert model.recommend(user, timestamp=int(stamps[2])) != model.recommend(user)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_request_at_its_targets_own_time_does_not_see_it(model, split):
    """The same histories as the evaluation's own requests have: without the target, with everything known before it."""
    data = model.dataset
    targets = data.requests(split)
    owner = np.searchsorted(data.offsets, data.heldout_events(split), side="right") - 1
    table = pl.DataFrame(
        {
            "user_id": data.user_ids.gather(owner),
            "timestamp": targets.times,
            "query": pl.Series([None] * len(owner), dtype=pl.String),
        }
    )
    actual = model.requests(table)
    assert np.array_equal(actual.offsets, targets.offsets) and np.array_equal(actual.items, targets.items)


# --- why --------------------------------------------------------------------------------------------------------------


def test_explanations_add_up(model, history):
    query = model.dataset.query_texts[0]
    for question in (None, query):
        for answer in (model.search(question, history=history) if question else model.recommend(history=history))[:3]:
            why = model.explain(answer.item_id, history=history, query=question)
            assert why.score == pytest.approx(sum(part.contribution for part in why.features.values()), abs=1e-4)
            assert why.score == pytest.approx(answer.score, abs=1e-4), (
                "explained among the same candidates as it was ranked"
            )
            assert why.keywords and all(one.keyword and one.type for one in why.keywords)
            assert why.path[-1].items >= 1 and [step.code for step in why.path] == model.item(answer.item_id)["codes"]
            assert {near.item_id for near in why.neighbours} <= set(history) and len(why.neighbours) == 3
    actual = model.search(query, k=1)[0]
    assert set(model.explain(actual.item_id, query=query).words) <= set(query.lower().split())
    with pytest.raises(UserError, match="nope"):
        model.explain("nope")
    brand = model.snapshot.table["brand"][3]
    requested = [
        one.keyword
        for one in model.explain(model.snapshot.item_ids[3], query=f"{brand} anything").keywords
        if one.in_query
    ]
    assert [word.lower() for word in requested] == [brand.lower()]


def test_the_path_is_the_probability_of_generation(model, history):
    best = model.recommend(history=history, mode="generate", exclude_seen=False, k=1)[0]
    steps = model.explain(best.item_id, history=history).path
    assert np.log([step.probability for step in steps]).sum() == pytest.approx(best.score, abs=1e-3)


def test_the_walk_goes_down_the_tree(model, history):
    walk = model.walk(history=history, width=4)
    assert len(walk.levels) == model.snapshot.catalogue.trie.depth and all(len(level) <= 4 for level in walk.levels)
    for above, below in zip(walk.levels, walk.levels[1:], strict=False):
        assert {node.parent for node in below} <= {node.node for node in above}
    best = model.recommend(history=history, mode="generate", exclude_seen=False, k=1)[0].item_id
    wide = model.walk(history=history, width=50)  # a narrow beam may miss it
    assert best in [item.item_id for item in wide.leaves[0].items]


# --- a living catalogue -----------------------------------------------------------------------------------------------


def test_a_new_item_is_there_at_once(model, history):
    before = {mode: model.recommend(history=history, k=80, mode=mode) for mode in MODES}
    added = model.add_items([{"item_id": "new", "title": "Quux blue wool scarf", "category": ["Scarf"]}])
    assert added.added == ["new"] and model.item("new")["title"] == "Quux blue wool scarf"
    for mode in MODES:
        assert "new" in ids(model.recommend(history=history, k=81, mode=mode))
    assert ids(model.search("Quux blue wool scarf", mode="fused", k=3)).count("new") == 1
    assert "new" in ids(model.recommend(k=81, filters=Filters(in_stock=["new"])))
    assert model.recommend(history=["new"]) != model.recommend(), "a history of a new item says nothing"
    why = model.explain("new", history=history, query="blue scarf")
    assert why.path[-1].probability is not None and "scarf" in [
        one.keyword.lower() for one in why.keywords if one.in_query
    ]
    model.remove_items(["new"])
    for mode in MODES:
        after = model.recommend(history=history, k=80, mode=mode)
        assert "new" not in ids(after) and sorted(ids(after)) == sorted(ids(before[mode]))
    with pytest.raises(UserError, match="'new' is not in the catalogue"):
        model.item("new")
    assert model.add_items([{"item_id": "new"}]).restored == ["new"]


def test_old_items_keep_vectors_and_codes(model):
    old = model.snapshot
    model.add_items([{"item_id": f"n{n}", "title": f"Polvoxka thing number {n}"} for n in range(25)])
    new = model.snapshot
    assert torch.equal(new.ranker.generator.items[: old.n_items], old.ranker.generator.items)
    assert torch.equal(new.catalogue.codes[: old.n_items], old.catalogue.codes)
    fresh = build_trie(new.catalogue.codes, old.catalogue.trie.vocab_sizes)
    assert all(
        torch.equal(value, new.catalogue.trie.saved_tensors()[name]) for name, value in fresh.saved_tensors().items()
    )
    # a node below which nothing is new has the vector it had
    paths_old, paths_new = old.catalogue.trie.item_path, new.catalogue.trie.item_path[: old.n_items]
    same = old.catalogue.trie.node_item_count[paths_old] == new.catalogue.trie.node_item_count[paths_new]
    assert 0 < same.float().mean() < 1
    assert torch.allclose(
        old.ranker.generator.nodes[paths_old[same]], new.ranker.generator.nodes[paths_new[same]], atol=1e-6
    )


def test_growing_by_nothing_changes_nothing(model, history):
    from genrec.inference.growth import grow

    generator = model.ranker.generator
    same = CandidateGenerator(
        grow(generator.network, generator.network.catalogue), generator.features, generator.settings, generator.lexical
    )
    assert (
        torch.equal(same.items, generator.items)
        and torch.equal(same.nodes, generator.nodes)
        and torch.equal(same.popular.order, generator.popular.order)
    )


def test_an_added_item_equals_a_cold_item_of_training(model):
    """A new item has its text and the learnt vectors of its codes, and no id vector; an equal text is next to it."""
    title = "Targorra blue bamboo kettle"
    model.add_items([{"item_id": "a", "title": title}])
    model.add_items([{"item_id": "b", "title": title}, {"item_id": "c", "title": "Vevelo pink lamp"}])
    network, catalogue = model.ranker.generator.network, model.snapshot.catalogue
    trained, encoder = model.run.ranker("train+valid").generator.network.item_encoder, network.item_encoder
    starts = trained.code_rows[0] - catalogue.codes[0]
    sizes = torch.cat([starts[1:], torch.tensor([trained.codes.num_embeddings])]) - starts
    for name in "abc":
        position = model.snapshot.index_of(name)
        codes = catalogue.codes[position]
        learnt = trained.codes.weight[(codes + starts)[codes < sizes]].sum(0)
        expected = encoder.project(catalogue.text[position]) + learnt
        assert torch.allclose(model.ranker.generator.items[position], expected, atol=1e-5)
    a, b, c = (model.item(name)["codes"] for name in "abc")
    assert a[:3] == b[:3] and a != b and a[:3] != c[:3], "codes that are taken give way in the last two levels alone"


def test_growing_twice_is_growing_once(model, history):
    """What the first addition appended to the tables must not move what the second one reads from them."""
    items = [
        {"item_id": f"n{n}", "title": f"{word} thing number {n}"}
        for n, word in enumerate(["zyx", "lamp", "blue wool", "quux"] * 8)
    ]
    model.add_items(items)
    once = model.snapshot.ranker.generator
    other = type(model)(model.run)
    for start in range(0, len(items), 8):
        other.add_items(items[start : start + 8])
    again = other.snapshot.ranker.generator
    assert torch.equal(once.network.catalogue.codes, again.network.catalogue.codes)
    assert (
        torch.allclose(once.items, again.items)
        and torch.allclose(once.nodes, again.nodes)
        and torch.equal(once.popular.order, again.popular.order)
    )
    assert ids(model.recommend(history=history, k=40)) == ids(other.recommend(history=history, k=40))


def test_wrong_items(model):
    known = model.snapshot.item_ids[0]
    assert model.add_items([{"item_id": known, "title": "other"}]).unchanged == [known]
    before = model.snapshot
    for rows, words in (
        ([{"title": "x"}], "'item_id' is missing"),
        ([{"item_id": ""}], "no item_id"),
        ([{"item_id": None}], "no item_id"),
        ([{"item_id": "x"}, {"item_id": "x"}], "comes twice"),
        ([{"item_id": "x", "titel": "y"}], "did you mean 'title'"),
        ([{"item_id": "x", "price": "cheap"}], "data contract"),
        ([{"item_id": "x", "title": {"a": "b"}}, {"item_id": "y", "title": True}], "of one type"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            model.add_items(rows)
    with pytest.raises(UserError, match="nope"):
        model.remove_items([known, "nope"])
    assert model.snapshot is before or model.snapshot.n_items == before.n_items
    assert known in ids(model.recommend(k=80))
    model.add_items([{"item_id": "no words at all"}])
    assert "no words at all" in ids(model.recommend(k=81))


def test_many_threads_while_items_come_and_go(model, history):
    """Whoever asks sees a whole catalogue: no error, no removed item, full lists."""
    errors, stop = [], threading.Event()
    expected = set(model.snapshot.item_ids)

    def ask() -> None:
        try:
            while not stop.is_set():
                responses = model.ask(
                    [
                        RecommendationRequest(history=history, k=80, exclude_seen=False),
                        RecommendationRequest(query="blue scarf", k=5, exclude_seen=False),
                    ]
                )
                answers = [response.items for response in responses]
                assert len(answers[0]) == 80 and len(set(ids(answers[0]))) == 80 and len(answers[1]) == 5
                assert all(item in expected or item.startswith("t") for item in ids(answers[0]))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for n in range(8):
        model.add_items([{"item_id": f"t{n}", "title": f"blue scarf {n}"}])
        model.remove_items([f"t{n}"])
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]


@pytest.mark.parametrize("pending", [False, True])
def test_items_added_one_by_one_equal_items_added_at_once(model, history, monkeypatch, pending):
    """Tables, indexes, words and categories grow in place; ``pending`` items wait outside the trie until merged."""
    if pending:
        monkeypatch.setattr("genrec.catalogue.semantic_ids.LARGE", 0)
        monkeypatch.setattr("genrec.catalogue.semantic_ids.PENDING", 10)
    words = ["zyx", "lamp", "blue wool", "quux"]
    items = [
        {"item_id": f"n{n}", "title": f"{words[n % 4]} thing {n}", "brand": f"b{n % 3}", "category": [f"C{n % 5}", "D"]}
        for n in range(20)
    ]
    other, old = type(model)(model.run), model.snapshot
    category = old.categories.names[0]
    model.recommend(history=history, filters=Filters(category=[category]))  # makes the index of categories
    for item in items:
        model.add_items([item])
    other.add_items(items)
    grown = model.snapshot
    assert grown.catalogue.n_pending == (20 if pending else 0) and old.index_of("n0") == -1 and grown.index_of("n0") > 0
    assert np.array_equal(grown.categories.mask("C2"), other.snapshot.categories.mask("C2"))
    assert grown.categories.mask("C2").sum() == 4 and "C2" in grown.categories.names
    for name in ("brand", "category", "path"):
        ours, theirs = (getattr(one.ranker.generator.features.facts, name) for one in (grown, other.snapshot))
        assert np.array_equal(ours == ours[-1], theirs == theirs[-1]) and (ours == ours[-1]).sum() >= 4
    first = [item["item_id"] for item in items[:3]]
    for mode in ("retrieve", "fused"):
        assert ids(model.recommend(history=first, k=30, mode=mode)) == ids(
            other.recommend(history=first, k=30, mode=mode)
        )
        actual = ids(model.search("zyx thing", k=10, mode=mode))
        assert actual == ids(other.search("zyx thing", k=10, mode=mode))
    assert actual[0] in {"n0", "n4", "n8", "n12", "n16"}  # fused; it finds pending items
    inside = ids(model.recommend(history=history, k=9, filters=Filters(category=["C2"])))
    assert set(inside) == {"n2", "n7", "n12", "n17"}
    generated = set(ids(model.recommend(history=first, k=grown.n_items, mode="generate")))
    assert bool(generated & {item["item_id"] for item in items}) is not pending
    assert model.explain("n3", history=history).path and not model.snapshot.catalogue.n_pending
    whole = build_trie(model.snapshot.catalogue.codes, model.snapshot.ids.codebooks.sizes)
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, getattr(model.snapshot.catalogue.trie, name)), name
    for mode in ("generate", "fused"):
        assert ids(model.recommend(history=first, k=30, mode=mode)) == ids(
            other.merge_items() and other.recommend(history=first, k=30, mode=mode)
        )


def test_an_approximate_index_grows(model, history, monkeypatch):
    """Added items are found beside a FAISS index, and in it after enough of them."""
    for name, value in (("EXACT_NUMBERS", 0), ("TAIL", 8)):
        monkeypatch.setattr(f"genrec.retrieval.dense.{name}", value)
    other = type(model)(model.run)
    sizes = set()
    for number in range(20):
        other.add_items([{"item_id": f"n{number}", "title": f"Quux thing {number}"}])
        sizes.add(other.ranker.generator.dense.index.base.index.ntotal)
    assert len(sizes) == 3
    actual = {answer.item_id for answer in other.search("quux thing", k=30)}
    assert {f"n{number}" for number in range(20)} <= actual
    assert other.similar("n3", k=5)[0].item_id.startswith("n")
