"""Our row of session search: features of a slate, learnt on training slates, blended with the model's scores."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from genrec.data.dataset import Requests
from genrec.errors import UserError
from genrec.evaluation import search_protocols as protocols
from genrec.model.collate import request_batches
from genrec.ranking.impressions import NOTHING, SlateFeatures, SlateRanker, Slates
from genrec.ranking.ranker import Ranker

log = logging.getLogger(__name__)


@torch.inference_mode()
def dense_scores(ranker: Ranker, requests: Requests, items: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The model's retrieval log-probabilities of items (N, C); ``NOTHING`` for an item not ``inside`` (N, C)."""
    generator = ranker.generator
    result = np.full(items.shape, NOTHING, np.float32)
    for rows, _, batch in request_batches(
        requests, ranker.collator(requests.query_texts, requests.request_queries), ranker.settings.batch_size
    ):
        encoded = generator.network.encode(batch.to(generator.items.device), generator.items)
        scores = (generator.network.retrieval_vectors(encoded.requests[:, 0]) @ generator.index.T).log_softmax(-1).cpu()
        scored = scores.gather(1, torch.from_numpy(np.where(inside[rows], items[rows], 0))).numpy()
        result[rows] = np.where(inside[rows], scored, NOTHING)
    return result


def impression_rows(protocol: Any, requested: protocols.ProtocolRequests) -> np.ndarray:
    """The slates of ``requested`` ranked: (N, C) item ids, -1 where empty. Nothing is fitted on them."""
    evidence = SlateFeatures(protocol.data)

    def model(requests: Requests, slates: Slates) -> np.ndarray:
        inside = protocols.familiar(protocol.data, requests, slates.items, protocol.last)
        return dense_scores(protocol.ranker, requests, slates.items, inside)

    train = protocols.session_search(protocol.data, "train")
    slates = train.slates
    features = evidence.features(train.requests, slates)
    ranker = SlateRanker.fit(features, slates, train.requests.targets, protocol.run.config.seed)
    with suppress(UserError):  # no validation slates: the blend stays as it is
        valid = protocols.session_search(protocol.data, "valid")
        own = ranker.own_scores(evidence.features(valid.requests, valid.slates), valid.slates)
        ranker.fit_blend(own, model(valid.requests, valid.slates), valid.slates, valid.requests.targets)
        log.info("slates: %.2f x features of the slate + %.2f x the model", *ranker.blend.tolist())
    slates = requested.slates
    own = ranker.own_scores(evidence.features(requested.requests, slates), slates)
    scores = ranker.scores(own, model(requested.requests, slates), slates)
    return protocols.slate_order(slates.items, scores)
