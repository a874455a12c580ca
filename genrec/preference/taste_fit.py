"""The fit of ``genrec/model/taste.py`` on the impressions of a log."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from genrec.model.taste import Taste
from genrec.preference.feedback import Feedback
from genrec.preference.parts import with_random_items

MAX_SLATES = 100_000  # newest that it is fitted on: a few seconds
_EPOCHS, _RATE, _DECAY = 6, 0.004, 0.05
_BATCH = 32, 448  # slates of a step, at least and at most
_BASE_SLATES = 2000  # that the usual chance is taken from
_STEPS = 50  # of an epoch, at least as many as the batches allow


def fit_taste(text: Tensor, train: Feedback, click: int, seed: int) -> Taste:
    """Fit on training slates with a history; those of a log without impressions are events beside random items.

    ``text`` (n_items, width) of the catalogue, ``click`` the stage from which on an impression was clicked.
    """
    slates = train.take(np.flatnonzero(train.history_lengths > 0)[-MAX_SLATES:])
    items, stages = with_random_items(slates, len(text), seed)
    requests, host = slates.requests, text.cpu()
    batch = int(np.clip(len(slates) // _STEPS, *_BATCH))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Taste(*text.shape)
        optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=_DECAY)
        for _ in range(_EPOCHS):
            for rows in torch.randperm(len(slates)).split(batch):
                some = np.sort(rows.numpy())
                width = max(int((items[some] >= 0).sum(1).max()), 1)
                ids = torch.from_numpy(items[some, :width])
                clicked = torch.from_numpy(stages[some, :width] >= click).float()
                odds = model(host, requests.take(some), ids, torch.arange(width))
                optimizer.zero_grad()
                F.binary_cross_entropy_with_logits(odds[ids >= 0], clicked[ids >= 0]).backward()
                optimizer.step()
    with torch.no_grad():
        some = np.unique(np.linspace(0, len(slates) - 1, _BASE_SLATES).astype(int))
        ids = torch.from_numpy(items[some])
        model.base.copy_(model.log_chance(host, requests.take(some), ids)[ids >= 0].mean())
    return model.eval().requires_grad_(False).to(text.device)
