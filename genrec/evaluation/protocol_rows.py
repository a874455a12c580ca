"""Run a search protocol on a run: our model and the protocol's baselines on the same requests."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from genrec.artifacts.folders import atomic_folder, fingerprint, write_json
from genrec.config.load import to_dict
from genrec.data.dataset import TRAIN, VALID, Requests
from genrec.errors import UserError
from genrec.evaluation import personalisation as personal
from genrec.evaluation import search_protocols as protocols
from genrec.evaluation.answerers import (
    Answerer,
    answered,
    best_popularity_weight,
    by_histories,
    by_model,
    by_scores,
    query_texts,
    with_popularity,
)
from genrec.evaluation.baseline_rows import Baselines
from genrec.evaluation.baselines import DenseText, Popularity, stack
from genrec.evaluation.impression_ranking import impression_ranking
from genrec.evaluation.impression_rows import impression_rows
from genrec.evaluation.metrics import PAD, difference_text, paired_test, per_request_metrics, top_k
from genrec.evaluation.protocol import OUR_NAMES, Evaluation
from genrec.evaluation.protocol_result import FUSED, ProtocolResult
from genrec.evaluation.qrels import qrels_metrics
from genrec.evaluation.text_relevance import text_relevance, text_scorers
from genrec.generation.options import SearchOptions
from genrec.ranking.ranker import Ranker
from genrec.retrieval.cooccurrence import CooccurrenceTransition
from genrec.runs.stages import RESULTS_KIND, RESULTS_VERSION, results_key

SAMPLED_KS = (1, 5, 10)


class Protocols:
    """Answers of one fit of a run to every protocol."""

    def __init__(self, run, split: str = "test", fitted: str = "train"):
        self.run, self.split, self.fitted, self.data = run, split, fitted, run.dataset
        self.last = VALID if fitted == "train+valid" else TRAIN
        self.lexical, self.counts = run.lexical, run.dataset.item_counts(self.last)

    @cached_property
    def ranker(self) -> Ranker:
        """Our model."""
        return self.run.ranker(self.fitted)

    def baselines(self) -> list[ProtocolResult]:
        """The baselines' rows alone, of a tokenized run; compared with the stack."""
        results, made = [], Baselines(self.run, fits=False)
        for task in Evaluation(self.run, self.split).tasks:
            result = self.result("baselines", f"Baselines: {task.label}", ("full ranking, already-had items removed",))
            result.subject = stack.NAME
            for row in made.rows(task.requests, task.query_kind, self.fitted, 20):
                measured = per_request_metrics(row.ranked, task.requests.targets, [10, 20])
                result.add(row.model, {name: measured[name] for name in ("recall@10", "ndcg@10", "recall@20")})
            result.notes += made.notes()
            results += [result] if result.values else []
        return results

    def result(self, name: str, title: str, notes: tuple[str, ...] = ()) -> ProtocolResult:
        """An empty table whose notes state split, fit and kind of queries."""
        info = self.data.info
        head = f"{self.split} split, {info['split']}, fingerprint {info['split_fingerprint']}"
        head += f"; model and baselines fitted on {self.fitted}"
        if info["synthetic_queries"] or self.run.config.data.reader == "product-search":
            head += "; queries are SYNTHETIC"
        return ProtocolResult(name, title, self.run.config.seed, [head, *notes])

    def ours(self) -> dict[str, Answerer]:
        """Our model's answers, by row."""
        return {OUR_NAMES[mode]: by_model(self.ranker, mode) for mode in self.ranker.modes}

    def search_baselines(self, valid: Requests) -> dict[str, Answerer]:
        """Popularity, BM25, dense text, and BM25 with popularity weighed on validation searches."""
        popular = Popularity().fit(self.data.histories(self.last), self.data.n_items)
        dense = DenseText().fit(self.run.ids.catalogue.text.numpy())
        weight = best_popularity_weight(self.lexical, self.counts, valid)
        return {
            "popularity": by_scores(lambda requests: popular.score(requests.histories)),
            "BM25": by_scores(lambda requests: self.lexical.score(query_texts(requests))),
            "dense text": by_scores(lambda requests: dense.score(self.run.ids.encoder.encode(query_texts(requests)))),
            f"BM25 + {weight:g} popularity": by_scores(with_popularity(self.lexical, self.counts, weight)),
        }

    def measure(
        self,
        result: ProtocolResult,
        protocol: protocols.ProtocolRequests,
        answerers: dict[str, Answerer],
        k: int,
        ks=(10,),
        metrics=(),
    ) -> None:
        """Add a row per answerer: metrics of its first ``k`` items at ``ks``, or those named by ``metrics``."""
        for model, answerer in answerers.items():
            ranked = answered(answerer, protocol.requests, k, protocol.candidates, self.data.n_items)
            measured = qrels_metrics(ranked, protocol.qrels, [one for one in ks if one <= k])
            result.add(model, {name: measured[name] for name in metrics or measured})

    def product_search(self) -> list[ProtocolResult]:
        """Product search: a user and a query, answered by all purchases of the split."""
        protocol = protocols.product_search(self.data, self.split)
        result = self.result("product-search", "Product search", protocol.notes)
        k = min(protocols.LIST, self.data.n_items)
        self.measure(
            result,
            protocol,
            self.ours() | self.search_baselines(self._valid("logged")),
            k,
            (min(10, k),),
            ("mrr", "map", f"ndcg@{min(10, k)}"),
        )
        return [result]

    def session_search(self) -> list[ProtocolResult]:
        """Click-outs among the items of a slate."""
        protocol = protocols.session_search(self.data, self.split)
        result = self.result("session-search", "Session search: click-outs among the items shown", protocol.notes)
        lists = protocol.slates.items
        k = lists.shape[1]
        inside = np.where(protocols.familiar(self.data, protocol.requests, lists, self.last), lists, PAD)
        known = np.concatenate([protocols.click_counts(self.data, self.last), [0]])
        clicks, recent = (
            known[np.where(inside < 0, self.data.n_items, inside)],
            protocols.last_interacted(protocol.requests, lists),
        )
        result.subject = f"{FUSED} with the list"
        ranked = {result.subject: impression_rows(self, protocol)} if self.split == "test" else {}
        for model, answerer in self.ours().items():
            ranked[model] = protocols.completed(
                answered(answerer, protocol.requests, k, inside, self.data.n_items), lists
            )
        ranked |= {
            "as shown": protocols.slate_order(lists),
            "popularity of click-outs": protocols.slate_order(lists, clicks),
            "last interacted, then as shown": protocols.slate_order(lists, recent),
            "last interacted, then popularity": protocols.slate_order(
                lists, recent + clicks / (1e9 + clicks.max(initial=0))
            ),
        }
        for model, order in ranked.items():
            measured = qrels_metrics(order, protocol.qrels, (min(5, k),))
            result.add(model, {name: measured[name] for name in ("mrr", f"recall@{min(5, k)}")})
        result.notes.append(
            f"'{result.subject}' reads positions and prices of the list and the click-out's own time, all others do not"
        )
        return [result]

    def sampled(self, seeds: int = 1) -> list[ProtocolResult]:
        """The target among 99 random items; each request's mean over ``seeds`` draws of them."""
        results = []
        for kind in (None, *self.data.query_kinds):
            task = "recommendation" if kind is None else f"search ({kind})"
            if not len(self.data.requests(self.split, kind)):
                continue
            answerers = self.ours()
            if kind is None:
                simple: dict[str, Any] = {
                    "popularity": Popularity,
                    "co-occurrence + transitions": CooccurrenceTransition,
                }
                for name, make in simple.items():
                    model = make().fit(self.data.histories(self.last), self.data.n_items)
                    answerers[name] = by_histories(model)
            else:
                answerers |= self.search_baselines(self._valid(kind))
            draws = []
            for seed in range(seeds):
                protocol = protocols.sampled(self.data, self.split, kind, seed)
                draws.append(
                    self.result(
                        "sampled", f"SAMPLED, 1 + 99 random: {task}", (*protocol.notes, f"mean of {seeds} draws")
                    )
                )
                self.measure(
                    draws[-1],
                    protocol,
                    answerers,
                    10,
                    SAMPLED_KS,
                    ("ndcg@10", "ndcg@5", *(f"recall@{k}" for k in SAMPLED_KS)),
                )
            for model in draws[0].values:
                draws[0].values[model] = {
                    name: np.mean([one.values[model][name] for one in draws], axis=0) for name in draws[0].values[model]
                }
            results.append(draws[0])
        return results

    def cold_user(self) -> list[ProtocolResult]:
        """Searches without the history, beside the same with it: the difference is what personalisation is worth."""
        results = []
        for kind in self.data.query_kinds:
            requests = self.data.requests(self.split, kind)
            if not len(requests):
                continue
            result = self.result(
                "cold-user", f"Cold-user search ({kind})", ("full ranking; items of the history may be answered",)
            )
            k = min(20, self.data.n_items)
            ks = tuple(one for one in (5, 10) if one <= k)
            metrics = (f"ndcg@{ks[-1]}", f"recall@{ks[-1]}", "mrr")
            qrels = protocols.Qrels.build(np.arange(len(requests)), requests.targets, n=len(requests))
            cold = protocols.ProtocolRequests(protocols.without_history(requests), qrels)
            self.measure(result, cold, self.ours() | self.search_baselines(self._valid(kind)), k, ks, metrics)
            warm = {f"{name}, with history": answerer for name, answerer in self.ours().items()}
            self.measure(result, protocols.ProtocolRequests(requests, qrels), warm, k, ks, metrics)
            first = metrics[0]
            for name in self.ours():
                difference = paired_test(
                    result.values[f"{name}, with history"][first],
                    result.values[name][first],
                    result.seed,
                )
                result.notes.append(
                    f"personalised minus unpersonalised, {name}, {first}: {difference_text(*difference)}"
                )
            results.append(result)
        if not results:
            raise UserError(
                "protocol cold-user: the data have no held-out queries; it needs logged searches or queries.synthetic"
            )
        return results

    def cold_items(self) -> list[ProtocolResult]:
        """Requests whose target had no event in the fit's splits; items of the history are removed."""
        results, cold = [], self.counts == 0
        text = self.run.ids.catalogue.text.cpu().numpy()
        for kind in (None, *self.data.query_kinds):
            requests = self.data.requests(self.split, kind)
            requests = requests.take(np.flatnonzero(cold[requests.targets]))
            if not len(requests):
                continue
            task = "recommendation" if kind is None else f"search ({kind})"
            note = (
                f"{len(requests)} requests for {len(np.unique(requests.targets))} of {int(cold.sum())} items without "
                "an event; "
                f"full ranking over {self.data.n_items}, already-had items removed"
            )
            result = self.result("cold-items", f"Cold items: {task}", (note,))
            rows = {
                OUR_NAMES[mode]: ranked
                for mode, (ranked, *_) in self.ranker.rank(requests, SearchOptions(20, self.ranker.modes)).items()
            }
            scorers = {"BM25": lambda chunk: self.lexical.score(query_texts(chunk))}
            if kind is None:
                scorers = {"text of the last event": lambda chunk: protocols.last_text(chunk, text)}
                scorers |= self.run.baseline_scorers(self.fitted)
            rows |= {
                name: top_k(np.asarray(scorer(requests), np.float64), 20, requests.histories)[0]
                for name, scorer in scorers.items()
            }
            for name, ranked in rows.items():
                values = per_request_metrics(ranked, requests.targets, [10, 20])
                result.add(name, {metric: values[metric] for metric in ("recall@10", "ndcg@10", "recall@20")})
            results.append(result)
        if not results:
            raise UserError(
                f"protocol cold-items: every target of the {self.split} split had a training event; prepare with "
                "split.cold_share=0.1"
            )
        return results

    def text_relevance(self) -> list[ProtocolResult]:
        """The judged items of each query ranked by text alone, of a tokenized run; compared with BM25."""
        if self.data.judgments is None:
            raise UserError(
                "protocol text-relevance: the log has no judgments; it needs judged queries, as reader esci reads them"
            )
        ids = self.run.ids
        scorers = text_scorers(self.lexical, ids.catalogue.text.cpu().numpy(), ids.encoder)
        values, notes = text_relevance(self.data.item_table, self.data.judgments, scorers)
        note = "nobody's history and no training on queries"
        result = ProtocolResult("text-relevance", "Text relevance", self.run.config.seed, [note, *notes])
        result.subject = "dense text + BM25"
        for model, metrics in values.items():
            result.add(model, metrics)
        return [result]

    def personalisation(self, requests: int = 0) -> list[ProtocolResult]:
        """The same query with the user's history, without one, and with somebody else's.

        ``requests``: maximum number of a kind, drawn at random; 0 is all.
        """
        results, k = [], min(10, self.data.n_items)
        for kind in self.data.query_kinds:
            every = self.data.requests(self.split, kind)
            if not (np.diff(every.offsets) > 0).any():
                continue
            notes: tuple[str, ...] = ("full ranking; items of the history may be answered",)
            chosen = every
            if 0 < requests < len(every):
                notes += (f"{requests} of {len(every)} requests, drawn at random",)
                draw = np.random.default_rng(self.run.config.seed).permutation(len(every))[:requests]
                chosen = every.take(np.sort(draw))
            result = self.result("personalisation", f"Personalised search ({kind})", notes)
            for name, answerer in self.ours().items():
                rank = partial(_first_ten, answerer, k)
                outcome = personal.ask(rank, chosen, result.seed)
                for way, metrics in outcome.metrics.items():
                    result.add(f"{name}, {way}", metrics)
                result.notes += [f"{name}: {note}" for note in outcome.notes]
                if name == FUSED:
                    result.example = personal.example(chosen, outcome, personal.titles_of(self.data.item_table))
                    result.figure = f"personalisation_{kind}.png", _personal_figure(result, outcome)
            results.append(result)
        if not results:
            raise UserError(
                "protocol personalisation: the data have no held-out queries; it needs logged searches or "
                "queries.synthetic"
            )
        return results

    def _valid(self, kind: str) -> Requests:
        """Validation searches of a kind; none where there are none."""
        if kind in self.data.query_kinds:
            return self.data.requests("valid", kind)
        return self.data.requests("valid").take(np.zeros(0, np.int64))


