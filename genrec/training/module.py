"""The Lightning module: one training step, the optimiser, validation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from genrec.config.schema import Config
from genrec.model.anchors import Anchors
from genrec.model.batch import Batch
from genrec.model.device import seed
from genrec.model.network import Encoded, GenerativeRecommender
from genrec.objectives.generation import nodes_without
from genrec.objectives.retrieval import Candidates, draw_candidates, full_softmax, sampled_softmax
from genrec.training.auxiliary_losses import hard_contrast, progressive_loss, ranking_loss
from genrec.training.batches import MicroBatch, step_seed
from genrec.training.data_module import ValidationBatch
from genrec.training.distributed import gather_rows, rank_and_world
from genrec.training.generation_losses import generation_loss
from genrec.training.optimizer import TouchedRowsAdamW, clip_gradients
from genrec.training.precision import softmax_precision
from genrec.training.step_tensors import StepTensors
from genrec.training.validation import Validation

SMALL_CATALOGUE, NEGATIVES = 1 << 14, 2048  # by rule: the whole softmax up to so many items, else so many drawn
WARMUP_STEPS, FINAL_RATE = 100, 0.02  # of the learning rate's schedule
PROGRESSIVE_WEIGHT = 0.3  # of the mean over reasoning steps


class TrainingModule(L.LightningModule):
    """Cross-entropy on codes plus InfoNCE.

    Validation measures retrieval and generation, on recommendations (already-had items removed) and on searches;
    ``val/quality``, the geometric mean of what was measured, chooses the epoch.
    """

    untrained_nodes: Tensor | None  # (n_nodes,) bool
    trained_items: Tensor | None  # (n,) ids

    def __init__(
        self,
        network: GenerativeRecommender,
        config: Config,
        steps_per_epoch: int,
        decoder_only: bool = False,
        trained_items: Tensor | None = None,
    ):
        """``trained_items``: ids of the items that the softmax runs over, rising; None for all.

        Trie nodes with none of them below are no wrong answers either.
        """
        super().__init__()
        self.decoder_only, self.trained_ids = decoder_only, trained_items  # these stay on the host, for its draws
        self.register_buffer("trained_items", trained_items, persistent=False)
        nodes = None if trained_items is None else nodes_without(network.catalogue.trie, trained_items)
        self.register_buffer("untrained_nodes", nodes, persistent=False)
        self.frozen: tuple[Tensor, Tensor] | None = None  # item vectors and node means of a frozen backbone
        self.shared = StepTensors()
        self.n_trained = network.catalogue.n_items if trained_items is None else len(trained_items)
        self.network, self.settings, self.seed = network, config.training, config.seed
        self.steps_per_epoch = steps_per_epoch
        self.validation = Validation(network)
        self.weight, self.chunk = 1.0, 0  # of the micro-batch in the step's mean loss; its index in the epoch
        # Named now: sharded parameters lose their shape.
        self.decayed = {name for name, parameter in network.named_parameters() if parameter.ndim > 1}

    def on_train_batch_start(self, batch: MicroBatch, batch_idx: int) -> None:
        """Seed the step by its index alone, so that a resumed run equals an uninterrupted one."""
        seed(self.device, step_seed(self.seed, self.current_epoch, batch_idx, self.global_rank))
        self.chunk = batch_idx

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Weigh the micro-batch's loss; behind the step's last chunk, take gradients on into what chunks share."""
        super().backward(loss * self.weight, *args, **kwargs)
        if (self.chunk + 1) % (self.settings.accumulate or 1) == 0:
            self.shared.backward()

    def log(self, name: str, value: Any, **kwargs: Any) -> None:  # type: ignore[override]  # options pass through
        """Log the mean over processes; a training loss by its weight, for the mean over the step's requests."""
        if name.startswith("train/"):
            value = value.detach() * self.weight
        super().log(name, value, sync_dist=self.trainer.world_size > 1, **kwargs)

    def configure_model(self) -> None:
        """With ``training.strategy=fsdp``, shard parameters, gradients and moments over the processes.

        Each backbone block is a unit, whole only while it computes. Everything else is one unit that is whole during a
        step: tables of items, words and nodes, which several answers read outside any module's ``forward``.
        """
        if isinstance(self.trainer.strategy, ModelParallelStrategy) and not isinstance(self, FSDPModule):
            assert self.device_mesh is not None
            mesh = self.device_mesh["data_parallel"]
            for block in self.network.backbone.blocks if isinstance(self.network, GenerativeRecommender) else ():
                fully_shard(block, mesh=mesh)
                for name in ("forward_requests", "forward_separately"):
                    register_fsdp_forward_method(block, name)
            fully_shard(self, mesh=mesh)
            for name in ("training_step", "validation_step"):
                register_fsdp_forward_method(self, name)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip with PyTorch: Lightning refuses fused optimizers under bf16 because of float16's scaled gradients."""
        clip_gradients(self.network.parameters(), gradient_clip_val)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean loss of a micro-batch."""
        loss = self.step_loss(batch, batch_idx)
        if isinstance(self, FSDPModule):
            # Shards are summed over processes, so each parameter needs a gradient on all. Blocks always get one, and
            # are sharded again here: a sum with their shards would mix DTensors into the loss.
            whole = [parameter for parameter in self.network.parameters() if not isinstance(parameter, DTensor)]
            loss = loss + 0 * sum(parameter.sum() for parameter in whole if parameter.requires_grad)
        return loss

    def step_loss(self, batch: Batch, index: int) -> Tensor:
        """As ``training_step``, before sharding is taken care of."""
        if self.decoder_only:
            return self.decoder_step(batch)
        settings = self.settings
        live = batch.where(lambda host: host.targets >= 0)  # rows and columns of the requests with a target
        targets = batch.targets[live]
        retrieves = settings.retrieve_weight > 0 and len(targets) > 0
        candidates = self.candidates(batch, index) if retrieves else None
        batch, anchors, items, ids = self.item_vectors(batch, candidates)
        encoded = self.network.encode(batch, items, anchors)
        loss = encoded.requests.sum() * 0
        if len(targets) == 0 and batch.impressions is None:
            return loss
        if retrieves:
            requests = self.network.retrieval_vectors(encoded.requests[live])
            table = self.item_index(items, ids)
            with softmax_precision(settings, len(table), table.device):
                if candidates is None:
                    retrieve = full_softmax(requests, table, targets)
                else:
                    retrieve = sampled_softmax(requests, table, targets, candidates)
            if settings.infonce_easy < 1:
                hard = hard_contrast(self.network, batch, encoded, live, requests, self.trained_items)
                retrieve = settings.infonce_easy * retrieve + (1 - settings.infonce_easy) * hard
            loss = loss + settings.retrieve_weight * retrieve
            self.log("train/retrieve", retrieve)
        loss = loss + self.auxiliary_losses(batch, encoded, live)
        if self.network.decoder is not None and settings.generate_weight and len(targets):
            generation = self.generation_loss(batch, encoded, live)
            loss = loss + settings.generate_weight * generation
            self.log("train/generate", generation)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    @property
    def softmax_items(self) -> Tensor | None:
        """The items that the softmax runs over; None for all, as while items are aligned with their texts."""
        return None if self.current_epoch < self.settings.align_epochs else self.trained_items

    def candidates(self, batch: Batch, index: int) -> Candidates | None:
        """What a step's softmax runs over: the targets and one draw of all processes; None for all items.

        Drawn on the host, which has the targets too: how many are distinct decides a shape.
        """
        n_items = self.network.catalogue.n_items if self.trained_items is None else len(self.trained_items)
        negatives, device = self.negatives(n_items), batch.targets.device
        if not negatives:
            items = self.softmax_items
            return None if items is None else Candidates(items, None, n_items)
        draw = torch.Generator().manual_seed(step_seed(self.seed, self.current_epoch, index, -1))
        targets = batch.on_host.targets
        everyones = gather_rows(targets[targets >= 0])
        return draw_candidates(n_items, everyones, negatives, draw, self.trained_ids).to(device)

    def negatives(self, n_items: int) -> int:
        """How many negatives a step draws; 0 for the softmax over the whole catalogue."""
        if self.settings.negatives is not None:
            return self.settings.negatives
        return 0 if n_items <= SMALL_CATALOGUE else NEGATIVES

    def item_vectors(
        self, batch: Batch, candidates: Candidates | None
    ) -> tuple[Batch, Anchors | None, Tensor, Tensor | None]:
        """The batch, its anchors, the item vectors whose rows both name, and the rows of the candidates.

        Unless something looks at the whole catalogue, only the vectors of histories, anchors and candidates are made.
        """
        network, settings = self.network, self.settings
        anchors, decoder = network.choose_anchors(batch), network.decoder
        decodes = decoder is not None and settings.generate_weight > 0  # node vectors are means of item vectors
        reasons = network.reasoning is not None and settings.progressive != "none"
        by_id = decodes or reasons or network.profile is not None or network.ranking is not None
        if candidates is None:
            return batch, anchors, self.catalogue(), None
        whole = len(candidates.ids) >= self.n_trained
        if whole or by_id or settings.infonce_easy < 1:
            return batch, anchors, self.catalogue(), candidates.ids
        used = [candidates.ids, batch.items.flatten(), *([] if anchors is None else [anchors.ids.flatten()])]
        rows = torch.cat(used)
        if rows.device.type == "cpu":
            rows, index = rows.unique(return_inverse=True)
        else:  # repeats cost less than waiting for the device to count them
            index = torch.arange(len(rows), device=rows.device)
        ids, context, *anchor_rows = index.split([len(part) for part in used])
        batch = replace(batch, items=context.view_as(batch.items))
        anchors = replace(anchors, ids=anchor_rows[0].view_as(anchors.ids)) if anchors is not None else None
        return batch, anchors, network.item_encoder(rows), ids

    def catalogue(self) -> Tensor:
        """The vectors of all items (n_items, dim), computed once a step where chunks may share them."""
        return self.shared.get("items", self.network.item_encoder) if self.shares else self.network.item_encoder()

    def item_index(self, items: Tensor, ids: Tensor | None) -> Tensor:
        """What the softmax multiplies with, of item vectors (N, dim), or of those of their rows ``ids`` (C,)."""

        def index(items: Tensor) -> Tensor:
            return self.network.item_index(items if ids is None else items[ids])

        # Candidates that are not the whole catalogue are drawn for each chunk.
        if not self.shares or "items" not in self.shared.made or (ids is not None and len(ids) < self.n_trained):
            return index(items)
        return self.shared.get("index", lambda: index(self.shared.source("items")))

    @property
    def shares(self) -> bool:
        """Whether the chunks of a step share tensors: not across processes, which average gradients chunk by chunk."""
        return (self.settings.accumulate or 1) > 1 and rank_and_world()[1] == 1

    def auxiliary_losses(self, batch: Batch, encoded: Encoded, live: tuple[Tensor, ...]) -> Tensor:
        """What reasoning steps and the ranking head learn, weighted; each is switched by config."""
        settings, total = self.settings, encoded.requests.sum() * 0
        if settings.progressive != "none" and self.network.reasoning is not None:
            progress = progressive_loss(self.network, batch, encoded, live, settings)
            total = total + PROGRESSIVE_WEIGHT * progress
            self.log("train/progress", progress)
        if self.network.ranking is not None:
            rank = ranking_loss(self.network, batch, encoded, live, settings, self.trained_items)
            total = total + rank
            self.log("train/rank", rank)
        return total

    def decoder_step(self, batch: Batch) -> Tensor:
        """The code decoder learns alone on a frozen backbone, so item vectors and node means are computed once.

        Keep backbone dropout on: on memorised training requests its states are overconfident, and the decoder would
        over-rely on them.
        """
        with torch.no_grad():
            if self.frozen is None:
                self.network.eval()
                items = self.network.item_encoder()
                assert self.network.decoder is not None
                self.frozen = items, self.network.decoder.means(self.network.catalogue.trie, items)
            if not self.network.training:
                self.network.train()
            encoded = self.network.encode(batch, self.frozen[0], self.network.choose_anchors(batch, leave_out=True))
        live = batch.where(lambda host: host.targets >= 0)
        if not len(live[0]):
            assert self.network.decoder is not None
            return torch.stack([parameter.sum() for parameter in self.network.decoder.parameters()]).sum() * 0
        loss = self.generation_loss(batch, encoded, live, self.frozen[1])
        self.log("train/generate", loss)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def generation_loss(
        self, batch: Batch, encoded: Encoded, live: tuple[Tensor, ...], means: Tensor | None = None
    ) -> Tensor:
        """See ``generation_losses``; while items are aligned with their texts, any item may be the answer."""
        ignored = None if self.current_epoch < self.settings.align_epochs else self.untrained_nodes
        return generation_loss(self.network, encoded, live, batch.targets, self.settings, means, ignored)

    def validation_step(self, batch: ValidationBatch, batch_idx: int) -> None:
        """Rank the targets of a batch."""
        self.validation.add(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the pass."""
        metrics = self.validation.metrics(self.network.config.stages, self.device)
        for name, value in metrics.items():
            self.log(f"val/{name}", value, prog_bar=name == "quality")
        self.validation = Validation(self.network)

    def configure_optimizers(self) -> Any:
        """AdamW with weight decay on matrices alone; the learning rate warms up, then falls in a straight line."""
        settings = self.settings
        decayed: list[Tensor] = []
        plain: list[Tensor] = []
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:
                (decayed if name in self.decayed else plain).append(parameter)
        groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        optimizer = TouchedRowsAdamW(groups, lr=settings.learning_rate, fused=True)
        assert settings.epochs is not None
        total = max(self.steps_per_epoch * settings.epochs, 1)
        warmup = min(WARMUP_STEPS, total // 10 + 1)

        def rate(step: int) -> float:
            return min(1.0, (step + 1) / warmup) * max(1 - step / total, FINAL_RATE)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch; a micro-batch leaves its weight behind."""
        if isinstance(batch, MicroBatch):
            self.weight = batch.weight
            return batch.batch.to(device)
        return batch.to(device)
