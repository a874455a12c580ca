"""RQ-VAE: a small autoencoder whose latent vector is quantized residually (TIGER, arXiv 2305.05065).

Against unused codes, its known failure, the codebooks start from k-means of the latents, follow running means
(EMA) instead of gradients, and a code without use in an epoch restarts at a random residual. Levels that
collapse nevertheless are reported.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from genrec.semantic_ids.quantizers.codebooks import Codebooks, encode
from genrec.semantic_ids.quantizers.kmeans import k_means, nearest
from genrec.semantic_ids.quantizers.residual import FIT_SAMPLE, drawn_sample

log = logging.getLogger(__name__)
COLLAPSE = 0.5  # a level of which less than this fraction of the usable codes is used has collapsed
BATCH = 1024
DECAY = 0.99
COMMITMENT = 0.25
WARM_SHARE = 0.2  # of the epochs are spent on the plain autoencoder, before there are codebooks


@dataclass
class _Level:
    """One codebook and the running sums behind it."""

    words: Tensor  # (k, d)
    counts: Tensor  # (k,)
    sums: Tensor  # (k, d)
    used: Tensor  # (k,) bool, in this epoch

    @classmethod
    def start(cls, words: np.ndarray) -> _Level:
        table = torch.from_numpy(words)
        return cls(table.clone(), torch.ones(len(table)), table.clone(), torch.zeros(len(table), dtype=torch.bool))

    def follow(self, residual: Tensor, assigned: Tensor) -> None:
        counts = torch.bincount(assigned, minlength=len(self.words)).float()
        self.used |= counts > 0
        self.counts = DECAY * self.counts + (1 - DECAY) * counts
        self.sums = DECAY * self.sums + (1 - DECAY) * torch.zeros_like(self.sums).index_add_(0, assigned, residual)
        alive = self.counts > 1e-3
        self.words = torch.where(alive[:, None], self.sums / self.counts.clamp(min=1e-3)[:, None], self.words)

    def restart_dead(self, residual: Tensor, generator: torch.Generator) -> int:
        dead = torch.nonzero(~self.used)[:, 0]
        chosen = residual[torch.randint(len(residual), (len(dead),), generator=generator)]
        self.words[dead], self.sums[dead], self.counts[dead] = chosen, chosen, 1.0
        self.used.zero_()
        return len(dead)


def fit_rq_vae(
    vectors: np.ndarray, sizes: Sequence[int], seed: int, latent: int = 32, epochs: int = 100, sample: int = FIT_SAMPLE
) -> tuple[Codebooks, np.ndarray, dict]:
    """Fit on at most `sample` of the vectors (n, d).

    Return codebooks, the codes (n, L) int64 of all, and notes for the manifest.

    Notes: `used_share` of each level's usable codes (no more than there are vectors), `restarts` of dead codes,
    `collapsed` levels (from 1) of which less than half the usable codes are used; these are also a warning in the log.
    Same seed, same result.
    """
    points = drawn_sample(vectors, sample, seed)
    sizes = [min(size, len(points)) for size in sizes]
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        d, hidden = points.shape[1], max(latent, min(256, points.shape[1]))
        encoder = nn.Sequential(nn.Linear(d, hidden), nn.ReLU(), nn.Linear(hidden, latent))
        decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, d))
    restarts, levels = _train(torch.from_numpy(points), encoder, decoder, sizes, seed, epochs, generator)
    codebooks = Codebooks(
        [level.words.numpy().copy() for level in levels],
        encoder=_layers(encoder),
        decoder=_layers(decoder),
        width=points.shape[1],
    )
    codes = encode(codebooks, vectors)
    used = [len(np.unique(codes[:, level])) / min(size, len(codes)) for level, size in enumerate(sizes)]
    collapsed = [level + 1 for level, share in enumerate(used) if share < COLLAPSE]
    if collapsed:
        log.warning(
            "rq-vae: level %s collapsed: %s of the codes are used",
            collapsed,
            [round(used[level - 1], 2) for level in collapsed],
        )
    return codebooks, codes, {"used_share": used, "restarts": restarts, "collapsed": collapsed}


def _train(
    points: Tensor,
    encoder: nn.Module,
    decoder: nn.Module,
    sizes: Sequence[int],
    seed: int,
    epochs: int,
    generator: torch.Generator,
) -> tuple[int, list[_Level]]:
    optimiser = torch.optim.AdamW([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    levels: list[_Level] = []
    restarts, warm = 0, max(1, round(WARM_SHARE * epochs))
    for epoch in range(epochs):
        if epoch == warm:
            levels = _start_levels(encoder, points, sizes, seed)
        # enough steps on a small catalogue too
        for rows in torch.randperm(len(points), generator=generator).split(max(1, min(BATCH, -(-len(points) // 8)))):
            batch = points[rows]
            state = encoder(batch)
            quantized, commitment = _quantize(state, levels)
            straight = state + (quantized - state).detach() if levels else state
            # summed over dimensions: the scale of the vectors does not decide how far the latents may drift
            loss = ((decoder(straight) - batch) ** 2).sum(1).mean() + COMMITMENT * commitment
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if levels and epoch < epochs - 1:
            restarts += _restart(encoder, points, levels, generator)
    if not levels:
        levels = _start_levels(encoder, points, sizes, seed)
    return restarts, levels


def _quantize(state: Tensor, levels: list[_Level]) -> tuple[Tensor, Tensor]:
    """The sum of the chosen words (B, latent), and how far the latents stay away from it; the codebooks follow."""
    quantized, commitment = torch.zeros_like(state), state.new_zeros(())
    for level in levels:
        residual = state - quantized
        assigned = torch.from_numpy(nearest(residual.detach().numpy(), level.words.numpy())[0])
        commitment = commitment + ((residual - level.words[assigned]) ** 2).sum(1).mean()
        quantized = quantized + level.words[assigned]
        level.follow(residual.detach(), assigned)
    return quantized, commitment


@torch.no_grad()
def _start_levels(encoder: nn.Module, points: Tensor, sizes: Sequence[int], seed: int) -> list[_Level]:
    residual, levels = encoder(points).numpy(), []
    for index, size in enumerate(sizes):
        words = k_means(residual, size, seed + index)
        residual = residual - words[nearest(residual, words)[0]]
        levels.append(_Level.start(words))
    return levels


@torch.no_grad()
def _restart(encoder: nn.Module, points: Tensor, levels: list[_Level], generator: torch.Generator) -> int:
    chosen = points[torch.randint(len(points), (min(len(points), 4 * BATCH),), generator=generator)]
    residual, total = encoder(chosen), 0
    for level in levels:
        total += level.restart_dead(residual, generator)
        residual = residual - level.words[torch.from_numpy(nearest(residual.numpy(), level.words.numpy())[0])]
    return total


def _layers(network: nn.Sequential) -> list[tuple[np.ndarray, np.ndarray]]:
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    return [(layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()) for layer in linear]
