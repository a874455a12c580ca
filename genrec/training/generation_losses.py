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
from genrec.objectives.distillation import draw_items
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
            drawn_items = teacher.draw()
        elif trie.n_items <= TAUGHT_CATALOGUE:
            teacher, teacher_loss = dense_teacher(network, encoded, row, column, targets)
            drawn_items = teacher.draw()
        else:
            teacher, teacher_loss, drawn_items = candidate_teacher(network, encoded, row, column, targets)
        paths = torch.stack([paths[0], trie.item_path[drawn_items]])  # and a walk that the teacher drew
    entered = torch.cat([torch.zeros_like(paths[..., :1]), paths[..., :-1]], dim=-1)
    nodes, index = (sampled_nodes if trie.n_nodes > LARGE_TRIE else walked_nodes)(trie, paths.flatten(0, 1))
    vectors = decoder.some_node_vectors(trie, encoded.items, nodes, means)
    states, _ = decoder.hidden(memory, vectors, index[entered].transpose(0, 1))
    states, scale, count = states.transpose(0, 1).flatten(0, 1), decoder.log_scale.exp(), len(row)
    request = torch.arange(count, device=row.device).repeat(len(paths))  # of each walk
    paths, biases = paths.flatten(0, 1), [bias.take(request) for bias in memory.biases]
    if teacher is None:
        return -path_log_probabilities(states, scale, vectors, trie, paths, index, biases, ignored).sum(-1).mean()
    steps, divergence = path_losses(states, scale, vectors, paths, teacher, index, request, biases, ignored)
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
) -> tuple[SubtreeMass, Tensor, Tensor]:
    """As ``dense_teacher`` over candidates, at a cost that does not depend on the catalogue; also an item it drew (N,).

    Candidates are the request's anchors and target, and ``TEACHER_DRAWS`` uniform draws that all requests share. A
    drawn item stands for the items that were not drawn: its probability is multiplied by one over its chance.
    """
    decoder, trie, state = network.decoder, network.catalogue.trie, encoded.requests[row, column]
    assert decoder is not None
    n_items, device = trie.n_items, state.device
    draws = torch.randint(n_items, (TEACHER_DRAWS,), device=device)
    own, live = targets[:, None], torch.ones_like(targets, dtype=torch.bool)[:, None]
    anchors = None if encoded.anchors is None else encoded.anchors.take(row, column)
    if anchors is not None:
        own, live = torch.cat([own, anchors.ids[:, 0]], 1), torch.cat([live, anchors.live[:, 0]], 1)
    with torch.no_grad():
        known = network.relevance(state, own, encoded.items)
        drawn = float_scores(network.retrieval_vectors(state), network.item_index(encoded.items[draws]))
        scores = torch.cat([known, drawn + math.log(n_items / TEACHER_DRAWS)], dim=1).float()
    ids = torch.cat([torch.where(live, own, n_items), draws.expand(len(state), -1)], dim=1)
    ids, order = ids.sort(dim=1, stable=True)  # of repeats the first stays: anchors stand before draws
    exists = (ids < n_items) & F.pad(ids[:, 1:] != ids[:, :-1], (1, 0), value=True)
    logs = scores.gather(1, order).masked_fill(~exists, -torch.inf).log_softmax(-1)
    loss = logs.new_zeros(())
    if decoder.pointer is not None:
        assert anchors is not None
        detached = state[:, None].detach()
        with torch.no_grad():
            relevance = network.relevance(detached, anchors.ids, encoded.items)
        copy_bias = decoder.pointer.items(detached, anchors, relevance, n_items)
        gained = logs + copy_bias.for_rows(ids)
        total, target = gained.logsumexp(1), ids.eq(targets[:, None]).long().argmax(1)
        loss = (total - gained.gather(1, target[:, None])[:, 0]).mean()
        logs = (gained - total[:, None]).detach()
    items = ids.gather(1, draw_items(logs)[:, None])[:, 0]
    return SubtreeMass.of_candidates(trie, ids.masked_fill(~exists, -1), logs), loss, items
