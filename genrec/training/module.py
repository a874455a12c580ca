"""The Lightning module: one training step, validation by ranking."""

from __future__ import annotations

import math
from dataclasses import replace

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn import functional as F

from genrec.config.schema import Config
from genrec.generation.beam import leaf_items
from genrec.generation.scorers import generate
from genrec.model.anchors import Anchors
from genrec.model.batch import Batch
from genrec.model.code_decoder import node_means
from genrec.model.network import Encoded, GenerativeRecommender
from genrec.objectives.category import category_cross_entropy
from genrec.objectives.distillation import TeacherMass
from genrec.objectives.generation import nodes_without, path_log_probabilities, path_losses, walked_nodes
from genrec.objectives.ranking import area_under_curve
from genrec.objectives.retrieval import Candidates, draw_candidates, full_softmax, sampled_softmax
from genrec.objectives.self_distillation import self_distillation
from genrec.training.average import Average
from genrec.training.batches import Part, step_seed
from genrec.training.distributed import gather, gather_rows
from genrec.training.extra_losses import hard_contrast, progressive_loss, ranking_loss

VALIDATION_BEAM = 20
LEAST_QUALITY = 1e-6  # of one answer that finds nothing: a mean of the others' ratios still tells epochs apart
TAUGHT_CATALOGUE = (
    1 << 16
)  # above it the retrieval head's distribution, a row of all items per request, would cost more than it teaches
SMALL_CATALOGUE, NEGATIVES = 4096, 2048  # by rule: the whole softmax up to so many items, else so many drawn


