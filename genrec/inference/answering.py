"""From requests to responses: requests of one kind share a pass of the network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from genrec.data.dataset import Dataset, Requests
from genrec.errors import UserError
from genrec.generation.options import MODES, SearchOptions
from genrec.inference.exploration import POOL, explored
from genrec.inference.filters import Filters
from genrec.inference.histories import build_requests, stated_situations
from genrec.inference.query_prices import with_price
from genrec.inference.requests import Answer, Diversity, RecommendationRequest, Response, StoredUsers
from genrec.inference.snapshot import CatalogueSnapshot
from genrec.ranking.ranker import Ranked
from genrec.retrieval.allowed import AllowedItems, id_lists
from genrec.retrieval.lexical import Match

_DIVERSE_POOL = 5  # a diversified list is chosen from this many times its length


def answer_all(
    data: Dataset,
    snapshot: CatalogueSnapshot,
    requests: Sequence[RecommendationRequest],
    stored: StoredUsers | None,
    strict: bool,
) -> list[Response]:
    """One response per request, in order; see ``Recommender.ask``."""
    priced: dict[int, str] = {}
    if snapshot.has_prices:
        requests = list(requests)
        for number, request in enumerate(requests):
            requests[number], note = with_price(request)
            if note is not None:
                priced[number] = note
    responses: list[Response | None] = [None] * len(requests)
    groups: dict[tuple, list[int]] = defaultdict(list)
    notes: dict[int, list[str]] = {}
    for number, request in enumerate(requests):
        notes[number] = _notes(snapshot, request, strict) + ([priced[number]] if number in priced else [])
        if request.candidates is not None and not strict:
            known = tuple(item for item in request.candidates if snapshot.has(item))
            if not known:
                responses[number] = Response([], request.mode, notes=notes[number])
                continue
            request = replace(request, candidates=known)
        groups[_kind(snapshot, request)].append(number)
    for numbers in groups.values():
        group = [requests[number] for number in numbers]
        for number, response in zip(numbers, _answer_group(data, snapshot, group, stored, strict), strict=True):
            responses[number] = replace(response, notes=notes[number])
    return [response for response in responses if response is not None]


def _notes(snapshot: CatalogueSnapshot, request: RecommendationRequest, strict: bool) -> list[str]:
    """What of a request is left aside; ``UserError`` for it where ``strict``."""
    notes = [] if request.filters is None else request.filters.unknown_categories(snapshot.categories)
    if strict and notes:
        raise UserError(notes[0])
    if request.candidates is not None and not strict:
        missing = dict.fromkeys(item for item in request.candidates if not snapshot.has(item))
        notes += [f"candidate '{item[:100]}' is not in the catalogue" for item in missing]
    return notes


def _kind(snapshot: CatalogueSnapshot, request: RecommendationRequest) -> tuple:
    """What requests must have in common to share a pass."""
    options = SearchOptions(min(_length(request), snapshot.n_items), (request.mode,))
    width = options.widths(snapshot.ranker.settings)[0 if request.mode == "generate" else 1]
    subset = None if request.filters is None else request.filters.subset
    return request.mode, request.exclude_seen, width, subset, request.candidates is None


def _answer_group(
    data: Dataset,
    snapshot: CatalogueSnapshot,
    group: list[RecommendationRequest],
    stored: StoredUsers | None,
    strict: bool,
) -> list[Response]:
    times = np.array([np.nan if one.timestamp is None else one.timestamp for one in group], np.float64)
    users, queries, histories = ([getattr(one, name) for one in group] for name in ("user", "query", "history"))
    situation = stated_situations(snapshot, [one.attributes for one in group], [one.surface for one in group])
    requests = build_requests(data, snapshot, users, times, queries, histories, stored, strict, situation)
    allowed = _allowed(snapshot, group, stored, strict)
    options = SearchOptions(max(map(_length, group)), (group[0].mode,), group[0].exclude_seen, allowed=allowed)
    ids, scores, n_proven = lists(snapshot, requests, options)
    read = snapshot.ranker.understood(requests)  # a query that names nothing is none
    blank = (np.diff(requests.offsets) == 0) & (read.request_queries < 0)
    texts = list(dict.fromkeys(one.query for one in group if one.query is not None))
    matches: dict[str | None, Match | None] = dict(zip(texts, snapshot.ranker.matches(texts), strict=True))
    for row in np.flatnonzero(blank):  # popular items: their scores are counts
        group[row] = replace(group[row], exploration=None)
    identities = [b"" if one.exploration is None else _identity(one, requests, row) for row, one in enumerate(group)]
    return [
        replace(
            _response(snapshot, request, ids[row], scores[row], int(n_proven[row]), identities[row]),
            source="popular" if blank[row] else "model",
            **_matched(matches.get(request.query)),
        )
        for row, request in enumerate(group)
    ]


def lists(
    snapshot: CatalogueSnapshot,
    requests: Requests,
    options: SearchOptions,
    progress: Callable[[int], None] | None = None,
) -> Ranked:
    """The lists of N requests in the mode of ``options``.

    ``UserError`` for k below 1 or a mode that the model does not have.
    """
    ranker, (mode,) = snapshot.ranker, options.modes
    if options.k < 1:
        raise UserError(f"k must be at least 1, is {options.k}")
    if mode not in ranker.modes:
        raise UserError(f"--mode: '{mode}' is not one of {', '.join(ranker.modes if mode in MODES else MODES)}")
    return ranker.rank(requests, replace(options, k=min(options.k, snapshot.n_items)), progress)[mode]


def similar_items(snapshot: CatalogueSnapshot, item_id: str, k: int, filters: Filters | None) -> list[Answer]:
    """The items nearest to one item; see ``Recommender.similar``."""
    if k < 1:
        raise UserError(f"k must be at least 1, is {k}")
    item = int(snapshot.indices([item_id])[0])
    blocked = [] if filters is None else snapshot.known_indices(filters.blocked or ()).tolist()
    mask = snapshot.available if filters is None or not filters.restricts else snapshot.mask_of(filters)
    generator = snapshot.ranker.generator
    query = functional.normalize(generator.items[item][None], dim=-1)
    allowed = AllowedItems(mask, id_lists([[item, *blocked]])).to(query.device)
    ids, scores = generator.dense.search(query, min(k, snapshot.n_items), allowed)
    cosines = scores * generator.network.config.temperature  # the index holds unit vectors over the temperature
    pairs = zip(ids[0].tolist(), cosines[0].tolist(), strict=True)
    return [Answer(snapshot.item_ids[n], snapshot.titles[n], score) for n, score in pairs if n >= 0]


def _length(request: RecommendationRequest) -> int:
    """How long a list the request needs from the ranker."""
    length = (request.offset + request.k) * (1 if request.diversity is None else _DIVERSE_POOL)
    return length if request.exploration is None else max(length, POOL)


def _allowed(
    snapshot: CatalogueSnapshot, group: Sequence[RecommendationRequest], stored: StoredUsers | None, strict: bool
) -> AllowedItems:
    """What requests of one ``Filters.subset`` may be answered with."""
    filters, mask, excluded, only = group[0].filters, snapshot.available, None, None
    if filters is not None and filters.restricts:
        mask = snapshot.mask_of(filters)
    hidden = [_excluded(snapshot, request, stored) for request in group]
    if any(map(len, hidden)):
        excluded = id_lists(hidden)
    if group[0].candidates is not None:
        known = [[item for item in one.candidates or () if strict or snapshot.has(item)] for one in group]
        only = id_lists([snapshot.indices(items) for items in known])
    return AllowedItems(mask, excluded, only)


def _excluded(snapshot: CatalogueSnapshot, request: RecommendationRequest, stored: StoredUsers | None) -> np.ndarray:
    """Blocked items, and with ``exclude_seen`` all items the store has of the user: a history holds the newest only."""
    items = list(request.filters.blocked or ()) if request.filters is not None else []
    if request.exclude_seen and request.reads_user and stored is not None:
        assert request.user is not None
        items += stored.items.get(request.user, [])
    return snapshot.known_indices(items)


def _identity(request: RecommendationRequest, requests: Requests, row: int) -> bytes:
    """What exploration's draws follow from: the person, the history as it was read, and the query."""
    history = requests.items[requests.offsets[row] : requests.offsets[row + 1]]
    return repr((request.user, request.query)).encode("utf-8", "replace") + np.asarray(history, np.int64).tobytes()


