"""What the code decoder learns in a step: the targets' semantic IDs and the retrieval head's distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from genrec.catalogue.subtree_mass import SubtreeMass
from genrec.catalogue.trie import LARGE_TRIE
from genrec.config.schema import TrainingConfig
from genrec.model.device import scores as float_scores
from genrec.model.device import to_device
from genrec.model.network import Encoded, GenerativeRecommender
from genrec.objectives.generation import path_log_probabilities, path_losses
from genrec.objectives.walked_nodes import sampled_nodes, walked_nodes

# Up to so many items the teacher's distribution is over all of them. Above, a row of all items for each request would
# cost more than the rest of a step, and it is over candidates: the request's anchors, its target, and shared draws.
TAUGHT_CATALOGUE = 1 << 16
TEACHER_DRAWS = 1024


def generation_loss(
    network: GenerativeRecommender,
    encoded: Encoded,
    live: tuple[Tensor, ...],
    targets: Tensor,
    settings: TrainingConfig,
    means: Tensor | None = None,
    ignored: Tensor | None = None,
) -> Tensor:
    """Mean negative log-probability of the targets' semantic IDs, plus the distillation from the retrieval head.

    ``live`` are rows and columns (N,) of requests with a target, ``targets`` (B, R). ``means`` are the
    decoder's of the item vectors, where the caller has kept them. ``ignored`` (n_nodes,) bool: nodes that are no wrong
    answers.
    """
    decoder, trie = network.decoder, network.catalogue.trie
    assert decoder is not None
    row, column = live
    if settings.generate_share < 1:
        kept = torch.rand(len(row)) < settings.generate_share  # on the host: it decides a shape
        kept[:1] = True
        drawn = to_device(kept.nonzero()[:, 0], row.device)
        row, column = row[drawn], column[drawn]
    targets, memory = targets[row, column], network.decoder_memory(encoded, row, column)
    paths = trie.item_path[targets][None]  # (walks, N, levels): the observed walk of each request
    teacher, teacher_loss = None, torch.zeros((), device=row.device)
    if settings.distill_weight and settings.retrieve_weight:
        if memory.prior is not None and decoder.pointer is None:
            teacher = memory.prior.mass
        elif trie.n_items <= TAUGHT_CATALOGUE:
            teacher, teacher_loss = dense_teacher(network, encoded, row, column, targets)
        else:
            teacher, teacher_loss = candidate_teacher(network, encoded, row, column, targets)
        paths = torch.stack([paths[0], trie.item_path[teacher.draw()]])  # and a walk that the teacher drew
    entered = torch.cat([torch.zeros_like(paths[..., :1]), paths[..., :-1]], dim=-1)
    nodes, index = (sampled_nodes if trie.n_nodes > LARGE_TRIE else walked_nodes)(trie, paths.flatten(0, 1))
    vectors = decoder.some_node_vectors(trie, encoded.items, nodes, means)
    states, _ = decoder.hidden(memory, vectors, index[entered].transpose(0, 1))
    states, scale, count = states.transpose(0, 1).flatten(0, 1), decoder.log_scale.exp(), len(row)
    request = torch.arange(count, device=row.device).repeat(len(paths))  # of each walk
    paths, biases = paths.flatten(0, 1), [bias.take(request) for bias in memory.biases]
    if teacher is None:
        return -path_log_probabilities(states, scale, vectors, trie, paths, index, biases, ignored).sum(-1).mean()
    steps, divergence = path_losses(states, scale, vectors, paths, teacher, index, request, biases, ignored, count)
    distance = settings.distill_weight * divergence[count:].sum(-1).mean()
    return -steps[:count].sum(-1).mean() + distance + teacher_loss


def dense_teacher(
    network: GenerativeRecommender, encoded: Encoded, row: Tensor, column: Tensor, targets: Tensor
) -> tuple[SubtreeMass, Tensor]:
    """The retrieval head's distribution over the catalogue for N requests, and a loss of the teacher's own.

    The requests stand at ``row``, ``column`` (N,). With a pointer the head's logits gain the pointer's bonus for the
    anchors, which learns from the observed ``targets`` (N,) by cross-entropy.
    """
    decoder, trie = network.decoder, network.catalogue.trie
    assert decoder is not None
    state = encoded.requests[row, column]
    with torch.no_grad():
        logits = float_scores(network.retrieval_vectors(state), network.item_index(encoded.items[trie.leaf_items]))
        log_total = logits.logsumexp(1, keepdim=True)
    if decoder.pointer is None:  # in place from here on: a row is as long as the catalogue
        return SubtreeMass.of_mass(trie, logits.sub_(log_total).exp_()), logits.new_zeros(())
    assert encoded.anchors is not None
    anchors, state = encoded.anchors.take(row, column), state[:, None].detach()
    with torch.no_grad():
        relevance = network.relevance(state, anchors.ids, encoded.items)
    copy_bias = decoder.pointer.items(state, anchors, relevance, trie.n_items)
    ids, bonus = copy_bias.nodes[:, 0], copy_bias.bonus[:, 0]
    exists, first = ids < trie.n_items, F.pad(ids[:, 1:] != ids[:, :-1], (1, 0), value=True)
    leaf = trie.item_position[ids.clamp(max=trie.n_items - 1)]
    own = (logits.gather(1, leaf) - log_total).exp()
    gained = torch.where(exists & first, own * bonus.expm1(), 0.0).sum(1).log1p()
    rows = torch.arange(len(ids), device=ids.device)
    known = (logits.gather(1, trie.item_position[targets][:, None]) - log_total)[:, 0]
    chosen = known + copy_bias.for_pairs(rows, targets)
    logits.scatter_add_(1, leaf, torch.where(exists & first, bonus.detach(), 0.0))
    mass = logits.sub_(log_total + gained.detach()[:, None]).exp_()
    return SubtreeMass.of_mass(trie, mass), (gained - chosen).mean()


def candidate_teacher(
    network: GenerativeRecommender, encoded: Encoded, row: Tensor, column: Tensor, targets: Tensor
) -> tuple[SubtreeMass, Tensor]:
    """As ``dense_teacher`` over candidates, at a cost that does not depend on the catalogue.

    Candidates are the request's anchors and target, and ``TEACHER_DRAWS`` uniform draws that all requests share. A
    drawn item stands for the items that were not drawn: its probability is multiplied by one over its chance.
    """
    decoder, trie, state = network.decoder, network.catalogue.trie, encoded.requests[row, column]
    assert decoder is not None
    n_items, own = trie.n_items, targets[:, None]
    draws = torch.randint(n_items, (TEACHER_DRAWS,), device=state.device).sort().values  # in the order of leaves
    place = trie.item_position[own]
    anchors = None if encoded.anchors is None else encoded.anchors.take(row, column)
    if anchors is not None:
        own = torch.cat([own, anchors.ids[:, 0]], 1)
        place = torch.where(F.pad(anchors.live[:, 0], (1, 0), value=True), trie.item_position[own], n_items)
    with torch.no_grad():
        known = network.relevance(state, own, encoded.items).float()
        index = network.item_index(F.embedding(trie.leaf_items[draws], encoded.items))
        drawn = float_scores(network.retrieval_vectors(state), index) + math.log(n_items / TEACHER_DRAWS)
    position, scores = merged(draws, drawn, place, known, n_items)
    logs, loss = scores.log_softmax(-1), scores.new_zeros(())
    if decoder.pointer is not None:
        assert anchors is not None
        detached, ids = state[:, None].detach(), trie.leaf_items[position.clamp(max=n_items - 1)]
        with torch.no_grad():
            relevance = network.relevance(detached, anchors.ids, encoded.items)
        gained = logs + decoder.pointer.items(detached, anchors, relevance, n_items).for_rows(ids)
        total, target = gained.logsumexp(1), ids.eq(targets[:, None]).long().argmax(1)  # an own one is before draws
        loss = (total - gained.gather(1, target[:, None])[:, 0]).mean()
        logs = (gained - total[:, None]).detach()
    return SubtreeMass.of_positions(trie, position, logs), loss


def merged(draws: Tensor, drawn: Tensor, place: Tensor, known: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    """Positions (N, D + A), rising, and scores of shared ``draws`` (D,), which rise, and of ``place`` (N, A).

    ``drawn`` (N, D) and ``known`` (N, A) are their scores. Of a position that comes twice one keeps its score, before
    draws one of ``place``; the others get -inf, as do places that are ``padding``. Sorting all would cost several times
    as much.
    """
    (place, order), (n_own, n_draws) = place.sort(dim=1, stable=True), (place.shape[1], len(draws))
    again = F.pad(place[:, 1:] == place[:, :-1], (1, 0)) | (place == padding)
    known = known.gather(1, order).masked_fill(again, -torch.inf)
    before = torch.searchsorted(draws, place)  # draws before each
    same = draws[before.clamp(max=n_draws - 1)] == place
    twice = F.pad(draws[1:] == draws[:-1], (1, 1)).expand(len(place), -1)
    twice = twice.scatter(1, torch.where(same, before, n_draws), True)[:, :-1]
    drawn = drawn.masked_fill(twice, -torch.inf)
    is_own = torch.zeros(len(place), n_own + n_draws, dtype=torch.long, device=place.device)
    is_own = is_own.scatter(1, before + torch.arange(n_own, device=place.device), 1)
    passed = is_own.cumsum(1)
    source = torch.where(
        is_own > 0, passed + (n_draws - 1), torch.arange(is_own.shape[1], device=place.device) - passed
    )
    positions = torch.cat([draws.expand(len(place), -1), place], dim=1).gather(1, source)
    return positions, torch.cat([drawn, known], dim=1).gather(1, source)
