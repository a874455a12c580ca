"""Auxiliary losses of a training step: hard negatives, reasoning steps, ranking.

Each is switched by config.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from genrec.config.schema import TrainingConfig
from genrec.model.batch import Batch
from genrec.model.device import to_device
from genrec.model.network import Encoded, GenerativeRecommender
from genrec.model.node_vectors import node_means
from genrec.objectives.hard_negatives import contrast, ignored_impressions, mined
from genrec.objectives.progressive import multi_label_loss, prefix_loss, step_levels, step_stages
from genrec.objectives.ranking import pairwise, pointwise
from genrec.objectives.retrieval import full_softmax

HARD_NEGATIVES = 20  # of a request: ignored impressions, else mined items
RANDOM_CANDIDATES = 20  # besides the hard ones, of a request that ranks
RANKED_FRACTION = 0.25  # of the requests rank in a step, in logs without impressions
ROUNDING = 1e-4  # of a score that was summed in another order


def hard_contrast(
    network: GenerativeRecommender,
    batch: Batch,
    encoded: Encoded,
    live: tuple[Tensor, ...],
    requests: Tensor,
    among: Tensor | None = None,
) -> Tensor:
    """InfoNCE of the targets at ``live`` (rows and columns) against ``HARD_NEGATIVES`` hard negatives each.

    ``requests`` (N, dim) are their unit vectors. Hard negatives are impressions without a reaction where the log has
    impressions, else mined among the items ``among`` (n,), None for all.
    """
    row, column = live
    impressions = batch.on_host.impressions
    if impressions is not None:
        hard = to_device(
            ignored_impressions(impressions, HARD_NEGATIVES, len(batch.items), len(encoded.items)), row.device
        )[row]
    else:
        hard, _, _, _ = _mined(network, batch, encoded, row, column, requests, among)
    return contrast(requests, network.item_index(encoded.items), batch.targets[live], hard)


def _mined(
    network: GenerativeRecommender,
    batch: Batch,
    encoded: Encoded,
    row: Tensor,
    column: Tensor,
    requests: Tensor,
    among: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # Padding and events that are not visible yet become the target, which mining leaves out anyway.
    targets = batch.targets[row, column]
    history = torch.where(encoded.visible[row, column], batch.items[row], targets[:, None])
    index = network.item_index(encoded.items).detach()
    return *mined(requests.detach(), index, targets, history, HARD_NEGATIVES, among), history


def progressive_loss(
    network: GenerativeRecommender, batch: Batch, encoded: Encoded, live: tuple[Tensor, ...], settings: TrainingConfig
) -> Tensor:
    """The mean over reasoning steps of what each has to learn; see ``genrec/objectives/progressive.py``."""
    if settings.progressive == "codes":
        return _by_codes(network, batch, encoded, live)
    steps, stages = encoded.blocks[1:], len(network.config.stages)
    total = encoded.requests.sum() * 0
    for step, (block, stage) in enumerate(zip(steps, step_stages(len(steps), stages), strict=True)):
        states = block.mean(2)
        if batch.impressions is not None:
            impressions = batch.impressions
            request, slot = batch.where(_slots)
            vectors = network.retrieval_vectors(states[impressions.row, impressions.column])[:, None]
            vectors = vectors.expand(-1, impressions.items.shape[1], -1)[request, slot]
            assert network.reasoning is not None and network.reasoning.calibration is not None
            scale, bias = network.reasoning.calibration[step]
            items, labels = encoded.items[impressions.items[request, slot]], impressions.reached[request, slot, stage]
            total = total + multi_label_loss(vectors, items, labels, bias, scale)
        else:  # without impressions, step k learns to find the items that reached stage k
            positive = batch.where(partial(_reached_targets, stage=stage))
            if len(positive[0]):
                vectors = network.retrieval_vectors(states[positive])
                total = total + full_softmax(vectors, network.item_index(encoded.items), batch.targets[positive])
    return total / len(steps)


def _reached_targets(batch: Batch, stage: int) -> Tensor:
    """Which requests have a target that reached ``stage``: (B, R) bool."""
    assert batch.reached is not None
    return (batch.targets >= 0) & batch.reached[..., stage]


def _slots(batch: Batch) -> Tensor:
    """Which slots of a batch's impressions hold an item: (N, C) bool."""
    assert batch.impressions is not None
    return batch.impressions.items >= 0


