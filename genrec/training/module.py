"""The Lightning module: one training step, validation by ranking."""

from __future__ import annotations

import math

import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor

from genrec.config import Config
from genrec.decoding.beam import leaf_items
from genrec.decoding.scorers import generate
from genrec.model.code_decoder import node_means
from genrec.model.network import Batch, Encoded, GenerativeRecommender
from genrec.objectives.category import category_cross_entropy
from genrec.objectives.distillation import distillation, shared_candidates
from genrec.objectives.generation import path_log_probabilities, walked_nodes
from genrec.objectives.retrieval import full_softmax, sampled_softmax
from genrec.training.batches import Part, step_seed
from genrec.training.distributed import gather, gather_rows

VALIDATION_BEAM = 20
SMALL_CATALOGUE, NEGATIVES = 4096, 2048  # by rule: the whole softmax up to so many items, else so many drawn


class TrainingModule(L.LightningModule):
    """Cross-entropy on codes plus InfoNCE; validation nDCG@10 of retrieval and generation, already-had items removed."""

    def __init__(
        self, network: GenerativeRecommender, config: Config, steps_per_epoch: int, decoder_only: bool = False, categories: Tensor | None = None
    ):  # fmt: skip
        """``categories`` (n_items,) codes, -1 unknown: needed where ``training.category_weight`` is above 0."""
        super().__init__()
        self.decoder_only, self.categories = decoder_only, categories
        self.teacher: Batch | None = None  # of the step under way, see Part
        self.frozen: tuple[Tensor, Tensor] | None = None  # item vectors and node means of a fixed network
        self.network, self.settings, self.seed = network, config.training, config.seed
        self.steps_per_epoch = steps_per_epoch
        self.ranks: dict[str, list[Tensor]] = {}
        self.share = 1.0  # of this process's part in the step's mean loss, see Part
        self.decayed = {name for name, parameter in network.named_parameters() if parameter.ndim > 1}  # sharded ones lose their shape

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        # The random state depends on the place in the training alone: a run resumed anywhere equals an uninterrupted one.
        torch.manual_seed(step_seed(self.seed, self.current_epoch, index, self.global_rank))

    def backward(self, loss: Tensor, *args, **kwargs) -> None:
        super().backward(loss * self.share, *args, **kwargs)

    def log(self, name: str, value: Tensor, **kwargs) -> None:
        """Averaged over processes; a training loss by its share, so that the mean over a step's parts is that over its requests."""
        if name.startswith("train/"):
            value = value.detach() * self.share
        super().log(name, value, sync_dist=self.trainer.world_size > 1, **kwargs)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        if isinstance(self.trainer.strategy, FSDPStrategy):  # the norm over all shards
            self.trainer.strategy.model.clip_grad_norm_(gradient_clip_val)
        else:  # not Lightning's own, which refuses fused optimizers under bf16 for the sake of float16's scaled gradients
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), gradient_clip_val)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        if self.decoder_only:
            return self.decoder_step(batch)
        encoded = self.network.encode(batch)
        live = batch.targets >= 0
        targets = batch.targets[live]
        if len(targets) == 0:
            return encoded.requests.sum() * 0
        settings = self.settings
        loss = encoded.requests.sum() * 0
        if settings.retrieve_weight:
            requests = self.network.retrieval_vectors(encoded.requests[live])
            table = self.network.item_index(encoded.items)
            negatives = self.negatives(len(table))
            if negatives:
                # The candidates are the same on all processes: everybody's targets and one shared draw.
                draw = torch.Generator().manual_seed(step_seed(self.seed, self.current_epoch, index, -1))
                retrieve = sampled_softmax(requests, table, targets, negatives, gather_rows(targets), draw)
            else:
                retrieve = full_softmax(requests, table, targets, settings.label_smoothing)
            loss = loss + settings.retrieve_weight * retrieve + self.search_losses(batch, encoded, live, table)
            self.log("train/retrieve", retrieve)
        if self.network.decoder is not None and settings.generate_weight:
            generation = self.generation_loss(batch, encoded, live)
            loss = loss + settings.generate_weight * generation
            self.log("train/generate", generation)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def search_losses(self, batch: Batch, encoded: Encoded, live: Tensor, table: Tensor) -> Tensor:
        """Query -> category and keyword self-distillation, over the searches of the batch; 0 where both are off or nobody searches."""
        settings, network = self.settings, self.network
        searched = live & (batch.request_queries > 0)
        loss = encoded.requests.sum() * 0
        if not searched.any():
            return loss
        targets = batch.targets[searched]
        student = network.retrieval_vectors(encoded.requests[searched])
        if settings.category_weight:
            found = category_cross_entropy(student, encoded.items, targets, self.categories.to(targets.device), network.config.temperature)
            loss = loss + settings.category_weight * found
            self.log("train/category", found)
        if settings.distill_weight and self.teacher is not None:
            taught = network.retrieval_vectors(network.encode(self.teacher, encoded.items).requests[searched])
            items = shared_candidates(targets, len(table), self.negatives(len(table)))
            logits = taught @ table[items].T
            distance = distillation(student @ table[items].T, logits)
            teach = torch.nn.functional.cross_entropy(logits, torch.searchsorted(items, targets))
            loss = loss + settings.distill_weight * distance + settings.retrieve_weight * teach * searched.sum() / live.sum()
            self.log("train/distil", distance)
        return loss

    def negatives(self, n_items: int) -> int:
        """How many negatives a step draws; 0 for the softmax over the whole catalogue."""
        wanted = self.settings.negatives
        return wanted if wanted is not None else 0 if n_items <= SMALL_CATALOGUE else NEGATIVES

    def decoder_step(self, batch: Batch) -> Tensor:
        """The code decoder learns alone: everything before it is fixed, so item vectors and their means are computed once."""
        self.network.eval()
        self.network.decoder.train()
        with torch.no_grad():
            if self.frozen is None:
                items = self.network.item_encoder()
                self.frozen = items, node_means(self.network.catalogue.trie, items)
            encoded = self.network.encode(batch, self.frozen[0])
        live = batch.targets >= 0
        if not live.any():
            return sum(parameter.sum() for parameter in self.network.decoder.parameters()) * 0
        loss = self.generation_loss(batch, encoded, live, self.frozen[1])
        self.log("train/generate", loss)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def generation_loss(self, batch: Batch, encoded: Encoded, live: Tensor, means: Tensor | None = None) -> Tensor:
        """Mean negative log-probability of the targets' semantic IDs."""
        decoder, trie = self.network.decoder, self.network.catalogue.trie
        row, lane = live.nonzero(as_tuple=True)
        if self.settings.generate_share < 1:
            drawn = torch.rand(len(row), device=row.device) < self.settings.generate_share
            drawn[:1] = True
            row, lane = row[drawn], lane[drawn]
        paths = trie.item_path[batch.targets[row, lane]]
        entered = torch.cat([torch.zeros_like(paths[:, :1]), paths[:, :-1]], dim=1)
        nodes, place = walked_nodes(trie, paths)
        vectors = decoder.node_vectors(trie, encoded.items, nodes, means)
        states, _ = decoder.hidden(self.network.decoder_memory(encoded).take(row, lane), vectors, place[entered][:, None])
        steps = path_log_probabilities(states[:, 0], decoder.log_scale.exp(), vectors, trie, paths, place)
        return -steps.sum(-1).mean()

    def validation_step(self, pair: tuple[Batch, Tensor], index: int) -> None:
        batch, seen = pair
        encoded = self.network.encode(batch)
        requests = encoded.requests[:, 0]
        targets = batch.targets[:, :1]
        scores = self.network.retrieval_vectors(requests) @ self.network.item_index(encoded.items).T
        scores = scores.masked_fill(seen, -torch.inf)
        # "Not below" counts ties and NaN as above: neither a constant nor a broken network may rank every target first.
        self.ranks.setdefault("retrieve", []).append((~(scores < scores.gather(1, targets))).sum(1) - 1)
        if self.network.decoder is not None:
            trie = self.network.catalogue.trie
            vectors = self.network.decoder.node_vectors(trie, encoded.items)
            leaves, total = generate(self.network.decoder, self.network.decoder_memory(encoded), vectors, trie, VALIDATION_BEAM)
            ids, total = leaf_items(trie, leaves, total, scores)
            total = total.masked_fill((ids < 0) | seen.gather(1, ids.clamp(min=0)), -torch.inf)
            found = (ids == targets) & total.isfinite()
            own = torch.where(found, total, -torch.inf).max(1, keepdim=True).values
            rank = torch.where(found.any(1), (total > own).sum(1), 10**9)
            self.ranks.setdefault("generate", []).append(rank)

    def on_validation_epoch_end(self) -> None:
        quality = []
        everybody = gather({mode: torch.cat(parts).cpu() for mode, parts in self.ranks.items()})
        for mode in dict.fromkeys(mode for one in everybody for mode in one):
            rank = torch.cat([one[mode] for one in everybody if mode in one]).sort().values.float().to(self.device)
            hit = rank < 10
            gain = torch.where(hit, 1 / torch.log2(rank + 2), torch.zeros_like(rank)).mean()
            self.log(f"val/{mode}_recall@10", hit.float().mean())
            self.log(f"val/{mode}_ndcg@10", gain)
            quality.append(gain)
        self.log("val/quality", torch.stack(quality).mean() if quality else torch.tensor(0.0), prog_bar=True)
        self.ranks = {}

    def configure_optimizers(self) -> dict:
        settings = self.settings
        decay, plain = [], []
        for name, parameter in self.network.named_parameters():
            if not parameter.requires_grad:
                continue
            (decay if name in self.decayed else plain).append(parameter)
        groups = [{"params": decay, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
        total = max(self.steps_per_epoch * settings.epochs, 1)
        warmup = min(settings.warmup_steps, total // 10 + 1)

        def rate(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(total - warmup, 1))))

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, rate), "interval": "step"}}

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        if isinstance(batch, Part):
            self.share, self.teacher = batch.share, None if batch.teacher is None else batch.teacher.to(device)
            return batch.batch.to(device)
        return batch[0].to(device), batch[1].to(device)
