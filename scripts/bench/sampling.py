"""How a sequence model should sample its targets: all of a user's events in one pass, or one target per sequence.

    python scripts/bench/sampling.py runs/amazon-beauty                                       # packed, ids + text
    python scripts/bench/sampling.py runs/amazon-beauty --sampling single --epochs 8
    python scripts/bench/sampling.py runs/amazon-beauty --sampling single --epochs 8 --text 0     # ids alone

A plain SASRec (post-norm, GELU, learnt positions), with a trainable vector per item and, by default, the projected text
vector; softmax over the whole catalogue. It reads ``dataset/`` and ``semantic_ids/text.npy`` of a tokenized run, and
prints loss, CPU seconds and validation metrics (full ranking, already-had items removed). ``--test`` reads the test
split once, at the end.
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
from genrec.data.sequences import Windows, make_windows
from genrec.model.dropout import Dropout
from genrec.objectives.linear_cross_entropy import linear_cross_entropy

LENGTH, LAYERS, WARMUP, CHUNKS, PAD = 50, 2, 100, 4, -1


def single_target_windows(offsets: np.ndarray, lengths: np.ndarray, max_length: int) -> Windows:
    """A window for each of a user's first ``lengths`` events, which it predicts from up to ``max_length`` before."""
    user = np.repeat(np.arange(len(lengths)), lengths)
    index = np.arange(len(user)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    begin = np.asarray(offsets)[user]
    start = np.maximum(0, index - max_length)
    return Windows(begin + start, begin + index, begin + index + 1, begin + np.asarray(lengths)[user])


class Block(nn.Module):
    """Post-norm self-attention with one head, and a GELU feed-forward layer."""

    def __init__(self, dim: int, dropout: float):
        super().__init__()
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.norms, self.drop = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2)), Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """States (B, T, dim) of x, under a mask (B, 1, T, T)."""
        q, k, v = (part[:, None] for part in self.qkv(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[:, 0]
        x = self.norms[0](x + self.drop(self.out(mixed)))
        return self.norms[1](x + self.drop(self.down(F.gelu(self.up(x)))))


class Model(nn.Module):
    """SASRec over item vectors that may contain a projected text vector."""

    def __init__(self, n_items: int, text: Tensor | None, dim: int, dropout: float):
        super().__init__()
        self.ids, self.positions = nn.Embedding(n_items, dim), nn.Embedding(LENGTH, dim)
        self.project = None if text is None else nn.Linear(text.shape[1], dim, bias=False)
        self.text = text
        self.norm, self.drop = nn.LayerNorm(dim), Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, dropout) for _ in range(LAYERS))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.project is not None:  # a text vector has unit length: begin well above the id vectors
            nn.init.normal_(self.project.weight, std=0.01 * self.project.weight.shape[1] ** 0.5)

    def items(self) -> Tensor:
        """Vectors of all items (n_items, dim)."""
        if self.project is None:
            return self.ids.weight
        return self.ids.weight + self.project(self.text)

    def forward(self, histories: Tensor, items: Tensor) -> Tensor:
        """States (B, T, dim) of histories (B, T), padded on the left with -1."""
        length, known = histories.shape[1], histories >= 0
        x = F.embedding(histories.clamp(min=0), items) * known[..., None] + self.positions.weight[LENGTH - length :]
        x = self.drop(self.norm(x))
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        mask = (known[:, None, None] & causal) | torch.eye(length, dtype=torch.bool)
        for block in self.blocks:
            x = block(x, mask)
        return x


def padded(items: np.ndarray, stop: np.ndarray, length: np.ndarray) -> Tensor:
    """The ``length`` (B,) items before event ``stop`` (B,): (B, T), padded on the left."""
    column = np.arange(int(length.max(initial=1)))[::-1] + 1
    event = np.where(column <= length[:, None], stop[:, None] - column, 0)
    return torch.from_numpy(np.where(column <= length[:, None], items[event], PAD))


