"""Our row of session search: what a shown list says, learnt on training lists, blended with the model's scores on
validation lists."""

from __future__ import annotations

import logging

import numpy as np
import torch

from genrec.data.dataset import Requests
from genrec.evaluation import search_protocols as protocols
from genrec.model.collate import request_batches
from genrec.ranking.impressions import NOTHING, SlateFeatures, SlateRanker
from genrec.ranking.ranker import Ranker

log = logging.getLogger(__name__)


@torch.inference_mode()
def dense_scores(ranker: Ranker, requests: Requests, items: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Log-probabilities of the model's retrieval for the items (N, C) of each request; ``NOTHING`` for an item that
    is not ``inside`` (N, C)."""
    generator = ranker.generator
    result = np.full(items.shape, NOTHING, np.float32)
    for rows, _, batch in request_batches(requests, ranker.collator(requests.query_texts), ranker.settings.batch_size):
        encoded = generator.network.encode(batch.to(generator.items.device), generator.items)
        scores = (generator.network.retrieval_vectors(encoded.requests[:, 0]) @ generator.index.T).log_softmax(-1).cpu()
        found = scores.gather(1, torch.from_numpy(np.where(inside[rows], items[rows], 0))).numpy()
        result[rows] = np.where(inside[rows], found, NOTHING)
    return result


def impression_rows(protocol, asked: protocols.ProtocolRequests) -> np.ndarray:
    """The lists of ``asked`` ranked: (N, C) item ids, -1 where empty. Nothing of it is fitted on them."""
    evidence = SlateFeatures(protocol.data)

    def model(one: protocols.ProtocolRequests) -> np.ndarray:
        inside = protocols.familiar(protocol.data, one.requests, one.shown.items, protocol.last)
        return dense_scores(protocol.ranker, one.requests, one.shown.items, inside)

    train = protocols.session_search(protocol.data, "train")
    ranker = SlateRanker.fit(
        evidence.features(train.requests, train.shown), train.shown, train.requests.targets, protocol.run.config.seed
    )
    try:
        valid = protocols.session_search(protocol.data, "valid")
    except protocols.UserError:
        valid = None
    if valid is not None:
        own = ranker.own_scores(evidence.features(valid.requests, valid.shown), valid.shown)
        ranker.fit_blend(own, model(valid), valid.shown, valid.requests.targets)
        log.info("shown lists: %.2f x what the list says + %.2f x the model", *ranker.blend.tolist())
    own = ranker.own_scores(evidence.features(asked.requests, asked.shown), asked.shown)
    scores = ranker.scores(own, model(asked), asked.shown)
    return protocols.shown_order(asked.shown.items, scores)