def _by_codes(network: GenerativeRecommender, batch: Batch, encoded: Encoded, live: tuple[Tensor, ...]) -> Tensor:
    steps = encoded.blocks[1:]
    total = encoded.requests.sum() * 0
    targets = batch.targets[live]
    if not len(targets):
        return total
    trie = network.catalogue.trie
    means = node_means(trie, encoded.items)
    for block, level in zip(steps, step_levels(len(steps), trie.depth), strict=True):
        states = network.retrieval_vectors(block.mean(2)[live])
        total = total + prefix_loss(states, means, trie, targets, level, network.config.temperature)
    return total / len(steps)


def ranking_loss(
    network: GenerativeRecommender,
    batch: Batch,
    encoded: Encoded,
    live: tuple[Tensor, ...],
    settings: TrainingConfig,
    among: Tensor | None = None,
) -> Tensor:
    """Pointwise and pairwise loss of the ranking head.

    Over impressions where the log has them; else over each target among random and mined items.
    """
    if network.config.stages:
        impressions = batch.impressions
        if impressions is None:
            return encoded.requests.sum() * 0
        candidates, reached = impressions.items, impressions.reached
        logits = network.rank(encoded, impressions.row, impressions.column, candidates, impressions.features)
    else:
        row, column = live
        drawn = (torch.rand(len(row)) < RANKED_FRACTION).nonzero()[:, 0]  # on the host: it decides a shape
        if not len(drawn):
            return encoded.requests.sum() * 0
        drawn = to_device(drawn, row.device)
        row, column = row[drawn], column[drawn]
        candidates, chance = drawn_candidates(network, batch, encoded, row, column, among)
        reached = torch.zeros(*candidates.shape, 1, dtype=torch.bool, device=row.device)
        reached[:, 0] = True
        # Hard negatives are drawn a thousand times as often as others: uncorrected, a high score would come to mean
        # "wrong".
        logits = network.rank(encoded, row, column, candidates) - chance.log()[..., None]
    exists = candidates >= 0
    total = logits.sum() * 0
    for stage in range(logits.shape[-1]):
        values, labels = logits[..., stage], reached[..., stage]
        total = total + pointwise(values, labels, exists)
        if settings.rank_pair_weight:
            total = total + settings.rank_pair_weight * pairwise(values, labels, exists)
    return total / logits.shape[-1]


def drawn_candidates(
    network: GenerativeRecommender,
    batch: Batch,
    encoded: Encoded,
    row: Tensor,
    column: Tensor,
    among: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Candidates (N, 1 + random + hard) of each request: the target first, -1 where a random item is the target.

    All but the first are of ``among`` (None: all). The second result, (N, same), is how often each is drawn as a
    negative of its request on average: logits learnt from such draws are corrected by it (logQ correction; Bengio and
    Senecal, IEEE TNN 2008).
    """
    targets = batch.targets[row, column]
    count = len(encoded.items) if among is None else len(among)
    random = torch.randint(count, (len(row), RANDOM_CANDIDATES), device=row.device)
    vectors = network.retrieval_vectors(encoded.requests[row, column])
    hard, lowest, share, history = _mined(network, batch, encoded, row, column, vectors, among)
    candidates = torch.cat([targets[:, None], random if among is None else among[random], hard], dim=1)
    with torch.no_grad():
        scores = network.relevance(encoded.requests[row, column], candidates.clamp(min=0), encoded.items)
    known = (candidates[:, :, None] == history[:, None]).any(2)  # never mined, however high they score
    known[:, 0] = False
    mined_too = (scores >= lowest[:, None] - ROUNDING) & ~known
    chances = RANDOM_CANDIDATES / count + share[:, None] * mined_too
    again = candidates == targets[:, None]
    again[:, 0] = False
    return candidates.masked_fill(again, -1), chances
