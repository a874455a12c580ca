"""What a history is worth in search: the same query with the own history, none, and somebody else's.

The third is the control: if any history helped as much as one's own, the gain would not be personal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl

from genrec.data.dataset import Requests
from genrec.evaluation.figures import Bar, grouped_bars
from genrec.evaluation.metrics import bootstrap_interval, difference_text, paired_test, per_request_metrics
from genrec.evaluation.search_protocols import without_history

LENGTHS = (1, 4, 7, 11, 21)  # where the slices of history length begin
WAYS = ("own history", "no history", "somebody else's history")
METRICS = ("recall@10", "mrr@10", "ndcg@10")
SHOWN = 5  # items of the example


@dataclass
class PersonalisationRequests:
    """Results of one kind of query by way of asking (``WAYS``).

    Metrics (N,) and ranked ids (N, 10) by way; ``lengths`` (N,) events of the own history.
    """

    metrics: dict[str, dict[str, np.ndarray]]
    ranked: dict[str, np.ndarray]
    lengths: np.ndarray
    notes: list[str] = field(default_factory=list)


def swapped(requests: Requests, seed: int) -> Requests:
    """Every request with the history of another one: a random rotation, so nobody keeps their own."""
    n = len(requests)
    order = np.random.default_rng(seed).permutation(n)
    other = np.empty(n, np.int64)
    other[order] = np.roll(order, 1)
    theirs = requests.take(other)
    return replace(theirs, request_queries=requests.request_queries, targets=requests.targets)


def ask(rank: Callable[[Requests], np.ndarray], requests: Requests, seed: int) -> PersonalisationRequests:
    """Rank the requests that have a history in each of ``WAYS``; ``rank``: requests -> ranked ids (N, 10)."""
    requests = requests.take(np.flatnonzero(np.diff(requests.offsets) > 0))
    variants = dict(zip(WAYS, (requests, without_history(requests), swapped(requests, seed)), strict=True))
    ranked = {way: rank(one) for way, one in variants.items()}
    measured = {way: per_request_metrics(ids, requests.targets, [10]) for way, ids in ranked.items()}
    result = PersonalisationRequests(
        {way: {name: one[name] for name in METRICS} for way, one in measured.items()}, ranked, np.diff(requests.offsets)
    )
    own, none, _ = WAYS
    for name in METRICS:
        for other in WAYS[1:]:
            difference = paired_test(result.metrics[own][name], result.metrics[other][name], seed)
            label = "personalised minus unpersonalised" if other == none else f"own minus {other}"
            result.notes.append(f"{label}, {name}: {difference_text(*difference)}")
    same = overlap(ranked[own], ranked[none])
    result.notes.append(
        f"{same.mean():.1%} of the first 10 answers are the same with and without history; {(same == 1).mean():.1%} of "
        "lists have the same 10"
    )
    pairs = same_query_pairs(requests)
    if len(pairs):
        shared = overlap(ranked[own][pairs[:, 0]], ranked[own][pairs[:, 1]])
        result.notes.append(
            f"two people with the same query ({len(pairs)} pairs) share {shared.mean():.1%} of their first 10 answers"
        )
    return result


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Fraction of the filled positions of ``a`` (N, K) whose item is in the same row of ``b`` (N, K): (N,)."""
    live = a >= 0
    return ((a[:, :, None] == b[:, None, :]) & live[:, :, None]).any(2).sum(1) / np.maximum(live.sum(1), 1)


def same_query_pairs(requests: Requests) -> np.ndarray:
    """(P, 2) neighbours among the requests of each query, so that a request is in at most two pairs."""
    order = np.argsort(requests.request_queries, kind="stable")
    same = requests.request_queries[order][1:] == requests.request_queries[order][:-1]
    return np.stack([order[:-1][same], order[1:][same]], axis=1)


def example(requests: Requests, outcome: PersonalisationRequests, titles: list[str]) -> dict | None:
    """One query and two users who find their targets only with their own histories; None without such a pair.

    Of all such pairs the one with the fewest common answers.
    """
    requests = requests.take(np.flatnonzero(np.diff(requests.offsets) > 0))
    own, none, _ = WAYS
    gained = (outcome.metrics[own]["recall@10"] == 1) & (outcome.metrics[none]["recall@10"] == 0)
    pairs = same_query_pairs(requests)
    pairs = (
        pairs[gained[pairs].all(1) & (requests.targets[pairs[:, 0]] != requests.targets[pairs[:, 1]])]
        if len(pairs)
        else pairs
    )
    if not len(pairs):
        return None
    pair = pairs[overlap(outcome.ranked[own][pairs[:, 0]], outcome.ranked[own][pairs[:, 1]]).argmin()]

    def name(ids: np.ndarray) -> list[str]:
        return [titles[item] for item in ids if item >= 0]

    people = []
    for row in pair:
        past = requests.items[requests.offsets[row] : requests.offsets[row + 1]][-SHOWN:]
        rank = int(np.flatnonzero(outcome.ranked[own][row] == requests.targets[row])[0]) + 1
        answers = name(outcome.ranked[own][row][:SHOWN])
        people.append(
            {"last events": name(past), "sought": titles[requests.targets[row]], "rank of it": rank, "answers": answers}
        )
    query = requests.query_texts[requests.request_queries[pair[0]]]
    return {"query": query, "answers without a history": name(outcome.ranked[none][pair[0]][:SHOWN]), "people": people}


def draw(path: Path, outcome: PersonalisationRequests, title: str, seed: int, metric: str = "recall@10") -> None:
    """A figure of the metric in each way, by length of the history."""
    ends = [*LENGTHS[1:], int(outcome.lengths.max()) + 1]
    slices = {"all": outcome.lengths > 0}
    for begin, end in zip(LENGTHS, ends, strict=True):
        inside = (outcome.lengths >= begin) & (outcome.lengths < end)
        if inside.any():
            slices[f"{begin} to {end - 1} events" if end - 1 > begin else f"{begin} events"] = inside
    series = {
        way: [
            Bar(
                label,
                float(values[metric][rows].mean()),
                *bootstrap_interval(values[metric][rows], seed),
                int(rows.sum()),
            )
            for label, rows in slices.items()
        ]
        for way, values in outcome.metrics.items()
    }
    grouped_bars(path, series, title, metric)


def titles_of(items: pl.DataFrame) -> list[str]:
    """A name for each item: its title, else its id."""
    return items.select(pl.coalesce(pl.when(pl.col("title") != "").then("title"), "item_id"))["title"].to_list()
