"""The phases of the stage: what one step of each learns from a batch of requests.

``distil``       soft targets of a teacher at every code level, beside the item that was chosen.
``guided-dpo``   list-wise DPO where the reward model would change the order of the decoder's own beam.
``grpo``         items drawn from the decoder, judged by the rewards, code position by code position.
``plackett-luce`` whole lists drawn from the beam, judged by their discounted reward and diversity.
``dpo``          list-wise DPO on real interactions: what was chosen against what was shown and ignored, lower levels, the beam's wrong items.

A reference stands still during a phase: the decoder as it was when the phase began. Its beam gives the candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genrec.config.schema import PreferenceConfig
from genrec.errors import UserError
from genrec.model.collate import Collator
from genrec.objectives.distillation import TeacherMass, candidate_kl, draw_items, margin_mse
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
_BEAM_CHUNK = 128
_LISTS_DIVERSITY = 0.1  # plackett-luce: weight of a list's diversity beside its gain


@dataclass
class School:
    """All that the phases learn from: the policy's training feedback (N requests) and the judges.

    ``category`` (n_items,) codes, -1 unknown; ``popularity`` (n_items,); ``fused_teacher``: candidates and scores of the fused ranking for a
    batch's requests, where ``preference.teacher`` is ``fused``.
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
    fused_teacher: Callable[[np.ndarray], tuple[Tensor, Tensor]] | None = None
    beams: Tensor | None = None
    values: Tensor | None = None

    def __post_init__(self) -> None:
        items, stages = self.feedback.padded()
        weights = np.where(stages >= 0, self.levels.weights[np.maximum(stages, 0)], 0.0)
        self.shown, self.stages = items, stages
        self.shown_rewards = np.where(items >= 0, self.rates.reward(np.maximum(items, 0), weights), 0.0)
        self.targets = self.feedback.targets

    # --- what a phase needs before its first step ------------------------------------------------------------------------

    def prepare(self, phase: str) -> np.ndarray:
        """Beams and their values under the decoder as it is now; returns the requests (n,) that the phase has something to learn from."""
        self.policy.set_reference()
        self.beams = self.values = None
        rows = np.arange(len(self.feedback))
        candidates = phase == "distil" and self.settings.teacher in ("reward", "ranking")
        if phase in ("dpo", "guided-dpo", "plackett-luce") or candidates:
            by_ranking = candidates and self.settings.teacher == "ranking"
            self._draw_beams(
                None
                if phase == "dpo"
                else self._ranking
                if by_ranking
                else lambda asked, ids: self.judge(asked, ids)[0]
            )
        if phase == "dpo":
            rows = rows[self.targets >= 0]
        elif phase == "guided-dpo":
            rows = rows[self._changed().any(1).numpy()]
        elif candidates or phase == "plackett-luce":
            rows = rows[((self.beams >= 0).sum(1) > 1).numpy()]
        return rows

    def _draw_beams(self, value: Callable[[PolicyRequests, Tensor], Tensor] | None) -> None:
        """Every request's beam, and ``value`` of its items."""
        width = self.settings.beam
        self.beams = torch.full((len(self.feedback), width), -1, dtype=torch.long)
        self.values = torch.zeros(len(self.feedback), width) if value else None
        for rows, asked in chunks(
            self.policy, self.collator, self.feedback.requests, _BEAM_CHUNK, self.feedback.users, counted=True
        ):
            ids, _ = self.policy.beam(asked, width)
            ids = ids[:, :width]
            place = torch.from_numpy(rows)
            self.beams[place, : ids.shape[1]] = ids.cpu()
            if value:
                self.values[place, : ids.shape[1]] = value(asked, ids).cpu()

    def judge(self, asked: PolicyRequests, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The reward model's value of items (B, K), and their text relevance."""
        judged = self.model.judge(self.features(asked.requests, asked.users, asked.batch, ids, asked.state))
        return self.model.reward(judged, self.settings.reward), judged.relevance

    @torch.no_grad()
    def _ranking(self, asked: PolicyRequests, ids: Tensor) -> Tensor:
        """The chance that the network's own ranking head gives items (B, K) to reach its deepest stage. ``UserError`` without such a head."""
        network, rates = self.policy.network, self.features.rates
        if network.ranking is None:
            raise UserError(
                "preference.teacher=ranking: the model has no ranking head; train it with model.ranking=true, or take another teacher"
            )
        evidence = None
        if rates is not None and network.config.stages and rates.stages == len(network.config.stages):
            evidence = self.features.impressions_before(asked.requests, asked.users, ids)
        rows = torch.arange(len(ids), device=ids.device)
        return network.rank(asked.encoded, rows, torch.zeros_like(rows), ids, evidence)[..., -1].sigmoid()

    def _changed(self) -> Tensor:
        """(N, W): items of the beam that stand before the one the reward model likes best."""
        live = self.beams >= 0
        best = self.values.masked_fill(~live, -torch.inf).argmax(1, keepdim=True)
        return live & (torch.arange(self.beams.shape[1]) < best)

    # --- one step of each phase -------------------------------------------------------------------------------------------

    def step(self, phase: str, rows: np.ndarray, generator: torch.Generator) -> Outcome:
        """Loss of a batch of requests, and what to log of it."""
        asked = self.policy.ask(
            self.collator, self.feedback.requests.take(rows), self.feedback.users[rows], counted=True
        )
        return getattr(self, "_" + phase.replace("-", "_"))(asked, rows, generator)

    def _paths(self, items: Tensor) -> Tensor:
        return self.policy.trie.item_path[items.clamp(min=0)]

    def _chosen(self, asked: PolicyRequests, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Targets (B,) and whether there is one."""
        targets = torch.from_numpy(self.targets[rows]).to(asked.device)
        return targets, targets >= 0

    def _anchor(self, own: Tensor, known: Tensor) -> Tensor:
        """Mean negative log-probability of the chosen items: log-probabilities (B,) where ``known``."""
        return -torch.where(known, own, 0).sum() / known.sum().clamp(min=1)

    def _distil(self, asked: PolicyRequests, rows: np.ndarray, generator: torch.Generator) -> Outcome:
        targets, known = self._chosen(asked, rows)
        soft = self.settings.soft
        if self.settings.teacher == "dense":
            drawn = draw_items(asked.dense, generator)
            paths = self._paths(torch.stack([torch.where(known, targets, drawn), drawn], dim=1))
            steps, divergence = self.policy.distilled(asked, paths, TeacherMass.of_items(self.policy.trie, asked.dense))
            hard, taught = self._anchor(steps[:, 0].sum(-1), known), divergence.sum(-1).mean()
        else:
            ids, teacher = self._candidate_teacher(asked, rows)
            live = ids >= 0
            every = self.policy.steps(asked, self._paths(torch.cat([ids, targets[:, None]], dim=1))).sum(-1)
            student, hard = every[:, :-1], self._anchor(every[:, -1], known)
            taught = candidate_kl(student, teacher, live) + 0.05 * margin_mse(student, teacher, live)
        loss = (1 - soft) * hard + soft * taught
        return loss, {"hard": float(hard.detach()), "taught": float(taught.detach())}

    def _candidate_teacher(self, asked: PolicyRequests, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Candidates (B, W), the teacher's best first, and its scores: log rewards (chances in proportion to the reward), or fused scores."""
        if self.settings.teacher == "fused":
            return self.fused_teacher(rows)
        ids, values = self.beams[rows], self.values[rows]
        scores = values.clamp(min=1e-4).log().masked_fill(ids < 0, -torch.inf)
        scores, order = scores.sort(dim=1, descending=True)
        ids = ids.gather(1, order)
        return ids.to(asked.device), scores.masked_fill(ids < 0, -30.0).to(asked.device)

    def _grpo(self, asked: PolicyRequests, rows: np.ndarray, generator: torch.Generator) -> Outcome:
        settings, trie = self.settings, self.policy.trie
        targets, known = self._chosen(asked, rows)
        drawn = self.policy.sample(asked, settings.samples, generator)
        live = ~seen_mask(asked.requests, trie.n_items).to(asked.device).gather(
            1, drawn.items
        )  # what the person has is not shown
        judged, relevance = self.judge(asked, drawn.items)
        shown = torch.from_numpy(self.shown[rows]).to(asked.device)
        shown_rewards = torch.from_numpy(self.shown_rewards[rows]).to(judged)
        popularity = torch.from_numpy(self.popularity).to(judged)
        rewards, means = total_reward(
            Sampled(drawn.items, live, judged, relevance, shown, shown_rewards, popularity, trie), settings.rewards
        )
        target_paths = torch.where(known[:, None], self._paths(targets), -1)
        matches = prefix_matches(drawn.paths, target_paths) if settings.prefix_gate else None
        given = settings.position_weights
        weights = torch.tensor([given[min(level, len(given) - 1)] for level in range(trie.depth)], device=asked.device)
        advantages = position_advantages(rewards, live, matches, weights)
        paths = torch.cat([drawn.paths, self._paths(targets)[:, None]], dim=1)
        steps = self.policy.steps(asked, paths)
        found = policy_loss(
            steps[:, :-1], self.policy.reference_steps(asked, drawn.paths), advantages, live, settings.kl
        )
        loss = found.loss + settings.anchor * self._anchor(steps[:, -1].sum(-1), known)
        return loss, {
            "kl": float(found.kl),
            "entropy": float(found.entropy),
            "live": float(live.float().mean()),
            **{f"reward_{k}": v for k, v in means.items()},
        }

    def _plackett_luce(self, asked: PolicyRequests, rows: np.ndarray, generator: torch.Generator) -> Outcome:
        settings = self.settings
        ids = self.beams[rows].to(asked.device)
        targets, known = self._chosen(asked, rows)
        live = ids >= 0
        every = self.policy.steps(asked, self._paths(torch.cat([ids, targets[:, None]], dim=1))).sum(-1)
        scores = every[:, :-1].masked_fill(~live, -60.0)
        k = min(settings.list_length, ids.shape[1])
        drawn = sample_lists(scores, settings.samples, k, generator)
        values = torch.where(live, self.values[rows].to(scores), 0)
        listed = values[:, None].expand(-1, settings.samples, -1).gather(2, drawn)
        first = self._paths(ids)[..., 0][:, None].expand(-1, settings.samples, -1).gather(2, drawn)
        spread = (first[..., :, None] != first[..., None, :]).float().mean((-1, -2))
        gain = discounted_gain(listed)
        utility = gain / gain.mean().abs().clamp(min=1e-6) + _LISTS_DIVERSITY * spread
        spread_of = utility.std(1, keepdim=True).clamp(min=1e-3)
        loss = list_policy_loss(scores, drawn, utility / spread_of) + settings.anchor * self._anchor(
            every[:, -1], known
        )
        return loss, {"gain": float(gain.mean()), "list_diversity": float(spread.mean())}

    def _guided_dpo(self, asked: PolicyRequests, rows: np.ndarray, generator: torch.Generator) -> Outcome:
        """Winner: what the reward model likes best of the beam; losers: what the decoder ranks above it."""
        ids, values = self.beams[rows], self.values[rows].numpy()
        before = self._changed()[rows]
        best = np.where(ids.numpy() >= 0, values, -np.inf).argmax(1)
        own = np.arange(len(rows))
        weights = adaptive_margins(
            values[own, best][:, None], np.where(before.numpy(), values, np.nan), self.settings.weight_limit
        )
        columns = torch.cat([ids[own, best][:, None], ids], dim=1)
        live = torch.cat([torch.ones(len(rows), 1, dtype=torch.bool), before], dim=1)
        return self._dpo_loss(asked, rows, columns, live, np.concatenate([np.ones((len(rows), 1)), weights], axis=1))

    def _dpo(self, asked: PolicyRequests, rows: np.ndarray, generator: torch.Generator) -> Outcome:
        columns, live, weights = self.interaction_lists(rows, generator)
        return self._dpo_loss(asked, rows, columns, live, weights)

    def interaction_lists(self, rows: np.ndarray, generator: torch.Generator) -> tuple[Tensor, Tensor, np.ndarray]:
        """Lists (B, 1 + negatives) from the log: what was chosen; then lower levels and what was shown and ignored, wrong items of the
        beam, and any others, with pair weights from the calibrated rewards. A loser must be worth less and be no item the person chose.
        """
        chosen = self.targets[rows][:, None]
        best = (self.stages[rows].max(1, keepdims=True)).clip(min=self.levels.click)
        count = self.settings.negatives
        shown, stages, beam = self.shown[rows], self.stages[rows], self.beams[rows].numpy()
        n_items = self.policy.trie.n_items
        anything = torch.randint(n_items, (len(rows), count), generator=generator).numpy()
        pool = np.concatenate([shown, beam, anything], axis=1)
        clicked = np.where(stages >= self.levels.click, shown, -2)
        similar = (self.category[pool] == self.category[np.maximum(chosen, 0)]) & (self.category[pool] >= 0)
        weight = np.where(similar, self.levels.similar, self.levels.unrelated)
        weight[:, : shown.shape[1]] = np.where(stages >= 0, self.levels.weights[np.maximum(stages, 0)], 0.0)
        reward = self.rates.reward(np.maximum(pool, 0), weight)
        better = self.rates.reward(np.maximum(chosen, 0), self.levels.weights[best])
        wrong = (pool[:, :, None] == clicked[:, None, :]).any(2)
        wrong[:, : shown.shape[1]] = stages == best  # a lower level that was clicked may lose
        live = (pool >= 0) & (pool != chosen) & ~wrong & (reward < better)
        live &= ~_repeated(pool)
        # Half of the losers from what was shown, the rest from the beam, what is left anything.
        kind = np.concatenate([np.zeros(shown.shape[1]), np.ones(beam.shape[1]), np.full(count, 3)])
        place = np.where(live, kind, 9) + torch.rand(pool.shape, generator=generator).numpy()
        late = (np.cumsum(live[:, : shown.shape[1]], axis=1) > max(1, count // 2)) & live[:, : shown.shape[1]]
        place[:, : shown.shape[1]] += 2.0 * late
        order = np.argsort(place, axis=1, kind="stable")[:, :count]
        take = lambda array: np.take_along_axis(array, order, 1)
        weights = adaptive_margins(better, np.where(take(live), take(reward), np.nan), self.settings.weight_limit)
        columns = torch.from_numpy(np.concatenate([chosen, take(pool)], axis=1))
        alive = torch.from_numpy(np.concatenate([chosen >= 0, take(live)], axis=1))
        return columns, alive, np.concatenate([np.ones_like(chosen, np.float64), weights], axis=1)

    def _dpo_loss(
        self, asked: PolicyRequests, rows: np.ndarray, columns: Tensor, live: Tensor, weights: np.ndarray
    ) -> Outcome:
        settings = self.settings
        columns, live = columns.to(asked.device), live.to(asked.device)
        targets, known = self._chosen(asked, rows)
        paths = self._paths(torch.cat([columns, targets[:, None]], dim=1))
        every = self.policy.steps(asked, paths).sum(-1)
        reference = self.policy.reference_steps(asked, paths[:, :-1]).sum(-1)
        pairs = torch.from_numpy(weights).to(every)
        found = listwise_dpo(every[:, :-1], reference, live, settings.beta, pairs, settings.margin)
        loss = found.loss + settings.anchor * self._anchor(every[:, -1], known)
        return loss, {"preference": float(found.preference), "accuracy": float(found.accuracy), "gap": float(found.gap)}


def _repeated(pool: np.ndarray) -> np.ndarray:
    """Places (B, K) whose value stood earlier in the row."""
    order = np.argsort(pool, axis=1, kind="stable")
    ranked = np.take_along_axis(pool, order, 1)
    same = np.zeros(pool.shape, bool)
    same[:, 1:] = ranked[:, 1:] == ranked[:, :-1]
    result = np.zeros(pool.shape, bool)
    np.put_along_axis(result, order, same, 1)
    return result
