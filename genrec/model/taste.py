"""Taste: what a person clicks of what they are shown, from the texts of what they chose before.

The log-odds of a click are a bilinear form of the mean text vector of the history and that of the item, another one of
the last item and the item, and the item's own level. All people share its few thousand weights, which are fitted on
impressions by ``genrec/preference/taste_fit.py``. What a policy chose to show matters little to it, as people compare
within a slate: so it tells good items of the beam from others where a reward model of more freedom repeats the log.

As a factor of generation, ``probability x chance ** strength`` orders the generated list: what maximises the logarithm
of the chance under a penalty on the divergence from the generator.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrec.data.dataset import Requests

_DIM, _LAST_DIM = 24, 8
_PRIOR = 3.0  # events without a text that are counted with every history: a short one says little
_NEWEST = 200  # events of a history
_SCALE = 10.0  # unit vectors of text have small products


class Taste(nn.Module):
    """See the module. Of a catalogue with ``n_items`` and text vectors of ``width``; ``strength`` () of the factor.

    ``base`` () is the usual logarithm of the chance: scores with and without the factor stay comparable.
    """

    strength: Tensor
    base: Tensor

    def __init__(self, n_items: int, width: int):
        super().__init__()
        self.person, self.item = (nn.Linear(width, _DIM, bias=False) for _ in range(2))
        self.last = nn.Linear(width, _LAST_DIM, bias=False)
        self.level, self.own = nn.Linear(width, 1), nn.Parameter(torch.zeros(n_items))
        self.length, self.slot = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        self.register_buffer("strength", torch.zeros(()))
        self.register_buffer("base", torch.zeros(()))

    def forward(self, text: Tensor, requests: Requests, ids: Tensor, slots: Tensor | None = None) -> Tensor:
        """Log-odds of a click on items ``ids`` (B, K), -1 anywhere: (B, K).

        ``text`` (n, width) of the catalogue, which may have grown; ``slots`` (K,) from 0, by default the first.
        """
        columns = ids.clamp(min=0)
        profile, lengths, last = (part.to(ids.device) for part in self._history(text, requests))
        texts = text[columns].float()  # (B, K, width)
        taste = (self.item(texts) @ self.person(profile)[:, :, None])[..., 0]
        taste = _SCALE * taste * (1 + self.length * lengths[:, None].log1p())
        alike = (self.last(texts) @ self.last(last)[:, :, None])[..., 0]
        n_items = len(self.own)  # an item that came later has no level of its own
        own = torch.where(columns < n_items, self.own[columns.clamp(max=n_items - 1)], 0.0)
        odds = taste + alike + self.level(texts)[..., 0] + own
        return odds if slots is None else odds + self.slot * slots

    @staticmethod
    def _history(text: Tensor, requests: Requests) -> tuple[Tensor, Tensor, Tensor]:
        """Of B histories the mean text vector (B, width), the length (B,), and the last item's vector (B, width)."""
        lengths, device = np.diff(requests.offsets), text.device
        owner = np.repeat(np.arange(len(lengths)), lengths)
        newest = np.arange(len(owner)) >= requests.offsets[1:][owner] - _NEWEST
        items = torch.from_numpy(requests.items[newest].astype(np.int64)).to(device)
        read = np.minimum(lengths, _NEWEST)
        counts = torch.from_numpy(read).float().to(device)
        if text.dtype == torch.float32:  # without a copy of each event's vector
            total = F.embedding_bag(items, text, torch.from_numpy(np.cumsum(read) - read).to(device), mode="sum")
        else:
            total = torch.zeros(len(lengths), text.shape[1], device=device)
            total.index_add_(0, torch.from_numpy(owner[newest]).to(device), text[items].float())
        last = torch.zeros_like(total)
        some = np.flatnonzero(lengths)
        final = torch.from_numpy(requests.items[requests.offsets[1:][some] - 1].astype(np.int64)).to(device)
        last[torch.from_numpy(some).to(device)] = text[final].float()
        return total / (counts + _PRIOR)[:, None], counts, last

    @torch.no_grad()
    def log_chance(self, text: Tensor, requests: Requests, ids: Tensor) -> Tensor:
        """Logarithm of the chance of a click on items (B, K)."""
        return F.logsigmoid(self(text, requests, ids))

    @torch.no_grad()
    def factor(self, text: Tensor, requests: Requests, ids: Tensor) -> Tensor:
        """Logarithm of the factor of items (B, K); 0 for searches, whose query says more than any taste."""
        feed = torch.from_numpy(np.asarray(requests.request_queries) < 0).to(ids.device)[:, None]
        return torch.where(feed, self.strength * (self.log_chance(text, requests, ids) - self.base), 0.0)

    def reordered(self, text: Tensor, requests: Requests, ids: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Generated items (B, K) and log-probabilities (B, K) with the factor, best first."""
        scores = scores + self.factor(text, requests, ids)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return ids.gather(1, order), scores
