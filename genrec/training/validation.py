"""Validation by ranking: nDCG@10 and Recall@10 of retrieval and generation, AUC of the ranking head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genrec.generation.beam import leaf_items
from genrec.generation.scorers import generate
from genrec.model.device import scores as float_scores
from genrec.model.device import to_device
from genrec.model.network import GenerativeRecommender
from genrec.model.node_vectors import NodeVectors
from genrec.objectives.ranking import area_under_curve
from genrec.training.data_module import ValidationBatch
from genrec.training.distributed import gather

BEAM = 50  # the default of a search: fewer lose what the user already had, many films of a long history
MIN_QUALITY = 1e-6  # of an answer that finds nothing, so that the ratios of the others still tell epochs apart


class Validation:
    """The ranks and logits of one pass over the validation requests.

    Item and node vectors are computed once a pass: the weights do not change in it.
    """

    def __init__(self, network: GenerativeRecommender):
        self.network = network
        self.ranks: dict[str, list[Tensor]] = {}  # of the targets, by kind of request and answer
        self.logits: list[Tensor] = []  # (n, stages) of impressions
        self.reached: list[Tensor] = []
        self.vectors: tuple[Tensor, Tensor | NodeVectors | None] | None = None

    def add(self, part: ValidationBatch) -> None:
        """Answer a batch."""
        network, batch = self.network, part.batch
        if batch is None:
            return
        if self.vectors is None:
            items = network.item_encoder()
            decoder = network.decoder
            nodes = None if decoder is None else decoder.node_vectors(network.catalogue.trie, items)
            self.vectors = items, nodes
        items, nodes = self.vectors
        encoded = network.encode(batch, items)
        if batch.impressions is not None:
            impressions = batch.impressions
            logits = network.rank(encoded, impressions.row, impressions.column, impressions.items, impressions.features)
            host = batch.on_host.impressions
            assert host is not None
            exists = tuple(to_device(index, logits.device) for index in (host.items >= 0).nonzero(as_tuple=True))
            self.logits.append(logits[exists])
            self.reached.append(impressions.reached[exists])
            return
        targets, kind = batch.targets[:, :1], "search_" if (batch.on_host.request_queries > 0).all() else ""
        scores = float_scores(network.retrieval_vectors(encoded.requests[:, 0]), network.item_index(items))
        scores[part.seen_rows, part.seen_items] = -torch.inf
        # "Not below" counts ties and NaN as above: neither a constant nor a broken network may rank every target first.
        ranks = (~(scores < scores.gather(1, targets))).sum(1) - 1
        self.ranks.setdefault(f"{kind}retrieve", []).append(ranks)
        if network.decoder is not None and nodes is not None:
            trie = network.catalogue.trie
            leaves, total = generate(network.decoder, network.decoder_memory(encoded), nodes, trie, BEAM)
            ids, total = leaf_items(trie, leaves, total, lambda some: scores.gather(1, some.clamp(min=0)))
            hidden = (ids < 0) | scores.gather(1, ids.clamp(min=0)).isneginf()
            total = total.masked_fill(hidden, -torch.inf)
            match = (ids == targets) & total.isfinite()
            own = torch.where(match, total, -torch.inf).amax(1, keepdim=True)
            ranks = torch.where(match.any(1), (total > own).sum(1), 10**9)
            self.ranks.setdefault(f"{kind}generate", []).append(ranks)

    def metrics(self, stages: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        """Metrics over all processes, and their ``quality``.

        Quality is the geometric mean, because metrics of searches are several times those of recommendations.
        """
        result, quality = {}, []
        everybody = gather({mode: torch.cat(parts).cpu() for mode, parts in self.ranks.items()})
        for mode in dict.fromkeys(mode for one in everybody for mode in one):
            rank = torch.cat([one[mode] for one in everybody if mode in one]).sort().values.float().to(device)
            hit = rank < 10
            gain = torch.where(hit, 1 / torch.log2(rank + 2), torch.zeros_like(rank)).mean()
            result[f"{mode}_recall@10"], result[f"{mode}_ndcg@10"] = hit.float().mean(), gain
            quality.append(gain)
        own = (torch.cat(self.logits).cpu(), torch.cat(self.reached).cpu()) if self.logits else None
        judged = [one for one in gather(own) if one is not None]
        if judged:
            logits, reached = (torch.cat(parts) for parts in zip(*judged, strict=True))
            areas = [area_under_curve(logits[:, stage], reached[:, stage]) for stage in range(logits.shape[1])]
            for name, area in zip(stages, areas, strict=True):
                result[f"{name}_auc"] = torch.tensor(area, device=device)
            quality.append(torch.tensor(areas, device=device).nanmean())
        if quality:
            result["quality"] = torch.stack(quality).clamp(min=MIN_QUALITY).log().mean().exp()
        else:
            result["quality"] = torch.tensor(0.0, device=device)
        return result
