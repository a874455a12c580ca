"""Proposals: distinct, complete, rightly scored, and none lost for being certain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from genrec.data.dataset import TRAIN
from genrec.generation.options import SearchOptions
from genrec.model.collate import Collator
from genrec.model.query_features import QueryFeatures
from genrec.ranking import candidates
from genrec.ranking.candidates import MISSING, CandidateGenerator
from genrec.ranking.features import FEATURES, CandidateFeatures
from genrec.ranking.ranker import Ranker, seen_mask
from genrec.retrieval.allowed import AllowedItems, id_rows
from genrec.retrieval.dense import dense_index
from genrec.retrieval.lexical import LexicalIndex
from genrec.retrieval.protocol import RetrievalRequests
from genrec.retrieval.sources import LastItemNeighbours


@pytest.fixture(scope="module")
def requested(prepared_run):
    data = prepared_run.dataset
    requests = data.requests("test", "logged").take(np.arange(12))
    features = QueryFeatures.build(data.query_texts, prepared_run.ids.encoder)
    return requests, Collator(prepared_run.config.model, features).requests(requests)


def unseen(requests, *modes, k=10) -> SearchOptions:
    """Lists without the items of the requests' histories."""
    seen = id_rows(requests.offsets, requests.items)
    return SearchOptions(k, modes or ("fused",), allowed=AllowedItems(excluded=seen))


def generator(run, network, **settings) -> CandidateGenerator:
    features = CandidateFeatures.build(run.dataset, run.ids.catalogue.text.numpy(), TRAIN)
    return CandidateGenerator(
        network, features, replace(run.config.decoding, **settings), LexicalIndex.fit(run.dataset.item_table)
    )


def test_candidates_are_distinct_allowed_and_rightly_scored(prepared_run, network, requested):
    requests, batch = requested
    exclude = seen_mask(requests, prepared_run.dataset.n_items)
    made = generator(prepared_run, network, beam=5, dense=6, cooccurrence=7)
    actual = made.propose(made.encode(batch, requests), unseen(requests, k=6))
    similar, following = made.features.cooccurrence.score_parts(requests.histories)
    with torch.inference_mode():
        encoded = network.encode(batch)
        dense = network.retrieval_vectors(encoded.requests[:, 0]) @ network.item_index(encoded.items).T
        dense -= dense.masked_fill(exclude, -torch.inf).topk(6).values.logsumexp(1, keepdim=True)  # over the dense top
    words = made.lexical.score([requests.query_texts[query] for query in requests.request_queries])
    column = {name: actual.features[..., index] for index, name in enumerate(FEATURES)}
    for row, ids in enumerate(actual.ids.tolist()):
        live = [item for item in ids if item != MISSING]
        assert len(set(live)) == len(live) and live == sorted(live) and not exclude[row, live].any()
        assert set(dense[row].masked_fill(exclude[row], -torch.inf).topk(6).indices.tolist()) <= set(live)
        generated = [item for item in actual.generated[0][row].tolist() if item != MISSING]
        assert set(generated) <= set(live) and generated
        for slot, item in enumerate(ids):
            if item == MISSING:
                continue
            assert float(column["retrieved"][row, slot]) == pytest.approx(float(dense[row, item]), abs=1e-5)
            assert float(column["cooccurrence"][row, slot]) == pytest.approx(
                np.log(similar[row, item] + 1e-3), abs=1e-4
            )
            assert bool(column["transits"][row, slot]) == bool(following[row, item] > 0)
            assert float(column["lexical"][row, slot]) == pytest.approx(np.log(words[row, item] + 1e-3), abs=1e-4)
            assert float(column["lexical_share"][row, slot]) == pytest.approx(
                words[row, item] / max(words[row].max(), 1e-9), abs=1e-5
            )
            assert bool(column["in_beam"][row, slot]) == (item in generated)
            query = prepared_run.ids.encoder.encode([requests.query_texts[requests.request_queries[row]]])[0]
            assert float(column["text"][row, slot]) == pytest.approx(
                float(query @ prepared_run.ids.catalogue.text[item].numpy()), abs=1e-4
            )


def test_an_item_that_is_certain_is_still_proposed(prepared_run, network, requested, monkeypatch):
    """Its log-probability is exactly 0, which must not read as "nothing there"."""
    requests, batch = requested
    made = generator(prepared_run, network, dense=3, cooccurrence=0)
    made.searcher, made.dense.vectors = None, made.index * 1000
    made.dense.index = dense_index("exact", made.dense.vectors)
    queried = made.encode(
        replace(batch, request_queries=batch.request_queries * 0),
        replace(requests, request_queries=requests.request_queries * 0 - 1),
    )
    actual = made.propose(queried, SearchOptions(k=3))
    best, scores = (part[:, 0] for part in actual.retrieved)
    assert (scores == 0).any()
    assert (actual.ids == best[:, None]).any(1).all()


