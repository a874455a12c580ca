"""What a training step learns beside retrieval and generation: hard negatives, reasoning steps, ranking. Each is switched by config."""

from __future__ import annotations

import torch
from torch import Tensor

from genrec.config.schema import TrainingConfig
from genrec.model.batch import Batch
from genrec.model.code_decoder import node_means
from genrec.model.network import Encoded, GenerativeRecommender
from genrec.objectives.hard_negatives import contrast, ignored_impressions, mined
from genrec.objectives.progressive import multi_label_loss, prefix_loss, step_levels, step_stages
from genrec.objectives.ranking import listwise, pairwise, pointwise
from genrec.objectives.retrieval import full_softmax

ROUNDING = 1e-4  # of a score that was summed in another order


def hard_items(
    network: GenerativeRecommender,
    batch: Batch,
    encoded: Encoded,
    row: Tensor,
    lane: Tensor,
    requests: Tensor,
    count: int,
    among: Tensor | None = None,
) -> Tensor:
    """Hard negatives (N, count) of the requests at ``row``, ``lane`` (N,) with unit vectors ``requests`` (N, dim); -1 for none.

    ``among`` (n,): ids of the items that may be mined; None for all.
    """
    if batch.impressions is not None:
        return ignored_impressions(batch.impressions, row, count, len(batch.items), len(encoded.items))
    return _mined(network, batch, encoded, row, lane, requests, count, among)[0]


def _mined(
    network: GenerativeRecommender,
    batch: Batch,
    encoded: Encoded,
    row: Tensor,
    lane: Tensor,
    requests: Tensor,
    count: int,
    among: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    # Padding and what is not visible yet point at the target, which is left out anyway.
    targets = batch.targets[row, lane]
    known = torch.where(encoded.visible[row, lane], batch.items[row], targets[:, None])
    return mined(requests.detach(), network.item_index(encoded.items).detach(), targets, known, count, among)


def hard_contrast(
    network: GenerativeRecommender,
    batch: Batch,
    encoded: Encoded,
    live: Tensor,
    requests: Tensor,
    count: int,
    among: Tensor | None = None,
) -> Tensor:
    """InfoNCE of the targets of ``live`` (B, R) against hard negatives; ``requests`` (N, dim) their unit vectors."""
    row, lane = live.nonzero(as_tuple=True)
    hard = hard_items(network, batch, encoded, row, lane, requests, count, among)
    return contrast(requests, network.item_index(encoded.items), batch.targets[live], hard)


def progressive_loss(
    network: GenerativeRecommender, batch: Batch, encoded: Encoded, live: Tensor, settings: TrainingConfig
) -> Tensor:
    """The mean over reasoning steps of what each has to learn; see ``genrec/objectives/progressive.py``."""
    steps = encoded.blocks[1:]
    if settings.progressive == "codes":
        return _by_codes(network, batch, encoded, live)
    total = encoded.requests.sum() * 0
    stages = len(network.config.stages)
    for step, (block, stage) in enumerate(zip(steps, step_stages(len(steps), stages), strict=True)):
        states = block.mean(2)
        if batch.impressions is not None:
            shown = batch.impressions
            known = shown.items >= 0
            vectors = network.retrieval_vectors(states[shown.row, shown.column])[:, None].expand(-1, known.shape[1], -1)
            scale, bias = network.reasoning.calibration[step]
            items, labels = encoded.items[shown.items[known]], shown.reached[..., stage][known]
            total = total + multi_label_loss(vectors[known], items, labels, bias, scale)
        else:  # the log only tells what was wanted: step k learns to find what reached stage k
            wanted = live & batch.reached[..., stage]
            if wanted.any():
                vectors = network.retrieval_vectors(states[wanted])
                total = total + full_softmax(vectors, network.item_index(encoded.items), batch.targets[wanted])
    return total / len(steps)


def _by_codes(network: GenerativeRecommender, batch: Batch, encoded: Encoded, live: Tensor) -> Tensor:
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
    live: Tensor,
    settings: TrainingConfig,
    among: Tensor | None = None,
) -> Tensor:
    """Of the candidates that were shown, where the log says so; else of each target among random and mined items."""
    if network.config.stages:
        shown = batch.impressions
        if shown is None:
            return encoded.requests.sum() * 0
        candidates, reached = shown.items, shown.reached
        logits = network.rank(encoded, shown.row, shown.column, candidates, shown.features)
    else:
        row, lane = live.nonzero(as_tuple=True)
        drawn = torch.rand(len(row), device=row.device) < settings.rank_share
        if not drawn.any():
            return encoded.requests.sum() * 0
        row, lane = row[drawn], lane[drawn]
        candidates, chance = drawn_candidates(network, batch, encoded, row, lane, settings, among)
        reached = torch.zeros(*candidates.shape, 1, dtype=torch.bool, device=row.device)
        reached[:, 0] = True
        # Hard negatives are drawn a thousand times as often as others; without this a high score would come to mean "wrong".
        logits = network.rank(encoded, row, lane, candidates) - chance.log()[..., None]
    known = candidates >= 0
    # Pairs of one request alone: of two requests of one person the one that saw the other's outcome would learn to expect the opposite.
    group = torch.arange(len(candidates), device=known.device)[:, None].expand_as(candidates)[known]
    total = logits.sum() * 0
    for stage in range(logits.shape[-1]):
        values, labels = logits[..., stage][known], reached[..., stage][known]
        total = total + pointwise(values, labels)
        if settings.rank_pair_weight:
            total = total + settings.rank_pair_weight * pairwise(values, labels, group)
        if settings.rank_list_weight:
            total = total + settings.rank_list_weight * listwise(values, labels, group)
    return total / logits.shape[-1]


def drawn_candidates(
    network: GenerativeRecommender,
    batch: Batch,
    encoded: Encoded,
    row: Tensor,
    lane: Tensor,
    settings: TrainingConfig,
    among: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Item ids (N, 1 + random + hard), all but the first of ``among`` (None: all): the target first, -1 where a random item is the target.

    And how often each is drawn as a negative of its request on average, (N, same): what a logit learnt from such draws has to be corrected by
    (logQ correction; Bengio and Senecal, IEEE TNN 2008).
    """
    targets = batch.targets[row, lane]
    count = len(encoded.items) if among is None else len(among)
    parts = [targets[:, None]]
    if settings.rank_negatives:
        drawn = torch.randint(count, (len(row), settings.rank_negatives), device=row.device)
        parts.append(drawn if among is None else among.to(row.device)[drawn])
    lowest = share = None
    if settings.hard_negatives:
        vectors = network.retrieval_vectors(encoded.requests[row, lane])
        hard, lowest, share = _mined(network, batch, encoded, row, lane, vectors, settings.hard_negatives, among)
        parts.append(hard)
    candidates = torch.cat(parts, dim=1)
    chance = torch.full(candidates.shape, settings.rank_negatives / count, device=row.device)
    if lowest is not None:
        with torch.no_grad():
            scores = network.relevance(encoded.requests[row, lane], candidates.clamp(min=0), encoded.items)
        chance = chance + share[:, None] * (scores >= lowest[:, None] - ROUNDING)
    again = candidates == targets[:, None]
    again[:, 0] = False
    # Without random negatives what lies below the hard ones is never drawn; it is taken for drawn as often as one item would be.
    return candidates.masked_fill(again, -1), chance.clamp(min=1 / count)