def chunk_states(model: Model, items: np.ndarray, windows: Windows, rows: np.ndarray, vectors: Tensor):
    """States (N, dim) before each predicted event of some windows, and those events' items (N,)."""
    start, stop = windows.start[rows], windows.stop[rows]
    histories, targets = (padded(items, end, stop - start - 1) for end in (stop - 1, stop))
    column = np.arange(histories.shape[1])[::-1]
    predicted = (stop[:, None] - 1 - column >= windows.first[rows][:, None]) & (histories.numpy() >= 0)
    live = torch.from_numpy(predicted)
    return model(histories, vectors)[live], targets[live]


@torch.no_grad()
def metrics(model: Model, data: Dataset, split: str) -> tuple[float, float]:
    """Recall@10 and nDCG@10 over all requests of a split."""
    model.eval()
    requests, vectors, ranks = data.requests(split), model.items(), []
    for begin in range(0, len(requests), 256):
        chunk = requests.take(np.arange(begin, min(begin + 256, len(requests))))
        length = np.minimum(np.diff(chunk.offsets), LENGTH)
        scores = model(padded(np.asarray(chunk.items), chunk.offsets[1:], length), vectors)[:, -1] @ vectors.T
        own = scores.gather(1, torch.from_numpy(chunk.targets.astype(np.int64))[:, None])
        rows = torch.from_numpy(chunk.histories.rows.astype(np.int64))
        scores[rows, torch.from_numpy(np.asarray(chunk.items).astype(np.int64))] = -torch.inf
        ranks.append((scores > own).sum(1))
    rank = torch.cat(ranks)
    return float((rank < 10).float().mean()), float(torch.where(rank < 10, 1 / (rank + 2).log2(), 0.0).mean())


def main() -> None:
    """Train, and print a line per epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--sampling", choices=("packed", "single"), default="packed")
    parser.add_argument("--text", type=int, choices=(0, 1), default=1)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--batch", type=int, help="sequences of a step; default: 64 packed, 256 single")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=0, help="stop after so many steps, for a trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(args.seed)
    data, draw = Dataset(args.run / "dataset"), np.random.default_rng(args.seed)
    items, lengths = np.asarray(data.items).astype(np.int64), data.known_lengths(TRAIN)
    text = None
    if args.text:
        text = F.normalize(torch.from_numpy(np.load(args.run / "semantic_ids" / "text.npy").astype(np.float32)), dim=-1)
    model = Model(data.n_items, text, args.dim, args.dropout)
    single = args.sampling == "single"
    windows = (
        single_target_windows(data.offsets, lengths, LENGTH)
        if single
        else make_windows(data.offsets, lengths, LENGTH, LENGTH)
    )
    usable = np.flatnonzero(windows.stop - windows.start > 1)
    size = args.batch or (256 if single else 64)
    total, step = args.epochs * -(-len(usable) // size), 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, weight_decay=0.0, fused=True)
    begin = time.process_time()
    for epoch in range(args.epochs):
        model.train()
        order, losses = draw.permutation(usable), []
        for first in range(0, len(order), size):
            rows = order[first : first + size]
            rows = rows[np.argsort((windows.stop - windows.start)[rows], kind="stable")]
            for group in optimizer.param_groups:
                group["lr"] = args.rate * min(1, (step + 1) / WARMUP) * max(1 - step / total, 0.02)
            vectors = model.items()
            parts = [part for part in np.array_split(rows, CHUNKS) if len(part)]
            states, targets = zip(*(chunk_states(model, items, windows, part, vectors) for part in parts), strict=True)
            with torch.autocast("cpu", torch.bfloat16):
                loss = linear_cross_entropy(torch.cat(states), vectors, torch.cat(targets))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            step += 1
            if step == args.steps:
                break
        line = f"epoch {epoch + 1} loss {np.mean(losses):.4f} CPU s {time.process_time() - begin:.0f}"
        print(line, "valid {:.4f} / {:.4f}".format(*metrics(model, data, "valid")), flush=True)
        if step == args.steps:
            break
    if args.test:
        print("test {:.4f} / {:.4f}".format(*metrics(model, data, "test")))


if __name__ == "__main__":
    main()
