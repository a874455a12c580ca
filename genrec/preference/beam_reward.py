"""The reward model on the decoder's own beam: whether it may teach, and what it says of generated lists.

A reward model learns from impressions, which a logging policy chose. How it orders them says little about the beam. So
it is judged where both meet: held-out impressions whose item the decoder's beam holds. There the order it would teach
must not be worse than the decoder's own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import nan

import numpy as np
import torch

from genrec.config.schema import PreferenceConfig
from genrec.data.dataset import Requests
from genrec.evaluation.metrics import paired_test, user_aucs
from genrec.model.collate import Collator
from genrec.preference.feedback import Feedback
from genrec.preference.levels import Levels
from genrec.preference.phases import BY_VALUE, TASTE, PhaseTrainer, regularised
from genrec.preference.policy import chunks

BEAM = 50  # wider than what is taught, so that enough impressions lie in it
_CHUNK = 128


@dataclass(frozen=True)
class BeamAgreement:
    """GAUC by user of held-out impressions within the beam: by the decoder alone and with the value.

    ``low`` and ``high`` bound the paired difference (95 %); ``rows`` impressions of ``users``.
    """

    decoder: float
    taught: float
    low: float
    high: float
    rows: int
    users: int

    @property
    def fault(self) -> str | None:
        """Why this reward may not teach; None where it may."""
        if self.users == 0 or self.high >= 0:
            return None
        return (
            f"the reward model orders impressions of the beam worse than the decoder (GAUC {self.taught:.4f} against "
            f"{self.decoder:.4f}, difference [{self.low:+.4f}, {self.high:+.4f}])"
        )

    def to_dict(self) -> dict:
        """The JSON-ready form."""
        return asdict(self)


def by_strength(settings: PreferenceConfig) -> bool:
    """Whether a phase joins the decoder's probability with a value, so that ``preference.strengths`` matter."""
    return TASTE in settings.phases or ("distil" in settings.phases and settings.teacher in BY_VALUE)


def beam_agreement(trainer: PhaseTrainer, feedback: Feedback, levels: Levels, seed: int) -> BeamAgreement:
    """Judge the reward of ``trainer`` on held-out ``feedback``: the order that its phases teach.

    That is the decoder's log-probability with the value where a phase joins them, else the value alone; the value is
    the chance of the taste where that is a phase. Nothing is judged where no impression lies in a beam.
    """
    joined, taste = by_strength(trainer.settings), TASTE in trainer.settings.phases
    policy, parts = trainer.policy, []
    items, stages = feedback.padded()
    for rows, inputs in chunks(policy, trainer.collator, feedback.requests, _CHUNK, feedback.users):
        width = max(int((items[rows] >= 0).sum(1).max()), 1)
        ids = torch.from_numpy(items[rows, :width]).to(inputs.device)
        beam = policy.beam(inputs, BEAM, hide_seen=False)[0]
        inside = ((ids[:, :, None] == beam[:, None, :]).any(2) & (ids >= 0)).cpu().numpy()
        chances = policy.item_log_probabilities(inputs, ids)
        if taste:
            value = trainer.features.taste.log_chance(policy.text, inputs.requests, ids).exp()
        else:
            value = trainer.predict(inputs, ids)[0]
        taught = regularised(chances, value, trainer.strength) if joined else value
        owner = np.broadcast_to(feedback.users[rows][:, None], inside.shape)
        columns = (chances.cpu().numpy(), taught.cpu().numpy(), stages[rows, :width], owner)
        parts.append([column[inside] for column in columns])
    alone, order, reached, users = (np.concatenate(part) for part in zip(*parts, strict=True))
    decoder, with_value = (user_aucs(scores, reached >= levels.click, users)[1] for scores in (alone, order))
    if not len(decoder):
        return BeamAgreement(nan, nan, nan, nan, len(users), 0)
    _, low, high, _ = paired_test(with_value, decoder, seed)
    return BeamAgreement(float(decoder.mean()), float(with_value.mean()), low, high, len(users), len(decoder))


def list_reward(trainer: PhaseTrainer, collator: Collator, requests: Requests, lists: np.ndarray) -> float:
    """The reward model's mean value of the items of generated lists (N, K), -1 empty."""
    total = count = 0.0
    for rows, inputs in chunks(trainer.policy, collator, requests, _CHUNK):
        ids = torch.from_numpy(lists[rows]).to(inputs.device)
        live = ids >= 0
        total += float(trainer.predict(inputs, ids)[0][live].sum())
        count += float(live.sum())
    return total / max(count, 1.0)