class TrainingModule(L.LightningModule):
    """Cross-entropy on codes plus InfoNCE; validation nDCG@10 of retrieval and generation, of recommendations (already-had items removed)
    and of searches. ``val/quality``, the geometric mean of all that was measured, chooses the epoch.
    """

    def __init__(
        self, network: GenerativeRecommender, config: Config, steps_per_epoch: int, decoder_only: bool = False, categories: Tensor | None = None,
        known: Tensor | None = None,
    ):  # fmt: skip
        """``categories`` (n_items,) codes, -1 unknown: needed where ``training.category_weight`` is above 0. ``known``: ids of the items
        that the softmax runs over, rising; None for all. Nodes of the trie with none of them below are no wrong answers either.
        """
        super().__init__()
        self.decoder_only, self.categories, self.known = decoder_only, categories, known
        self.register_buffer(
            "unlearnt", None if known is None else nodes_without(network.catalogue.trie, known), persistent=False
        )
        self.teacher: Batch | None = None  # of the step under way, see Part
        self.frozen: tuple[Tensor, Tensor] | None = None  # item vectors and node means of a fixed network
        self.network, self.settings, self.seed = network, config.training, config.seed
        self.steps_per_epoch = steps_per_epoch
        self.ranks: dict[str, list[Tensor]] = {}
        self.judged: list[tuple[Tensor, Tensor]] = []
        self.average: Average | None = None
        self.kept: dict[str, Tensor] | None = None  # the average of the checkpoint that is gone on from
        self.share = 1.0  # of this process's part in the step's mean loss, see Part
        self.decayed = {
            name for name, parameter in network.named_parameters() if parameter.ndim > 1
        }  # sharded ones lose their shape

    def on_train_start(self) -> None:  # the weights are where they stay, and those of a checkpoint are read
        if self.settings.ema:
            self.average = Average(self.network, self.settings.ema, self.kept)
            self.kept = None

    def optimizer_step(self, *args, **kwargs) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update(self.trainer.global_step)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        if self.average is not None:
            checkpoint["average"] = self.average.values

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.kept = checkpoint.get("average")

    def on_validation_start(self) -> None:
        if self.average is not None:
            self.average.swap_in()

    def on_validation_end(self) -> None:  # after the callbacks
        if self.average is not None:
            self.average.swap_out()

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

    def configure_model(self) -> None:
        """With ``training.strategy=fsdp``: every parameter, its gradient and its moments lie in shards, one on each process."""
        if isinstance(self.trainer.strategy, ModelParallelStrategy) and not isinstance(self, FSDPModule):
            fully_shard(self, mesh=self.device_mesh["data_parallel"])
            for name in ("training_step", "validation_step"):
                register_fsdp_forward_method(self, name)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        # Not Lightning's own, which refuses fused optimizers under bf16 for the sake of float16's scaled gradients.
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), gradient_clip_val)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        loss = self.step_loss(batch, index)
        if isinstance(
            self, FSDPModule
        ):  # shards are summed over the processes, so each parameter needs a gradient on all of them
            loss = loss + 0 * sum(parameter.sum() for parameter in self.network.parameters() if parameter.requires_grad)
        return loss

    def step_loss(self, batch: Batch, index: int) -> Tensor:
        if self.decoder_only:
            return self.decoder_step(batch)
        live, settings = batch.targets >= 0, self.settings
        targets = batch.targets[live]
        candidates = self.candidates(targets, index) if settings.retrieve_weight and len(targets) else None
        batch, anchors, items, ids = self.item_vectors(batch, candidates)
        encoded = self.network.encode(batch, items, anchors)
        loss = encoded.requests.sum() * 0
        if len(targets) == 0 and batch.impressions is None:
            return loss
        if settings.retrieve_weight and len(targets):
            requests = self.network.retrieval_vectors(encoded.requests[live])
            if candidates is not None:
                retrieve = sampled_softmax(
                    requests, self.network.item_index(items[ids]), targets, candidates, settings.label_smoothing
                )
            else:
                retrieve = full_softmax(requests, self.network.item_index(items), targets, settings.label_smoothing)
            if settings.infonce_easy < 1:
                hard = hard_contrast(self.network, batch, encoded, live, requests, settings.hard_negatives, self.known)
                retrieve = settings.infonce_easy * retrieve + (1 - settings.infonce_easy) * hard
            loss = loss + settings.retrieve_weight * retrieve
            if settings.category_weight or self.teacher is not None:
                loss = loss + self.search_losses(batch, encoded, live, candidates)
            self.log("train/retrieve", retrieve)
        loss = loss + self.extra_losses(batch, encoded, live)
        if self.network.decoder is not None and settings.generate_weight and len(targets):
            generation = self.generation_loss(batch, encoded, live)
            loss = loss + settings.generate_weight * generation
            self.log("train/generate", generation)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def candidates(self, targets: Tensor, index: int) -> Candidates | None:
        """What a step's softmax runs over, the same on all processes: everybody's targets and one shared draw. None for all items."""
        n_items = self.network.catalogue.n_items if self.known is None else len(self.known)
        negatives = self.negatives(n_items)
        if not negatives:
            if (
                self.known is None or self.current_epoch < self.settings.align_epochs
            ):  # items' own texts ask for any item, known or not
                return None
            return Candidates(self.known.to(targets.device), torch.zeros(n_items, device=targets.device), n_items)
        draw = torch.Generator().manual_seed(step_seed(self.seed, self.current_epoch, index, -1))
        return draw_candidates(n_items, gather_rows(targets), negatives, draw, self.known)

    def item_vectors(
        self, batch: Batch, candidates: Candidates | None
    ) -> tuple[Batch, Anchors | None, Tensor, Tensor | None]:
        """The batch, its anchors, the item vectors that both name by their rows, and the rows of the candidates.

        They are those of histories, anchors and candidates alone, where nothing looks at the whole catalogue.
        """
        network, settings = self.network, self.settings
        anchors = network.choose_anchors(batch)
        by_items = (
            network.decoder is not None and settings.generate_weight > 0
        )  # node vectors are means of item vectors
        steps = network.reasoning is not None and settings.progressive != "none"
        whole = (
            settings.category_weight > 0 or self.teacher is not None or network.profile is not None
        )  # it reads codes by item id
        if candidates is None or whole or network.ranking is not None or by_items or steps or settings.infonce_easy < 1:
            return batch, anchors, network.item_encoder(), None if candidates is None else candidates.ids
        used = [candidates.ids, batch.items.flatten(), *([] if anchors is None else [anchors.ids.flatten()])]
        rows, place = torch.cat(used).unique(return_inverse=True)
        ids, context, *shown = place.split([len(part) for part in used])
        batch = replace(batch, items=context.view_as(batch.items))
        anchors = replace(anchors, ids=shown[0].view_as(anchors.ids)) if shown else None
        return batch, anchors, network.item_encoder(rows), ids

    def search_losses(self, batch: Batch, encoded: Encoded, live: Tensor, candidates: Candidates | None) -> Tensor:
        """Query -> category and keyword self-distillation, over the searches of the batch; 0 where both are off or nobody searches."""
        settings, network = self.settings, self.network
        searched = live & (batch.request_queries > 0)
        loss = encoded.requests.sum() * 0
        if not searched.any():
            return loss
        targets = batch.targets[searched]
        student = network.retrieval_vectors(encoded.requests[searched])
        if settings.category_weight:
            found = category_cross_entropy(
                student, encoded.items, targets, self.categories.to(targets.device), network.config.temperature
            )
            loss = loss + settings.category_weight * found
            self.log("train/category", found)
        if settings.keyword_distill_weight and self.teacher is not None:
            taught = network.retrieval_vectors(network.encode(self.teacher, encoded.items).requests[searched])
            ids = slice(None) if candidates is None else candidates.ids
            table, place = (
                network.item_index(encoded.items[ids]),
                targets if candidates is None else candidates.place(targets),
            )
            logits = taught @ table.T
            distance = self_distillation(student @ table.T, logits)
            teach = torch.nn.functional.cross_entropy(logits, place)
            loss = (
                loss
                + settings.keyword_distill_weight * distance
                + settings.retrieve_weight * teach * searched.sum() / live.sum()
            )
            self.log("train/distil", distance)
        return loss

    def extra_losses(self, batch: Batch, encoded: Encoded, live: Tensor) -> Tensor:
        """What reasoning steps and the ranking head learn, weighted; each is switched by config."""
        settings, total = self.settings, encoded.requests.sum() * 0
        if settings.progressive != "none" and settings.progressive_weight and self.network.reasoning is not None:
            progress = progressive_loss(self.network, batch, encoded, live, settings)
            total = total + settings.progressive_weight * progress
            self.log("train/progress", progress)
        if self.network.ranking is not None and settings.rank_weight:
            rank = ranking_loss(self.network, batch, encoded, live, settings, self.known)
            total = total + settings.rank_weight * rank
            self.log("train/rank", rank)
        return total

    def negatives(self, n_items: int) -> int:
        """How many negatives a step draws; 0 for the softmax over the whole catalogue."""
        wanted = self.settings.negatives
        return wanted if wanted is not None else 0 if n_items <= SMALL_CATALOGUE else NEGATIVES

    def decoder_step(self, batch: Batch) -> Tensor:
        """The code decoder learns alone: everything before it is fixed, so item vectors and their means are computed once.

        Dropout stays on before it as well: whose answers the trunk has memorised would teach the decoder to trust states more than it may.
        """
        with torch.no_grad():
            if self.frozen is None:
                self.network.eval()
                items = self.network.item_encoder()
                self.frozen = items, node_means(self.network.catalogue.trie, items)
            self.network.train()
            encoded = self.network.encode(batch, self.frozen[0], self.network.choose_anchors(batch, leave_out=True))
        live = batch.targets >= 0
        if not live.any():
            return sum(parameter.sum() for parameter in self.network.decoder.parameters()) * 0
        loss = self.generation_loss(batch, encoded, live, self.frozen[1])
        self.log("train/generate", loss)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def generation_loss(self, batch: Batch, encoded: Encoded, live: Tensor, means: Tensor | None = None) -> Tensor:
        """Mean negative log-probability of the targets' semantic IDs, and at every level the divergence from the dense answer."""
        decoder, trie, settings = self.network.decoder, self.network.catalogue.trie, self.settings
        row, lane = live.nonzero(as_tuple=True)
        if settings.generate_share < 1:
            drawn = torch.rand(len(row), device=row.device) < settings.generate_share
            drawn[:1] = True
            row, lane = row[drawn], lane[drawn]
        paths = trie.item_path[batch.targets[row, lane]][
            None
        ]  # (walks, N, levels): the observed one of each request ...
        taught = settings.distill_weight and settings.retrieve_weight and trie.n_items <= TAUGHT_CATALOGUE
        teacher, own_loss = self.dense_teacher(encoded, row, lane, batch.targets[row, lane]) if taught else (None, 0.0)
        if teacher is not None:  # ... and one that the teacher drew, over the same memory
            paths = torch.stack([paths[0], trie.item_path[teacher.draw()]])
        entered = torch.cat([torch.zeros_like(paths[..., :1]), paths[..., :-1]], dim=-1)
        nodes, place = walked_nodes(trie, paths.flatten(0, 1))
        vectors = decoder.node_vectors(trie, encoded.items, nodes, means)
        memory = self.network.decoder_memory(encoded, row, lane)
        states, _ = decoder.hidden(memory, vectors, place[entered].transpose(0, 1))
        states, scale, count = states.transpose(0, 1).flatten(0, 1), decoder.log_scale.exp(), len(row)
        own = torch.arange(count, device=row.device).repeat(len(paths))
        paths, copy_bias = paths.flatten(0, 1), None if memory.copy_bias is None else memory.copy_bias.take(own)
        ignored = (
            None if self.current_epoch < settings.align_epochs else self.unlearnt
        )  # items' own texts ask for any item
        if teacher is None:
            return (
                -path_log_probabilities(states, scale, vectors, trie, paths, place, copy_bias, ignored).sum(-1).mean()
            )
        steps, divergence = path_losses(states, scale, vectors, paths, teacher, place, own, copy_bias, ignored)
        return -steps[:count].sum(-1).mean() + settings.distill_weight * divergence[count:].sum(-1).mean() + own_loss

    def dense_teacher(self, encoded: Encoded, row: Tensor, lane: Tensor, targets: Tensor) -> tuple[TeacherMass, Tensor]:
        """The retrieval head's distribution over the catalogue for the requests at ``row``, ``lane`` (N,), and a loss of the teacher's own.

        With a pointer the head's logits gain what the anchors weigh, which learns from the observed ``targets`` (N,): cross-entropy.
        """
        trie, pointer = self.network.catalogue.trie, self.network.decoder.pointer
        state = encoded.requests[row, lane]
        with torch.no_grad():
            index = self.network.item_index(encoded.items[trie.leaf_items]) / self.settings.distill_temperature
            logs = (self.network.retrieval_vectors(state) @ index.T).float().log_softmax(-1)
        if pointer is None:
            return TeacherMass.in_leaf_order(trie, logs), logs.new_zeros(())
        anchors, state = encoded.anchors.take(row, lane), state[:, None].detach()
        with torch.no_grad():
            relevance = self.network.relevance(state, anchors.ids, encoded.items)
        copy_bias = pointer.items(state, anchors, relevance, trie.n_items)
        ids, bonus = copy_bias.nodes[:, 0], copy_bias.bonus[:, 0]
        known, first = ids < trie.n_items, F.pad(ids[:, 1:] != ids[:, :-1], (1, 0), value=True)
        where = trie.item_place[ids.clamp(max=trie.n_items - 1)]
        gained = torch.where(known & first, logs.gather(1, where).exp() * bonus.expm1(), 0.0).sum(1).log1p()
        chosen = logs.gather(1, trie.item_place[targets][:, None])[:, 0] + copy_bias.for_pairs(
            torch.arange(len(ids), device=ids.device), targets
        )
        rows, columns = known.nonzero(as_tuple=True)
        logs[rows, where[rows, columns]] = (logs.gather(1, where) + bonus.detach())[rows, columns]
        return TeacherMass.in_leaf_order(trie, logs - gained.detach()[:, None]), (gained - chosen).mean()

    def validation_step(self, pair: tuple[Batch, Tensor | None], index: int) -> None:
        batch, seen = pair
        encoded = self.network.encode(batch)
        if seen is None:  # what the log showed, to be ranked
            shown = batch.impressions
            logits = self.network.rank(encoded, shown.row, shown.column, shown.items, shown.features)
            known = shown.items >= 0
            self.judged.append((logits[known], shown.reached[known]))
            return
        requests = encoded.requests[:, 0]
        targets, task = batch.targets[:, :1], "search_" if (batch.request_queries > 0).all() else ""
        scores = self.network.retrieval_vectors(requests) @ self.network.item_index(encoded.items).T
        scores = scores.masked_fill(seen, -torch.inf)
        # "Not below" counts ties and NaN as above: neither a constant nor a broken network may rank every target first.
        self.ranks.setdefault(f"{task}retrieve", []).append((~(scores < scores.gather(1, targets))).sum(1) - 1)
        if self.network.decoder is not None:
            trie = self.network.catalogue.trie
            vectors = self.network.decoder.node_vectors(trie, encoded.items)
            leaves, total = generate(
                self.network.decoder, self.network.decoder_memory(encoded), vectors, trie, VALIDATION_BEAM
            )
            ids, total = leaf_items(trie, leaves, total, scores)
            total = total.masked_fill((ids < 0) | seen.gather(1, ids.clamp(min=0)), -torch.inf)
            found = (ids == targets) & total.isfinite()
            own = torch.where(found, total, -torch.inf).max(1, keepdim=True).values
            rank = torch.where(found.any(1), (total > own).sum(1), 10**9)
            self.ranks.setdefault(f"{task}generate", []).append(rank)

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
        mine = [torch.cat(part).cpu() for part in zip(*self.judged, strict=True)]
        judged = [one for one in gather(dict(zip(("logits", "reached"), mine, strict=False))) if one]
        if judged:
            logits, reached = (torch.cat([one[name] for one in judged]) for name in ("logits", "reached"))
            areas = [area_under_curve(logits[:, stage], reached[:, stage]) for stage in range(logits.shape[1])]
            for name, area in zip(self.network.config.stages, areas, strict=True):
                self.log(f"val/{name}_auc", torch.tensor(area, device=self.device))
            quality.append(torch.tensor(areas, device=self.device).nanmean())
            self.judged = []
        # Geometric: searches name what they want, and their figures are several times those of recommendations.
        mean = torch.stack(quality).clamp(min=LEAST_QUALITY).log().mean().exp() if quality else torch.tensor(0.0)
        self.log("val/quality", mean, prog_bar=True)
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

        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, rate), "interval": "step"},
        }

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        if isinstance(batch, Part):
            self.share, self.teacher = batch.share, None if batch.teacher is None else batch.teacher.to(device)
            return batch.batch.to(device)
        return batch[0].to(device), None if batch[1] is None else batch[1].to(device)