UNTRAINED = ("baselines", "text-relevance")  # what a tokenized run can be measured by
PROTOCOLS: dict[str, Callable[..., list[Any]]] = {
    "baselines": Protocols.baselines,
    "product-search": Protocols.product_search,
    "session-search": Protocols.session_search,
    "sampled": Protocols.sampled,
    "cold-user": Protocols.cold_user,
    "cold-items": Protocols.cold_items,
    "personalisation": Protocols.personalisation,
    "text-relevance": Protocols.text_relevance,
    "ranking": lambda protocols: impression_ranking(protocols.run, protocols.ranker, protocols.split, protocols.last),
}


def _personal_figure(result: ProtocolResult, outcome: personal.PersonalisationRequests) -> Callable[[Path], None]:
    title = f"{result.title}: what the history is worth"
    return lambda path: personal.draw(path, outcome, title, result.seed)


def _first_ten(answerer: Answerer, k: int, requests: Requests) -> np.ndarray:
    """The first ``k`` of up to ten answers, padded to ten: (N, 10)."""
    return np.pad(answered(answerer, requests, k), ((0, 0), (0, 10 - k)), constant_values=PAD)


def run_protocol(run, name: str, split: str = "test", fitted: str = "train", **options: Any) -> list[Any]:
    """The tables of a protocol, also written to ``RUN/results_NAME`` or ``RUN/results_valid_NAME`` (JSON, Markdown)."""
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(name, list(PROTOCOLS), n=1, cutoff=0.0)[0]
        raise UserError(f"--protocol: '{name}' is not one of {', '.join(PROTOCOLS)}; did you mean '{near}'?")
    results = PROTOCOLS[name](Protocols(run, split, fitted), **options)
    tables = [
        {
            "title": one.title,
            "notes": one.notes,
            "rows": one.rows(),
            "comparisons": one.comparisons(),
            "example": one.example,
        }
        for one in results
    ]
    if name in UNTRAINED:
        made_from = run.stages.require("semantic_ids")["key"], to_dict(run.config.evaluation), run.config.seed
        key = fingerprint(RESULTS_VERSION, split, name, fitted, options, *made_from)
    else:
        key = results_key(run.stages, run.config, split, name, fitted, options)
    with atomic_folder(run.results(split, name), RESULTS_KIND, key) as folder:
        for one in results:
            if one.figure:
                one.figure[1](folder / one.figure[0])
        write_json(
            folder / "tables.json",
            {"protocol": name, "split": split, "fitted_on": fitted, "seed": run.config.seed, "tables": tables},
        )
        (folder / "tables.md").write_text("\n".join(one.markdown() for one in results))
    return results
