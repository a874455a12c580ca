"""One space for both tasks: a projection on top of frozen text vectors, trained on query-item and item-item pairs.

Source: OneSearch (arXiv 2509.03236), aligned embeddings: contrastive query-item and item-item terms. The text encoder
stays frozen, so that training takes seconds and the vectors of new texts need no more than one small matrix product.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from safetensors.numpy import load_file, save_file
from torch.nn import functional

from genrec.data.dataset import TRAIN, Dataset
from genrec.errors import UserError
from genrec.text.encoder import TextEncoder, unit

log = logging.getLogger(__name__)
FILE = "projection.safetensors"
HELD_OUT = 0.1
MAX_PAIRS = 200_000  # of each kind and epoch: more teach a (d, d) matrix nothing new
BATCH = 512
EPOCHS, PATIENCE = 20, 2
LEARNING_RATE, WEIGHT_DECAY, TEMPERATURE = 1e-3, 1e-2, 0.05


@dataclass(frozen=True)
class Pairs:
    """Positive pairs by row of two vector tables: ``left`` and ``right`` (P,) int64."""

    left: np.ndarray
    right: np.ndarray

    def __len__(self) -> int:
        return len(self.left)

    def take(self, rows: np.ndarray) -> Pairs:
        """The pairs of these rows."""
        return Pairs(self.left[rows], self.right[rows])


class ProjectedEncoder(TextEncoder):
    """``norm(x + W x)`` of another encoder's vectors x.

    W (dim, dim) is zero before training, and a zero vector stays zero.
    """

    def __init__(self, base: TextEncoder, weight: np.ndarray):
        self.base, self.weight, self.name = base, weight.astype(np.float32), base.name
        if self.weight.shape != (base.dim, base.dim):
            raise UserError(
                f"projection: its shape is {self.weight.shape}, the text encoder needs {(base.dim, base.dim)}; run "
                f"genrec tokenize again"
            )

    @property
    def dim(self) -> int:
        """Dimension of the vectors, that of the base encoder."""
        return self.base.dim

    def encode(self, texts: Sequence[str], role: str = "query") -> np.ndarray:
        """Projected vectors (n, dim) float32."""
        return project(self.base.encode(texts, role), self.weight)

    def describe(self) -> dict:
        """The settings of the base encoder, marked as projected."""
        return {**self.base.describe(), "projected": True}

    def save(self, folder: Path) -> None:
        """Write the base encoder and the projection into an existing folder."""
        self.base.save(folder)
        super().save(folder)
        save_file({"weight": np.ascontiguousarray(self.weight)}, folder / FILE)

    def pack(self, folder: Path) -> None:
        """Copy the base encoder's model into ``folder``."""
        self.base.pack(folder)

    @classmethod
    def read(cls, base: TextEncoder, folder: Path) -> ProjectedEncoder:
        """Read the projection of ``base`` from a folder. Raises ``UserError`` where it is missing or does not fit."""
        if not (folder / FILE).is_file():
            raise UserError(f"{folder / FILE} is missing; run genrec tokenize again")
        return cls(base, load_file(folder / FILE)["weight"])


