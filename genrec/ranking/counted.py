"""Lists of training requests for the re-ranker of counts: nothing that they are described by has counted their targets.

The network has learnt the targets of training requests, so its features are left out, and a target counts only if a
source of counts proposes it. What the network proposes stays among the other candidates, as it is among those of a
request that is answered.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from genrec.config.schema import DecodingConfig
from genrec.data.dataset import TRAIN, Dataset
from genrec.data.heldback import held_back
from genrec.generation.options import SearchOptions
from genrec.ranking.candidates import COLLABORATIVE, Candidates
from genrec.ranking.features import FEATURES, CandidateFeatures, log_rank
from genrec.ranking.ranker import Ranker
from genrec.ranking.reranker import with_hits

NETWORK_FEATURES = ("generated", "in_beam", "retrieved", "retrieved_rank", "ranking")


def counted_lists(
    ranker: Ranker,
    dataset: Dataset,
    text: np.ndarray,
    limit: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[Candidates, Tensor]]:
    """Yield chunks of candidates and targets (B,), of at most ``limit`` training requests.

    The events of those requests are missing from all counts. ``text`` (n_items, text_dim): the items' text vectors.
    """
    for log, requests in held_back(dataset, limit, seed):
        counting = copy.copy(ranker)
        counting.generator = ranker.generator.counting(CandidateFeatures.build(log, text, TRAIN))
        for _, chunk, found in counting.candidates(requests, SearchOptions(), progress):
            targets = torch.from_numpy(chunk.targets.astype(np.int64)).to(found.union()[0].device)
            targets = targets[with_hits(found, targets)]
            yield without_network(found, targets, ranker.settings)


def without_network(found: Candidates, targets: Tensor, decoding: DecodingConfig) -> tuple[Candidates, Tensor]:
    """Lists without the network's features, and without those whose target (B,) no source of counts proposes."""
    ids, features = found.union()
    column = {name: features[..., index] for index, name in enumerate(FEATURES)}
    together = torch.exp(column["cooccurrence"]) + torch.exp(column["transition"])
    proposed = torch.zeros_like(ids, dtype=torch.bool)
    # The sources' own lists are among the candidates, so an item's rank here is that in its source.
    for scores, width in (
        (together, decoding.cooccurrence),
        (column["windowed"], decoding.windowed),
        (column["last_text"], decoding.text_neighbours),
        (column["ease"], COLLABORATIVE),
        (column["als"], COLLABORATIVE),
        (column["recent"], decoding.recent),
    ):
        proposed |= (log_rank(scores, ids >= 0).expm1() < width) & (scores > scores.amin(1, keepdim=True))
    kept = (proposed & (ids == targets[:, None])).any(1)
    features = features[kept].clone()
    features[..., [FEATURES.index(name) for name in NETWORK_FEATURES]] = 0
    return Candidates(ids[kept], features), targets[kept]