def test_a_list_does_not_depend_on_what_else_is_computed(prepared_run, network, requested, monkeypatch):
    """What only generates, or only retrieves, or comes in chunks of one request, equals what the whole pass finds."""
    requests, batch = requested
    made = generator(prepared_run, network, beam=5, dense=6)
    whole = made.propose(made.encode(batch, requests), unseen(requests, k=5))
    generated = made.propose(made.encode(batch, requests), unseen(requests, "generate", k=5))
    retrieved = made.propose(made.encode(batch, requests), unseen(requests, "retrieve", k=6))
    assert generated.ids is None and generated.retrieved is None and retrieved.generated is None
    for name, alone in (("generated", generated), ("retrieved", retrieved)):
        assert all(
            torch.equal(one, other) for one, other in zip(getattr(whole, name), getattr(alone, name), strict=True)
        )
    ranker = Ranker(made, prepared_run.config.model, prepared_run.ids.encoder, made.settings)
    together = ranker.rank(requests, SearchOptions(modes=ranker.modes))
    ranker.settings = replace(made.settings, batch_size=1)
    for mode in ranker.modes:
        ids, scores, _ = ranker.rank(requests, SearchOptions(modes=(mode,), beam=5, dense=10))[mode]
        assert np.array_equal(ids, together[mode][0]) and (ids[:, 0] >= 0).all()
        np.testing.assert_allclose(scores, together[mode][1], rtol=0, atol=5e-5)


def test_items_with_text_like_the_last_event_are_proposed_without_a_query(
    prepared_run, network, requested, monkeypatch
):
    """The nearest by text that may be proposed, not the event's own item; searches are left as they were."""
    monkeypatch.setattr(candidates, "COLLABORATIVE", 0)
    data = prepared_run.dataset
    requests = data.requests("test").take(np.arange(12))
    batch = Collator(
        prepared_run.config.model, QueryFeatures.build(data.query_texts, prepared_run.ids.encoder)
    ).requests(requests)
    exclude = torch.zeros(data.n_items, dtype=torch.bool)
    exclude[::3] = True
    options = SearchOptions(k=2, allowed=AllowedItems(mask=~exclude))
    few = {"beam": 2, "dense": 2, "cooccurrence": 0, "recent": 0}
    without, having = (generator(prepared_run, network, **few, text_neighbours=count) for count in (0, 4))
    before, after = (made.propose(made.encode(batch, requests), options).ids for made in (without, having))
    text, more = prepared_run.ids.catalogue.text, 0
    for row, history in enumerate(requests.histories.last_n(1).items.tolist()):
        like = (text @ text[history]).masked_fill(exclude, -1)
        like[history] = -1
        expected = set(like.topk(4).indices.tolist())
        assert expected | set(before[row].tolist()) - {MISSING} == set(after[row].tolist()) - {MISSING}
        more += len(expected - set(before[row].tolist()))
    assert more > 0
    searches, search_batch = requested
    actual = [made.propose(made.encode(search_batch, searches), SearchOptions(k=2)).ids for made in (without, having)]
    assert torch.equal(*actual)
    new = replace(requests, offsets=np.zeros_like(requests.offsets))
    asks = RetrievalRequests(new, torch.zeros(12, 16), torch.zeros(12, text.shape[1]))
    assert (LastItemNeighbours(having.text).top(asks, 4, AllowedItems())[0] == MISSING).all()


def test_what_many_people_take_at_the_time_is_proposed(prepared_run, network, requested):
    """A request without a query reads the counts of the moment before its last event; searches read none."""
    data = prepared_run.dataset
    requests = data.requests("test").take(np.arange(40))
    batch = Collator(
        prepared_run.config.model, QueryFeatures.build(data.query_texts, prepared_run.ids.encoder)
    ).requests(requests)
    made = generator(prepared_run, network, recent=5)
    found = made.propose(made.encode(batch, requests), SearchOptions(k=2))
    recent = made.features.recent
    column = FEATURES.index("recent")
    for row, until in enumerate(requests.reference_times(False).tolist()):
        moment = int(np.searchsorted(recent.times, until, side="right")) - 1
        counts = recent.table[moment].toarray()[0] if moment >= 0 else np.zeros(data.n_items)
        best = [item for item in np.argsort(-counts, kind="stable")[:5].tolist() if counts[item] > 0]
        ids = found.ids[row].tolist()
        assert set(best) <= set(ids)
        live = found.ids[row] >= 0
        expected = torch.log(torch.from_numpy(counts[found.ids[row][live]]).float() + 1e-3)
        torch.testing.assert_close(found.features[row, live, column], expected)
    searches, search_batch = requested
    alone = generator(prepared_run, network, recent=0)
    actual = [one.propose(one.encode(search_batch, searches), SearchOptions(k=2)).ids for one in (alone, made)]
    assert torch.equal(*actual)
