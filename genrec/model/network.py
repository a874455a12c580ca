"""The network: item and query vectors, backbone, retrieval head and code decoder around one masked sequence."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrec.catalogue.catalogue import Catalogue
from genrec.config.schema import ModelConfig
from genrec.data.rates import starting_weights
from genrec.model.anchors import AnchorAttention, Anchors, AnchorTables, AnchorTokens
from genrec.model.anchors import n_features as n_anchor_features
from genrec.model.backbone import Backbone, Cache, random_cuts, sequence_mask
from genrec.model.candidate_evidence import n_pair_features, pair_features, starting_pair_weights
from genrec.model.code_decoder import CodeDecoder, Memory
from genrec.model.dropout import Dropout
from genrec.model.embeddings import ItemEncoder, QueryEncoder
from genrec.model.profile import Profile
from genrec.model.ranking import RankingHead, request_rows
from genrec.model.reasoning import Reasoning
from genrec.model.rope import rotary_angles


@dataclass
class BatchImpressions:
    """Requests of a batch that the log itself answered: N of them, at ``row`` and ``column`` (N,) of the batch, with C items shown in each.

    ``items`` (N, C), -1 for padding; ``reached`` (N, C, stages) bool what became of them; ``features`` (N, C, F) float32.
    """

    row: Tensor
    column: Tensor
    items: Tensor
    reached: Tensor
    features: Tensor

    def to(self, device: torch.device | str) -> BatchImpressions:
        return BatchImpressions(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


@dataclass
class Batch:
    """B sequences of up to T events with up to R requests each. Contexts are padded on the right.

    ``items`` / ``actions`` / ``queries`` (B, T) int64; ``times`` (B, T) float64 buckets since the sequence's origin; ``positions`` (B, R)
    events visible to each request; ``request_times`` (B, R); ``request_queries`` (B, R); ``targets`` (B, R), -1 for padding or unknown.
    With ``model.summary_tokens`` also the events in front of each context: ``older_items`` / ``older_actions`` (n,), those of a sequence from
    ``older_offsets`` (B,) on. Queries index the batch's own table, 0 for none: ``query_text`` (Q, text_dim), ``query_words`` with ``query_offsets`` (Q,). Only in
    training, with ``model.stages``: ``reached`` (B, R, stages) bool what became of each target, and the requests with their ``shown`` items.
    """

    items: Tensor
    actions: Tensor
    queries: Tensor
    times: Tensor
    positions: Tensor
    request_times: Tensor
    request_queries: Tensor
    targets: Tensor
    query_text: Tensor
    query_words: Tensor
    query_offsets: Tensor
    older_items: Tensor | None = None
    older_actions: Tensor | None = None
    older_offsets: Tensor | None = None
    reached: Tensor | None = None
    impressions: BatchImpressions | None = None

    def to(self, device: torch.device | str) -> Batch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        options = {
            name: {} if isinstance(value, BatchImpressions) else {"non_blocking": True}
            for name, value in values.items()
        }
        return Batch(
            **{name: None if value is None else value.to(device, **options[name]) for name, value in values.items()}
        )


@dataclass
class Encoded:
    """``context`` (B, T, dim), ``requests`` (B, R, dim), ``visible`` (B, R, T) and the item vectors (n_items, dim) of this pass.

    Where the network has no code decoder nothing reads ``context``, and it is empty: (B, 0, dim).

    ``blocks`` are the request's tokens after the base pass and after each reasoning step, each (B, R, M, dim); ``requests`` is the mean of
    the last. ``angles`` (B, R x M, planes) are those tokens'; ``anchors`` what the requests were shown; ``cache`` the backbone's keys and values: context, requests, then each step.
    """

    context: Tensor
    requests: Tensor
    visible: Tensor
    items: Tensor
    blocks: list[Tensor]
    angles: Tensor
    cache: Cache
    anchors: Anchors | None = None


class GenerativeRecommender(nn.Module):
    """One network for recommendation and search: encodes requests, retrieves by dot product, generates semantic IDs."""

    def __init__(
        self, config: ModelConfig, catalogue: Catalogue, n_actions: int, time_base: float, generate: bool = True
    ):
        super().__init__()
        catalogue = catalogue.share()  # it moves with this network alone
        self.config, self.catalogue, self.time_base = config, catalogue, time_base
        dim = config.dim
        self.item_encoder = ItemEncoder(
            catalogue, dim, config.use_ids, config.use_text, config.use_codes, config.item_dropout
        )
        self.query_encoder = QueryEncoder(catalogue.text.shape[1], dim, config.query_ngrams, config.query_codes)
        self.actions = nn.Embedding(n_actions, dim)
        self.fuse_query = nn.Linear(dim, dim, bias=False)
        self.no_query = nn.Parameter(torch.randn(dim) * 0.02)
        self.request = nn.Parameter(torch.randn(dim) * 0.02)
        self.last_event = nn.Linear(dim, dim, bias=False) if config.last_event else None
        self.anchor_tables = self.early_anchors = self.late_anchors = None
        features = n_anchor_features(bool(config.query_anchors)) if config.anchors else 0
        if config.anchors:
            self.anchor_tables = AnchorTables(catalogue.n_items, config.anchors, bool(config.query_anchors))
            self.anchor_tokens = AnchorTokens(dim, config.heads, features)
            self.early_anchors = AnchorAttention(dim, config.heads, config.dropout, features)
            self.late_anchors = AnchorAttention(dim, config.heads, config.dropout, features)
        self.profile = None
        if config.user_tokens or config.summary_tokens:
            levels = catalogue.codes.shape[1]
            self.profile = Profile(dim, config.heads, n_actions, levels, config.user_tokens, config.summary_tokens)
        self.input_norm, self.drop = nn.LayerNorm(dim), Dropout(config.dropout)
        self.backbone = Backbone(dim, config.layers, config.heads, config.dropout)
        self.reasoning = Reasoning(dim, config.reasoning_steps, bool(config.stages)) if config.reasoning_steps else None
        self.ranking = None
        if config.ranking:
            stages, starting = max(len(config.stages), 1), None
            if config.candidate_evidence:
                starting = (
                    starting_weights(stages)
                    if config.stages
                    else starting_pair_weights(stages, n_pair_features(features))
                )
            self.ranking = RankingHead(dim, stages, starting, config.dropout, config.candidates_visible)
            if config.candidate_evidence and not config.stages:  # scores of the whole catalogue become chances
                nn.init.constant_(self.ranking.score[-1].bias, -math.log(catalogue.n_items))
        self.retrieval = nn.Linear(dim, dim)
        nn.init.normal_(self.actions.weight, std=0.02)
        self.decoder = None
        if generate:
            self.decoder = CodeDecoder(
                catalogue.trie, dim, config.decoder_layers, config.heads, config.dropout, config.node_vectors, config.temperature,
                features, config.pointer and config.anchors > 0,
            )  # fmt: skip

    def choose_anchors(self, batch: Batch, leave_out: bool | None = None) -> Anchors | None:
        """What each request is shown besides its history; None where the network reads no anchors.

        ``leave_out``: take the sequence's own events out of the counts, as a request must that was counted; default: in training mode.
        """
        if self.anchor_tables is None:
            return None
        leave_out = self.training if leave_out is None else leave_out
        tables, asked = self.anchor_tables, None
        if tables.queries is not None:
            query = batch.query_text, batch.query_words, batch.query_offsets
            asked = tables.queries.look_up(batch.request_queries, *query, self.item_encoder.text, tables.users)
        return tables.choose(batch.items, batch.positions, batch.targets if leave_out else None, asked)

    def encode(self, batch: Batch, items: Tensor | None = None, anchors: Anchors | None = None) -> Encoded:
        """Run the backbone once over contexts and requests.

        ``items`` (N, dim) are the vectors of all items, or of those that ``batch.items`` and ``anchors`` then name by their rows.
        """
        items = self.item_encoder() if items is None else items
        queries = self.query_encoder(batch.query_text, batch.query_words, batch.query_offsets, self.item_encoder)
        events = items[batch.items]
        if self.training and self.config.event_dropout:
            events = events * (torch.rand(*batch.items.shape, 1, device=events.device) >= self.config.event_dropout)
        context = events + self.actions(batch.actions) + self.fuse_query(queries)[batch.queries]
        asked = torch.where((batch.request_queries > 0)[..., None], queries[batch.request_queries], self.no_query)
        asked = self.request + asked
        if self.last_event is not None:
            asked = asked + self._last(context, batch.positions)
        asked = asked[:, :, None]  # (B, R, M, dim): the request block
        anchors = self.choose_anchors(batch) if anchors is None else anchors
        if anchors is not None:
            tokens = self.anchor_tokens(anchors, items)
            asked = asked + self.early_anchors(asked, anchors, *tokens)
        if self.profile is not None:
            older = None if batch.older_items is None else (batch.older_items, batch.older_actions, batch.older_offsets)
            asked = torch.cat(
                [asked, self.profile(self.item_encoder, batch.items, batch.actions, batch.positions, older)], dim=2
            )
        shape, length = asked.shape, batch.items.shape[1]
        x = self.drop(self.input_norm(torch.cat([context, asked.flatten(1, 2)], dim=1)))
        index = torch.arange(length, device=x.device).expand(x.shape[0], -1)
        positions, when = (part.repeat_interleave(shape[2], 1) for part in (batch.positions, batch.request_times))
        angles = rotary_angles(
            torch.cat([index, positions], dim=1), torch.cat([batch.times, when], dim=1),
            self.config.dim // self.config.heads // 2, self.config.time_share, self.time_base, self.config.rope,
        )  # fmt: skip
        cuts = (
            random_cuts(batch.positions.amax(1), self.config.cut_share)
            if self.training and self.config.cut_share
            else None
        )
        mask = sequence_mask(length, batch.positions, shape[2], cuts)
        unread = length if self.decoder is None else 0  # only the code decoder looks at what became of the context
        x, cache = self.backbone.extend(x, angles, mask, unread=unread)
        visible, angles = mask[:, length :: shape[2], :length], angles[:, length:]
        blocks = [x[:, length - unread :].unflatten(1, shape[1:3])]
        if anchors is not None:
            blocks = [blocks[0] + self.late_anchors(blocks[0], anchors, *tokens)]
        if self.reasoning is not None:
            further, cache = self.reasoning(self.backbone, blocks[0], angles, visible, cache)
            blocks += further
        requests = blocks[-1].mean(2)
        return Encoded(x[:, : length - unread], requests, visible, items, blocks, angles, cache, anchors)

    def _last(self, context: Tensor, positions: Tensor) -> Tensor:
        """What each request takes over from the event right before it: (B, R, dim), zero for a request without history.

        Through attention alone a request has to find that event first; on short histories the plain shortcut learns faster and better.
        """
        place = (positions - 1).clamp(min=0)[..., None].expand(-1, -1, context.shape[-1])
        return self.last_event(context.gather(1, place)) * (positions > 0)[..., None]

    def retrieval_vectors(self, requests: Tensor) -> Tensor:
        """Unit request vectors (..., dim) for the dot product with ``item_index``."""
        return F.normalize(self.retrieval(requests), dim=-1)

    def item_index(self, items: Tensor) -> Tensor:
        """Unit item vectors divided by the temperature: (n_items, dim)."""
        return F.normalize(items, dim=-1) / self.config.temperature

    def rank(
        self, encoded: Encoded, row: Tensor, lane: Tensor, candidates: Tensor, evidence: Tensor | None = None
    ) -> Tensor:
        """Logits (N, C, stages) of the ranking head for ``candidates`` (N, C) item ids, -1 for padding, of the requests at ``row``, ``lane`` (N,).

        ``evidence`` (N, C, F) as ``FeedbackRates.features`` makes it, with ``model.stages``; None where nothing is known. Without stages
        the network sees for itself what it knows of each pair.
        """
        if self.config.candidate_evidence and not self.config.stages:
            evidence = self._pair_evidence(encoded, row, lane, candidates)
        block = encoded.blocks[0].shape[2]
        cache, seen = request_rows(encoded.cache, encoded.visible, row, lane, block, len(encoded.blocks))
        items = encoded.items[candidates.clamp(min=0)]
        return self.ranking(
            self.backbone, items, evidence, candidates >= 0, encoded.angles[row, lane * block], seen, cache
        )

    @torch.no_grad()
    def _pair_evidence(self, encoded: Encoded, row: Tensor, lane: Tensor, candidates: Tensor) -> Tensor:
        """Given, not taught: the ranking loss does not move the retrieval head."""
        dense = self.relevance(encoded.requests[row, lane], candidates.clamp(min=0), encoded.items)
        return pair_features(dense, candidates, None if encoded.anchors is None else encoded.anchors.take(row, lane))

    def decoder_memory(
        self,
        encoded: Encoded,
        row: Tensor | None = None,
        lane: Tensor | None = None,
        decoder: CodeDecoder | None = None,
    ) -> Memory:
        """What the code decoder attends over: the context, and each request's reasoning blocks and anchors.

        ``row`` and ``lane`` (N,) choose requests, which become rows of their own; ``decoder`` stands in for the network's.
        """
        decoder = self.decoder if decoder is None else decoder
        thoughts, anchors = torch.cat(encoded.blocks[1:], dim=2) if len(encoded.blocks) > 1 else None, encoded.anchors
        memory = decoder.memory(encoded.requests, encoded.context, encoded.visible)
        if row is not None:
            memory = memory.take(row, lane)
            thoughts = thoughts[row, lane][:, None] if thoughts is not None else None
            anchors = anchors.take(row, lane) if anchors is not None else None
        memory = decoder.with_private(memory, thoughts, anchors, encoded.items)
        if decoder.pointer is not None:
            memory.copy_bias = decoder.pointer(
                memory.state, anchors, self.relevance(memory.state, anchors.ids, encoded.items), self.catalogue.trie
            )
        return memory

    def relevance(self, state: Tensor, ids: Tensor, items: Tensor) -> Tensor:
        """The retrieval head's score of items ``ids`` (..., A) for requests with ``state`` (..., dim): (..., A)."""
        return (self.retrieval_vectors(state)[..., None, :] * self.item_index(F.embedding(ids, items))).sum(-1)