def _response(
    snapshot: CatalogueSnapshot,
    request: RecommendationRequest,
    ids: np.ndarray,
    scores: np.ndarray,
    n_proven: int,
    identity: bytes,
) -> Response:
    live = ids >= 0
    ids, scores = ids[live], scores[live]
    propensities: list[float | None] = [None] * len(ids)
    if request.diversity is not None:
        order = diversified(snapshot.catalogue.codes[torch.from_numpy(ids)], request.diversity)
        ids, scores, n_proven = ids[order], scores[order], 0
    if request.exploration is not None:
        order, chances = explored(scores, request.offset + request.k, request.exploration, identity)
        moved = np.flatnonzero(order != np.arange(len(order)))
        n_proven = min(n_proven, int(moved[0]) if len(moved) else n_proven)
        ids, scores, propensities = ids[order], scores[order], chances.tolist()
    page = slice(request.offset, request.offset + request.k)
    items = [
        Answer(snapshot.item_ids[item], snapshot.titles[item], float(score), propensity)
        for item, score, propensity in zip(ids[page].tolist(), scores[page].tolist(), propensities[page], strict=True)
    ]
    return Response(items, request.mode, n_proven=min(max(n_proven - request.offset, 0), len(items)))


def diversified(codes: torch.Tensor, diversity: Diversity) -> np.ndarray:
    """A new order (n,) of a list with codes (n, L): the first ``at_most`` of each prefix, then the next ones, ..."""
    if not len(codes):
        return np.zeros(0, np.int64)
    _, prefix = np.unique(codes[:, : diversity.levels].cpu().numpy(), axis=0, return_inverse=True)
    prefix = prefix.ravel()
    by_prefix = np.argsort(prefix, kind="stable")
    rank = np.empty(len(prefix), np.int64)
    rank[by_prefix] = np.arange(len(prefix)) - np.searchsorted(prefix[by_prefix], prefix[by_prefix])
    return np.argsort(rank // diversity.at_most, kind="stable")


def _matched(match: Match | None) -> dict[str, Any]:
    """The fields of a response that say how its query matches the catalogue."""
    if match is None:
        return {}
    corrected = None if match.no_match else match.read.corrected
    return {"no_match": match.no_match, "match": match.probability, "corrected": corrected}