def project(vectors: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """``norm(x + W x)`` row by row: (n, d) float32."""
    return unit(vectors + vectors @ weight.T)


def training_pairs(dataset: Dataset) -> tuple[Pairs, Pairs]:
    """Distinct (query id, item) pairs and (earlier item, next item) pairs of training events; nothing later is read.

    An item-item pair is two neighbouring events of one person, kept where at least two people had it. Where
    no pair was had twice, all are kept.
    """
    owner = np.repeat(np.arange(dataset.n_users), np.diff(dataset.offsets))
    train = np.asarray(dataset.split) == TRAIN
    items, queries = (
        np.asarray(dataset.items)[train].astype(np.int64),
        np.asarray(dataset.queries)[train].astype(np.int64),
    )
    has_query = queries >= 0
    searched = np.unique(np.column_stack([queries[has_query], items[has_query]]), axis=0)
    next_to = (owner[train][1:] == owner[train][:-1]) & (items[1:] != items[:-1])
    moves = np.column_stack([items[:-1][next_to], items[1:][next_to]])
    shape = (dataset.n_items,) * 2
    counts = (
        sp.coo_matrix(
            (np.ones(len(moves)), (moves.min(1, initial=dataset.n_items), moves.max(1, initial=0))), shape=shape
        )
        .tocsr()
        .tocoo()
    )
    strong = counts.data > 1 if (counts.data > 1).any() else counts.data > 0
    return Pairs(searched[:, 0], searched[:, 1]), Pairs(
        counts.row[strong].astype(np.int64), counts.col[strong].astype(np.int64)
    )


def fit_projection(
    query_vectors: np.ndarray, item_vectors: np.ndarray, searched: Pairs, together: Pairs, seed: int
) -> tuple[np.ndarray, dict[str, float]]:
    """The projection (d, d) float32 and its held-out loss before and after.

    InfoNCE in both directions with in-batch negatives (temperature 0.05; a batch mate that is the same item or a known
    partner is no negative). A tenth of the pairs, by unordered pair, is held out; the best epoch on it is kept, epoch 0
    (no projection) included. Deterministic in ``seed`` on one machine. Without enough pairs the projection is zero.
    """
    rng = np.random.default_rng(seed)
    tables = (torch.from_numpy(query_vectors), torch.from_numpy(item_vectors))
    kinds = [
        (tables[0], pairs) if kind == "searched" else (tables[1], pairs)
        for kind, pairs in (("searched", searched), ("together", together))
    ]
    parts = []
    for left_table, pairs in kinds:
        real = (
            np.flatnonzero((left_table.numpy()[pairs.left] ** 2).any(1) & (item_vectors[pairs.right] ** 2).any(1))
            if len(pairs)
            else np.zeros(0, int)
        )
        order = rng.permutation(real)[:MAX_PAIRS]
        held = int(len(order) * HELD_OUT)
        if held >= 2:
            parts.append((left_table, pairs.take(order[held:]), pairs.take(order[:held])))
    dim = item_vectors.shape[1]
    weight = torch.zeros(dim, dim, requires_grad=True)
    if not parts:
        return weight.detach().numpy(), {}
    optimiser = torch.optim.AdamW([weight], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def held_out() -> float:
        with torch.no_grad():
            losses = []
            for left_table, _, held in parts:
                chunks = np.array_split(np.arange(len(held)), max(1, len(held) // BATCH))
                losses.append(
                    np.mean([float(_loss(weight, left_table, tables[1], held.take(rows))) for rows in chunks])
                )
            return float(np.mean(losses))

    before = best = held_out()
    kept, waited = weight.detach().clone(), 0
    for epoch in range(EPOCHS):
        batches = [(part, rows) for part, (_, train, _) in enumerate(parts) for rows in _batches(len(train), rng)]
        for index in rng.permutation(len(batches)):
            part, rows = batches[index]
            optimiser.zero_grad()
            _loss(weight, parts[part][0], tables[1], parts[part][1].take(rows)).backward()
            optimiser.step()
        loss = held_out()
        log.info("fine-tune: epoch %d, held-out InfoNCE %.4f (before training %.4f)", epoch + 1, loss, before)
        if loss < best - 1e-4:
            best, kept, waited = loss, weight.detach().clone(), 0
        else:
            waited += 1
            if waited == PATIENCE:
                break
    return kept.numpy(), {"before": before, "after": best, "searched": len(searched), "together": len(together)}


def _batches(count: int, rng: np.random.Generator) -> list[np.ndarray]:
    return np.array_split(rng.permutation(count), max(1, -(-count // BATCH)))


def _loss(weight: torch.Tensor, left_table: torch.Tensor, items: torch.Tensor, pairs: Pairs) -> torch.Tensor:
    left, right = left_table[torch.from_numpy(pairs.left)], items[torch.from_numpy(pairs.right)]
    left, right = (functional.normalize(x + x @ weight.T, dim=1) for x in (left, right))
    scores = left @ right.T / TEMPERATURE
    same = (torch.from_numpy(pairs.left)[:, None] == torch.from_numpy(pairs.left)) | (
        torch.from_numpy(pairs.right)[:, None] == torch.from_numpy(pairs.right)
    )
    scores = scores.masked_fill(same & ~torch.eye(len(pairs), dtype=torch.bool), float("-inf"))
    target = torch.arange(len(pairs))
    return 0.5 * (functional.cross_entropy(scores, target) + functional.cross_entropy(scores.T, target))
