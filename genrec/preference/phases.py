"""The phases of the stage: what one step of each learns from a batch of requests.

``taste`` trains nothing: the list that the decoder generates is ordered by ``probability x chance of a click **
strength`` (``genrec/model/taste.py``), here and in every answer. ``distil``: a teacher's order of candidates, with the
chosen item as a hard target. ``grpo``: items drawn from the decoder and valued by the rewards, with an advantage per
code position. ``plackett-luce``: whole lists drawn from the beam and valued by their discounted reward and diversity.
``dpo``: list-wise DPO on the log: the chosen item against ignored impressions, lower stages and wrong items of the
beam.

The reference of a phase is the decoder as it was when the phase began. Its beam gives the candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from genrec.config.schema import PreferenceConfig
from genrec.errors import UserError
from genrec.model.collate import Collator
from genrec.model.device import generator_on
from genrec.objectives.distillation import candidate_kl, margin_mse
from genrec.objectives.group_relative import policy_loss, position_advantages, prefix_matches
from genrec.objectives.list_preference import listwise_dpo
from genrec.objectives.plackett_luce import discounted_gain, list_policy_loss, sample_lists
from genrec.preference.feedback import Feedback
from genrec.preference.levels import Levels, Rates, adaptive_margins
from genrec.preference.policy import Policy, PolicyRequests, chunks
from genrec.preference.reward_model import RewardFeatures, RewardModel
from genrec.preference.rewards import Sampled, total_reward
from genrec.ranking.ranker import seen_mask

Outcome = tuple[Tensor, dict[str, float]]
# What no run has had a reason to tune. The values are the papers' or those of the first sweep on Beauty and KuaiRand.
BEAM = 20  # candidates of the model's own beam
SAMPLES = 8  # of a request: items (grpo) or lists (plackett-luce)
BETA = 0.1  # dpo: scale of the implicit reward, as in the DPO paper
NEGATIVES = 12  # dpo: worse items of a list
WEIGHT_LIMIT = 3.0  # dpo: pair weights lie between 1 / this and this
LIST_LENGTH = 10  # plackett-luce: items of a list, as many as the metrics read
POSITION_WEIGHTS = (2.0, 2.0, 1.0)  # grpo: of code positions, the last for all further ones; early codes decide most
TASTE = "taste"  # orders generated lists by a factor; the decoder learns nothing
BY_VALUE = ("reward", "ranking")  # teachers that value the decoder's own beam
SOFT_WEIGHT = 0.5  # distil: of the teacher's targets; the rest is the chosen item's
_LIST_DIVERSITY = 0.1  # plackett-luce: weight of a list's diversity against its gain
_MARGIN_WEIGHT = 0.05  # distil over candidates: weight of the score margins against the divergence
_NO_CANDIDATE = -60.0  # log-probability of an empty column
_BEAM_CHUNK = 128


@dataclass
class PhaseTrainer:
    """Everything the phases learn from: the policy's training feedback (N requests), the rewards and the reward model.

    ``category`` (n_items,) codes, -1 unknown; ``popularity`` (n_items,). ``reranker_teacher`` returns candidates and
    scores of the re-ranker for some requests, where ``preference.teacher`` is ``fused``.
    """

    policy: Policy
    collator: Collator
    feedback: Feedback
    levels: Levels
    rates: Rates
    features: RewardFeatures
    model: RewardModel
    settings: PreferenceConfig
    category: np.ndarray
    popularity: np.ndarray
    reranker_teacher: Callable[[np.ndarray], tuple[Tensor, Tensor]] | None = None
    strength: float = 1.0  # of the value against the decoder's own log-probability, see ``preference.strengths``
    beams: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.long))  # (N, W) items, -1 empty
    chances: Tensor = field(default_factory=lambda: torch.zeros(0, 0))  # (N, W) log-probabilities of the beam's items
    values: Tensor = field(default_factory=lambda: torch.zeros(0, 0))  # (N, W) of the beam's items

    def __post_init__(self) -> None:
        items, stages = self.feedback.padded()
        weights = np.where(stages >= 0, self.levels.weights[np.maximum(stages, 0)], 0.0)
        self.impressions, self.stages = items, stages  # (N, K), -1 empty
        self.impression_rewards = np.where(items >= 0, self.rates.reward(np.maximum(items, 0), weights), 0.0)
        self.targets = self.feedback.targets

    def prepare(self, phase: str) -> np.ndarray:
        """Set the reference and search the beams that the phase needs; returns the requests (n,) it learns from."""
        self.policy.set_reference()
        rows, teacher = np.arange(len(self.feedback)), self.settings.teacher
        over_beam = phase == "distil" and teacher in BY_VALUE
        if phase == "dpo":
            self._search_beams(None)
            return rows[self.targets >= 0]
        if over_beam and teacher == "ranking":
            self._search_beams(self._ranking_chances)
        elif over_beam or phase == "plackett-luce":
            self._search_beams(lambda inputs, ids: self.predict(inputs, ids)[0])
        if over_beam or phase == "plackett-luce":
            return rows[((self.beams >= 0).sum(1) > 1).numpy()]
        return rows

    def _search_beams(self, value: Callable[[PolicyRequests, Tensor], Tensor] | None) -> None:
        """Every request's beam, and ``value`` of its items."""
        width = BEAM
        self.beams = torch.full((len(self.feedback), width), -1, dtype=torch.long)
        self.chances, self.values = torch.zeros(len(self.feedback), width), torch.zeros(len(self.feedback), width)
        for rows, inputs in chunks(
            self.policy, self.collator, self.feedback.requests, _BEAM_CHUNK, self.feedback.users, counted=True
        ):
            ids, chances = (part[:, :width] for part in self.policy.beam(inputs, width))
            index = torch.from_numpy(rows)
            self.beams[index, : ids.shape[1]], self.chances[index, : ids.shape[1]] = ids.cpu(), chances.cpu()
            if value:
                self.values[index, : ids.shape[1]] = value(inputs, ids).cpu()

    def predict(self, inputs: PolicyRequests, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The reward model's value of items (B, K), and their text relevance."""
        predicted = self.model.predict(self.features(inputs.requests, inputs.users, inputs.batch, ids, inputs.state))
        return self.model.reward(predicted, self.settings.reward), predicted.relevance

    @torch.no_grad()
    def _ranking_chances(self, inputs: PolicyRequests, ids: Tensor) -> Tensor:
        """The chance of items (B, K) to reach the deepest stage, by the network's ranking head.

        ``UserError`` for a network without one.
        """
        network, rates = self.policy.network, self.features.rates
        if network.ranking is None:
            raise UserError(
                "preference.teacher=ranking: the model has no ranking head; train it with model.ranking=true, or take "
                "another teacher"
            )
        rates_before = None
        if rates is not None and network.config.stages and rates.stages == len(network.config.stages):
            rates_before = self.features.impressions_before(inputs.requests, inputs.users, ids)
        rows = torch.arange(len(ids), device=ids.device)
        return network.rank(inputs.encoded, rows, torch.zeros_like(rows), ids, rates_before)[..., -1].sigmoid()

    def step(self, phase: str, rows: np.ndarray, generator: torch.Generator) -> Outcome:
        """Loss of a batch of requests, and what to log of it."""
        inputs = self.policy.encode(
            self.collator, self.feedback.requests.take(rows), self.feedback.users[rows], counted=True
        )
        return getattr(self, "_" + phase.replace("-", "_"))(inputs, rows, generator)

    def _paths(self, items: Tensor) -> Tensor:
        return self.policy.trie.item_path[items.clamp(min=0)]

    def _chosen(self, inputs: PolicyRequests, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Targets (B,) and whether there is one."""
        targets = torch.from_numpy(self.targets[rows]).to(inputs.device)
        return targets, targets >= 0

    def _anchor(self, own: Tensor, known: Tensor) -> Tensor:
        """Mean negative log-probability of the chosen items: log-probabilities (B,) where ``known``."""
        return -torch.where(known, own, 0).sum() / known.sum().clamp(min=1)

    def _distil(self, inputs: PolicyRequests, rows: np.ndarray, generator: torch.Generator) -> Outcome:
        targets, known = self._chosen(inputs, rows)
        ids, teacher = self._candidate_teacher(inputs, rows)
        live = ids >= 0
        every = self.policy.steps(inputs, self._paths(torch.cat([ids, targets[:, None]], dim=1))).sum(-1)
        student, hard = every[:, :-1], self._anchor(every[:, -1], known)
        taught = candidate_kl(student, teacher, live)
        if self.settings.teacher in BY_VALUE:
            # The teacher holds the decoder's own probabilities: chosen items would only be learnt by heart again.
            return taught, {"hard": float(hard.detach()), "taught": float(taught.detach())}
        taught = taught + _MARGIN_WEIGHT * margin_mse(student, teacher, live)
        loss = (1 - SOFT_WEIGHT) * hard + SOFT_WEIGHT * taught
        return loss, {"hard": float(hard.detach()), "taught": float(taught.detach())}

    def _candidate_teacher(self, inputs: PolicyRequests, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Candidates (B, W), the teacher's best first, and its scores.

        Over the beam the teacher is ``reference x value ** strength``: what maximises the logarithm of the value under
        a penalty on the divergence from the reference (as in the DPO paper, eq. 4). Values alone would order the beam
        worse than the decoder does, because they were learnt on what a logging policy had already chosen.
        """
        if self.reranker_teacher is not None and self.settings.teacher == "fused":
            return self.reranker_teacher(rows)
        ids = self.beams[rows]
        scores = regularised(self.chances[rows], self.values[rows], self.strength).masked_fill(ids < 0, -torch.inf)
        scores, order = scores.sort(dim=1, descending=True)
        ids = ids.gather(1, order)
        return ids.to(inputs.device), scores.masked_fill(ids < 0, _NO_CANDIDATE).to(inputs.device)

    def _grpo(self, inputs: PolicyRequests, rows: np.ndarray, generator: torch.Generator) -> Outcome:
        settings, trie = self.settings, self.policy.trie
        targets, known = self._chosen(inputs, rows)
        drawn = self.policy.sample(inputs, SAMPLES, generator_on(inputs.device, generator))
        # Items of the history are not recommended, so they do not count.
        live = ~seen_mask(inputs.requests, trie.n_items).to(inputs.device).gather(1, drawn.items)
        predicted, relevance = self.predict(inputs, drawn.items)
        impressions = torch.from_numpy(self.impressions[rows]).to(inputs.device)
        impression_rewards = torch.from_numpy(self.impression_rewards[rows]).to(predicted)
        popularity = torch.from_numpy(self.popularity).to(predicted)
        rewards, means = total_reward(
            Sampled(drawn.items, live, predicted, relevance, impressions, impression_rewards, popularity, trie),
            settings.rewards,
        )
        target_paths = torch.where(known[:, None], self._paths(targets), -1)
        matches = prefix_matches(drawn.paths, target_paths)
        levels = [min(level, len(POSITION_WEIGHTS) - 1) for level in range(trie.depth)]
        weights = torch.tensor([POSITION_WEIGHTS[level] for level in levels], device=inputs.device)
        advantages = position_advantages(rewards, live, matches, weights)
        paths = torch.cat([drawn.paths, self._paths(targets)[:, None]], dim=1)
        steps = self.policy.steps(inputs, paths)
        outcome = policy_loss(
            steps[:, :-1], self.policy.reference_steps(inputs, drawn.paths), advantages, live, settings.kl
        )
        loss = outcome.loss + settings.anchor * self._anchor(steps[:, -1].sum(-1), known)
        return loss, {
            "kl": float(outcome.kl),
            "entropy": float(outcome.entropy),
            "live": float(live.float().mean()),
            **{f"reward_{k}": v for k, v in means.items()},
        }

    def _plackett_luce(self, inputs: PolicyRequests, rows: np.ndarray, generator: torch.Generator) -> Outcome:
        settings = self.settings
        ids = self.beams[rows].to(inputs.device)
        targets, known = self._chosen(inputs, rows)
        live = ids >= 0
        every = self.policy.steps(inputs, self._paths(torch.cat([ids, targets[:, None]], dim=1))).sum(-1)
        scores = every[:, :-1].masked_fill(~live, _NO_CANDIDATE)
        k = min(LIST_LENGTH, ids.shape[1])
        drawn = sample_lists(scores, SAMPLES, k, generator_on(scores.device, generator))
        values = torch.where(live, self.values[rows].to(scores), 0)
        listed = values[:, None].expand(-1, SAMPLES, -1).gather(2, drawn)
        first = self._paths(ids)[..., 0][:, None].expand(-1, SAMPLES, -1).gather(2, drawn)
        spread = (first[..., :, None] != first[..., None, :]).float().mean((-1, -2))
        gain = discounted_gain(listed)
        utility = gain / gain.mean().abs().clamp(min=1e-6) + _LIST_DIVERSITY * spread
        spread_of = utility.std(1, keepdim=True).clamp(min=1e-3)
        loss = list_policy_loss(scores, drawn, utility / spread_of) + settings.anchor * self._anchor(
            every[:, -1], known
        )
        return loss, {"gain": float(gain.mean()), "list_diversity": float(spread.mean())}

    def _dpo(self, inputs: PolicyRequests, rows: np.ndarray, generator: torch.Generator) -> Outcome:
        columns, live, weights = self.interaction_lists(rows, generator)
        return self._dpo_loss(inputs, rows, columns, live, weights)

    def interaction_lists(self, rows: np.ndarray, generator: torch.Generator) -> tuple[Tensor, Tensor, np.ndarray]:
        """Lists (B, 1 + NEGATIVES) of items, whether each counts, and pair weights from the calibrated rewards.

        Column 0 is the chosen item. The others are worth less: ignored impressions and lower stages, wrong items of the
        beam, and random items. None of them was chosen by the user.
        """
        chosen = self.targets[rows][:, None]
        best = (self.stages[rows].max(1, keepdims=True)).clip(min=self.levels.click)
        impressions, stages, beam = self.impressions[rows], self.stages[rows], self.beams[rows].numpy()
        n_items = self.policy.trie.n_items
        random = torch.randint(n_items, (len(rows), NEGATIVES), generator=generator).numpy()
        pool = np.concatenate([impressions, beam, random], axis=1)
        clicked = np.where(stages >= self.levels.click, impressions, -2)
        similar = (self.category[pool] == self.category[np.maximum(chosen, 0)]) & (self.category[pool] >= 0)
        weight = np.where(similar, self.levels.similar, self.levels.unrelated)
        weight[:, : impressions.shape[1]] = np.where(stages >= 0, self.levels.weights[np.maximum(stages, 0)], 0.0)
        reward = self.rates.reward(np.maximum(pool, 0), weight)
        better = self.rates.reward(np.maximum(chosen, 0), self.levels.weights[best])
        wrong = (pool[:, :, None] == clicked[:, None, :]).any(2)
        wrong[:, : impressions.shape[1]] = stages == best  # a clicked item of a lower stage may be the worse one
        live = (pool >= 0) & (pool != chosen) & ~wrong & (reward < better)
        live &= ~_repeated(pool)
        # Half of the worse items are impressions, the rest come from the beam, and then at random.
        kind = np.concatenate([np.zeros(impressions.shape[1]), np.ones(beam.shape[1]), np.full(NEGATIVES, 3)])
        priority = np.where(live, kind, 9) + torch.rand(pool.shape, generator=generator).numpy()
        observed = live[:, : impressions.shape[1]]
        beyond_half = (np.cumsum(observed, axis=1) > max(1, NEGATIVES // 2)) & observed
        priority[:, : impressions.shape[1]] += 2.0 * beyond_half
        order = np.argsort(priority, axis=1, kind="stable")[:, :NEGATIVES]
        chosen_live = np.take_along_axis(live, order, 1)
        weights = adaptive_margins(
            better, np.where(chosen_live, np.take_along_axis(reward, order, 1), np.nan), WEIGHT_LIMIT
        )
        columns = torch.from_numpy(np.concatenate([chosen, np.take_along_axis(pool, order, 1)], axis=1))
        alive = torch.from_numpy(np.concatenate([chosen >= 0, chosen_live], axis=1))
        return columns, alive, np.concatenate([np.ones_like(chosen, np.float64), weights], axis=1)

    def _dpo_loss(
        self, inputs: PolicyRequests, rows: np.ndarray, columns: Tensor, live: Tensor, weights: np.ndarray
    ) -> Outcome:
        settings = self.settings
        columns, live = columns.to(inputs.device), live.to(inputs.device)
        targets, known = self._chosen(inputs, rows)
        paths = self._paths(torch.cat([columns, targets[:, None]], dim=1))
        every = self.policy.steps(inputs, paths).sum(-1)
        reference = self.policy.reference_steps(inputs, paths[:, :-1]).sum(-1)
        pairs = torch.from_numpy(weights).to(every)
        outcome = listwise_dpo(every[:, :-1], reference, live, BETA, pairs)
        loss = outcome.loss + settings.anchor * self._anchor(every[:, -1], known)
        return loss, {
            "preference": float(outcome.preference),
            "accuracy": float(outcome.accuracy),
            "gap": float(outcome.gap),
        }


def regularised(chances: Tensor, values: Tensor, strength: float) -> Tensor:
    """Logarithm of ``chance x value ** strength`` from log-probabilities and values of the same shape."""
    return chances + strength * values.clamp(min=1e-4).log()


def _repeated(pool: np.ndarray) -> np.ndarray:
    """Columns (B, K) whose value occurs earlier in the row."""
    order = np.argsort(pool, axis=1, kind="stable")
    ranked = np.take_along_axis(pool, order, 1)
    same = np.zeros(pool.shape, bool)
    same[:, 1:] = ranked[:, 1:] == ranked[:, :-1]
    result = np.zeros(pool.shape, bool)
    np.put_along_axis(result, order, same, 1)
    return result
