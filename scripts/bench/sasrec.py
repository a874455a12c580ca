"""A plain SASRec (Kang & McAuley 2018) with full cross-entropy, apart from genrec's own training loop: how strong is that baseline at its best?

    python scripts/bench/sasrec.py DATASET [--epochs 60] [--weights sasrec.pt]     # DATASET: the dataset folder of a run, leave-last-out

Learnt positions counted from the newest event, pre-norm blocks, tied item vectors, softmax over the whole catalogue at every position of a
user's last 50 events, Adam. The best epoch by validation nDCG@10 is kept in --weights, a run goes on from there, and test is read once at
the end. Recall@10 / nDCG@10 with the items already had removed, then raw.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrec.data.dataset import TRAIN, Dataset
from genrec.data.histories import Histories
from genrec.decoding.ranker import seen_mask

LENGTH = 50


class SASRec(nn.Module):
    def __init__(self, n_items: int, dim: int, layers: int, heads: int, dropout: float):
        super().__init__()
        self.n_items, self.dim = n_items, dim
        self.item, self.pos = nn.Embedding(n_items + 1, dim, padding_idx=n_items), nn.Embedding(LENGTH, dim)
        nn.init.normal_(self.item.weight, std=0.02)
        nn.init.normal_(self.pos.weight, std=0.02)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(dim, heads, dim, dropout, "relu", batch_first=True, norm_first=True) for _ in range(layers))
        self.norm, self.drop = nn.LayerNorm(dim), nn.Dropout(dropout)

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        """items (B, T), padded behind; lengths (B,) -> states (B, T, dim)."""
        place = (lengths[:, None] - 1 - torch.arange(items.shape[1])).clamp(min=0)
        x = self.drop(self.item(items) * self.dim**0.5 + self.pos(place))
        mask = torch.ones(items.shape[1], items.shape[1], dtype=torch.bool).triu(1)
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return self.norm(x)

    def logits(self, states: Tensor) -> Tensor:
        return states @ self.item.weight[: self.n_items].T


def padded(histories: Histories, n_items: int) -> tuple[Tensor, Tensor]:
    histories = histories.last_n(LENGTH)
    items = np.full((len(histories), max(1, int(histories.lengths.max(initial=0)))), n_items, np.int64)
    items[histories.rows, np.arange(len(histories.items)) - histories.offsets[histories.rows]] = histories.items
    return torch.from_numpy(items), torch.from_numpy(histories.lengths.clip(1, LENGTH))


@torch.no_grad()
def evaluate(network: SASRec, data: Dataset, split: str) -> list[float]:
    network.eval()
    requests, ranks = data.requests(split), ([], [])
    for begin in range(0, len(requests), 1024):
        chunk = requests.take(np.arange(begin, min(begin + 1024, len(requests))))
        items, lengths = padded(chunk.histories, data.n_items)
        scores = network.logits(network(items, lengths)[torch.arange(len(items)), lengths - 1])
        target = torch.from_numpy(chunk.targets.astype(np.int64))[:, None]
        for place, found in enumerate((scores.masked_fill(seen_mask(chunk, data.n_items), -torch.inf), scores)):
            ranks[place].append((~(found < found.gather(1, target))).sum(1) - 1)
    figures = []
    for rank in map(torch.cat, ranks):
        hit = rank < 10
        figures += [hit.float().mean().item(), torch.where(hit, 1 / torch.log2(rank + 2.0), 0.0).mean().item()]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    for name, default in (("dim", 64), ("layers", 2), ("heads", 1), ("batch", 128), ("epochs", 60), ("patience", 6), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--weights", type=Path, default=Path("sasrec.pt"))
    job = parser.parse_args()
    torch.manual_seed(job.seed)
    data = Dataset(job.dataset)
    network = SASRec(data.n_items, job.dim, job.layers, job.heads, job.dropout)
    if job.weights.is_file():
        network.load_state_dict(torch.load(job.weights, weights_only=True))
    optimizer = torch.optim.Adam(network.parameters(), lr=job.learning_rate, betas=(0.9, 0.98))
    train = data.histories(TRAIN)
    learnt = np.flatnonzero(train.lengths > 1)
    best, worse = evaluate(network, data, "valid")[1] if job.weights.is_file() else 0.0, 0
    for epoch in range(job.epochs):
        network.train()
        order, begun = np.random.default_rng((job.seed, epoch)).permutation(learnt), time.perf_counter()
        for begin in range(0, len(order), job.batch):
            items, lengths = padded(train.take(order[begin : begin + job.batch]), data.n_items)
            live = items[:, 1:] < data.n_items
            loss = F.cross_entropy(network.logits(network(items[:, :-1], lengths - 1)[live]), items[:, 1:][live])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found = evaluate(network, data, "valid")
        print(f"epoch {epoch + 1}: valid", *(f"{value:.4f}" for value in found), f"{time.perf_counter() - begun:.0f} s", flush=True)
        worse = worse + 1 if found[1] <= best else 0
        if not worse:
            best = found[1]
            torch.save(network.state_dict(), job.weights)
        if worse >= job.patience:
            break
    network.load_state_dict(torch.load(job.weights, weights_only=True))
    print("test", *(f"{value:.4f}" for value in evaluate(network, data, "test")))


if __name__ == "__main__":
    main()
