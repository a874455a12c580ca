"""The network: encoders, backbone, retrieval head, ranking head and code decoder around one masked sequence."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrec.catalogue.catalogue import Catalogue
from genrec.config.schema import ModelConfig
from genrec.data.dataset import Requests
from genrec.data.rates import starting_weights
from genrec.data.situation import Situation
from genrec.model.anchors import AnchorAttention, Anchors, AnchorTables, AnchorTokens
from genrec.model.anchors import n_features as n_anchor_features
from genrec.model.backbone import Backbone, Cache, sequence_mask, visible_context
from genrec.model.batch import Batch
from genrec.model.code_decoder import CodeDecoder, Memory
from genrec.model.device import scores
from genrec.model.dropout import Dropout, dropout_rate
from genrec.model.embeddings import ItemEncoder, QueryEncoder
from genrec.model.pair_features import initial_pair_weights, n_pair_features, pair_features
from genrec.model.prior import RetrievalPrior
from genrec.model.profile import Profile
from genrec.model.query_anchors import QueryHits
from genrec.model.ranking import RankingHead, request_rows
from genrec.model.reasoning import Reasoning
from genrec.model.rope import rotary_angles
from genrec.model.situation import SituationVectors
from genrec.model.taste import Taste
from genrec.retrieval.similar_texts import most_similar

NORM_EPSILON = 1e-12  # as in ``F.normalize``


@dataclass
class Encoded:
    """What one pass of the backbone computed.

    ``context`` (B, T, dim), empty (B, 0, dim) in a network without a code decoder, which alone reads it; ``requests``
    (B, R, dim), the mean of the last block; ``visible`` (B, R, T); ``items`` (n_items, dim) the item vectors of the
    pass; ``blocks`` the request's tokens after the base pass and after each reasoning step, each (B, R, M, dim);
    ``angles`` (B, R x M, planes) of those tokens; ``cache`` keys and values of context, requests, then each step;
    ``anchors`` of the requests.
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
    """One network for search and recommendation: it retrieves by dot product, generates semantic IDs, and ranks."""

    def __init__(
        self,
        config: ModelConfig,
        catalogue: Catalogue,
        n_actions: int,
        time_base: float,
        generate: bool = True,
        situation: Situation | None = None,
    ):
        """``situation``: the fields of ``model.situation``, None where a request's situation is not read."""
        super().__init__()
        catalogue = catalogue.share()  # it moves with this network alone
        self.config, self.catalogue, self.time_base = config, catalogue, time_base
        dim, rate = config.dim, dropout_rate(config.dropout)
        self.item_encoder = ItemEncoder(catalogue, dim, config.item_inputs, config.item_dropout)
        self.query_encoder = QueryEncoder(catalogue.text.shape[1], dim)
        if self.item_encoder.project is not None:  # items with a text like the query's score high from the beginning
            self.query_encoder.project.load_state_dict(self.item_encoder.project.state_dict())
        self.actions = nn.Embedding(n_actions, dim)
        self.query_of_event = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.query_of_event.weight)  # noise several times as long as an item's vector would drown it
        self.no_query = nn.Parameter(torch.randn(dim) * 0.02)
        self.request = nn.Parameter(torch.randn(dim) * 0.02)
        # A request begins as the vector of its last event, and is compared with item vectors of the same space: items
        # like the last one score high before anything is learnt. Without this tie a third of the gain is lost.
        self.last_event = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.last_event.weight)
        self.situation = None if situation is None else SituationVectors(situation, dim)
        self.anchor_tables = self.early_anchors = self.late_anchors = None
        features = n_anchor_features(bool(config.query_anchors)) if config.anchors or config.query_anchors else 0
        if features:
            self.anchor_tables = AnchorTables(catalogue.n_items, config.anchors, bool(config.query_anchors))
            self.anchor_tokens = AnchorTokens(dim, config.heads, features)
            self.early_anchors = AnchorAttention(dim, config.heads, rate, features)
            self.late_anchors = AnchorAttention(dim, config.heads, rate, features)
        self.profile = None
        if config.user_tokens or config.summary_tokens:
            levels = catalogue.codes.shape[1]
            self.profile = Profile(dim, config.heads, n_actions, levels, config.user_tokens, config.summary_tokens)
        self.input_norm, self.drop = nn.LayerNorm(dim), Dropout(rate)
        self.backbone = Backbone(dim, config.layers, config.heads, rate)
        self.reasoning = Reasoning(dim, config.reasoning_steps, bool(config.stages)) if config.reasoning_steps else None
        self.ranking = None
        if config.ranking:
            stages = len(config.stages)
            initial = starting_weights(stages) if stages else initial_pair_weights(1, n_pair_features(features))
            self.ranking = RankingHead(dim, initial, rate)
            if not stages:  # turns scores over the whole catalogue into probabilities
                last = self.ranking.score[-1]
                assert isinstance(last, nn.Linear)
                nn.init.constant_(last.bias, -math.log(catalogue.n_items))
        nn.init.normal_(self.actions.weight, std=0.02)
        self.taste: Taste | None = None  # set by the preference stage, and by reading what it saved
        self.decoder = None
        if generate:
            self.decoder = CodeDecoder(
                catalogue.trie,
                dim,
                config.decoder_layers,
                config.heads,
                rate,
                config.temperature,
                features,
                config.pointer and features > 0,
                bool(config.prior),
            )

    def choose_anchors(self, batch: Batch, leave_out: bool | None = None) -> Anchors | None:
        """Anchors of each request; None where the network has none.

        ``leave_out``: take the sequence's own events out of the counts, as a request must that was counted. Default:
        in training mode.
        """
        if self.anchor_tables is None:
            return None
        leave_out = self.training if leave_out is None else leave_out
        hits = self._query_hits(self.anchor_tables, batch)
        targets, later = (batch.targets, batch.later_items) if leave_out else (None, None)
        return self.anchor_tables.choose(batch.items, batch.positions, targets, hits, later)

    def _query_hits(self, tables: AnchorTables, batch: Batch) -> QueryHits | None:
        """Items that go with the requests' queries; None for tables without queries.

        A batch that was not collated with the items that its queries name has those with similar texts looked up here,
        unless none of its requests has a query.
        """
        if tables.queries is None:
            return None
        if not torch.compiler.is_exporting() and not bool(batch.on_host.request_queries.any()):
            return tables.queries.no_hits(batch.request_queries, self.catalogue.n_items)
        if batch.named_items is not None and batch.similarity is not None and batch.word_match is not None:
            named = batch.named_items, batch.similarity, batch.word_match
        else:
            texts = self.item_encoder.text
            users = F.pad(tables.users, (0, texts.shape[0] - tables.users.shape[0]))
            width = min(tables.queries.width, texts.shape[0])
            with torch.no_grad():
                similar = most_similar(batch.query_text, texts, users.log1p(), width)
            named = *similar, torch.zeros_like(similar[1])
        return tables.queries.look_up(batch.request_queries, named, batch.query_words, batch.query_offsets)

    def encode(self, batch: Batch, items: Tensor | None = None, anchors: Anchors | None = None) -> Encoded:
        """Run the backbone once over contexts and requests.

        ``items`` (N, dim) are the vectors of all items, or of those that ``batch.items`` and ``anchors`` then name by
        row.
        """
        items = self.item_encoder() if items is None else items
        context, block = self._tokens(batch, items)
        anchors = self.choose_anchors(batch) if anchors is None else anchors
        if anchors is not None and self.early_anchors is not None:
            slots = batch.slots(searches=not self.config.anchors)  # padding between requests attends to nothing
            own = anchors if slots is None else anchors.at(slots)
            anchor_vectors = F.embedding(own.ids, items)
            asks = None if self.config.anchors else batch.request_queries > 0  # then only searches have anchors
            block = self._attend(self.early_anchors, block, own, anchor_vectors, slots, asks)
        if self.profile is not None:
            older = None
            if batch.older_items is not None:
                older = batch.older_items, batch.older_actions, batch.older_offsets
            profile = self.profile(self.item_encoder, batch.items, batch.actions, batch.positions, older)
            block = torch.cat([block, profile], dim=2)
        length, (requests, size) = context.shape[1], block.shape[1:3]
        x = self.drop(self.input_norm(torch.cat([context, block.flatten(1, 2)], dim=1)))
        angles, visible = self._angles(batch, size), visible_context(length, batch.positions)
        cache_only = length if self.decoder is None else 0  # only the code decoder reads context states
        if requests > 1:
            x, cache = self.backbone.first_pass(x, angles, visible, cache_only)
        else:
            x, cache = self.backbone.extend(
                x, angles, sequence_mask(length, batch.positions, size), cache_only=cache_only
            )
        angles = angles[:, length:]
        blocks = [x[:, length - cache_only :].unflatten(1, (requests, size))]
        if anchors is not None and self.late_anchors is not None:
            blocks = [self._attend(self.late_anchors, blocks[0], own, anchor_vectors, slots, asks)]
        if self.reasoning is not None:
            thoughts, cache = self.reasoning(self.backbone, blocks[0], angles, visible, cache)
            blocks += thoughts
        context = x[:, : length - cache_only]
        return Encoded(context, blocks[-1].mean(2), visible, items, blocks, angles, cache, anchors)

    def _attend(
        self,
        attention: AnchorAttention,
        block: Tensor,
        anchors: Anchors,
        vectors: Tensor,
        slots: Tensor | None,
        attends: Tensor | None,
    ) -> Tensor:
        """Requests' tokens (B, R, M, dim) with what they attend to in ``anchors``, those of ``slots`` (N,) alone.

        Without ``slots`` those that ``attends`` (B, R), None for all.
        """
        if slots is None:
            update = attention(block, anchors, vectors, self.anchor_tokens)
            return block + (update if attends is None else update * attends[..., None, None])
        flat = block.flatten(0, 1)
        own = flat.index_select(0, slots)
        own = own + attention(own[:, None], anchors, vectors, self.anchor_tokens)[:, 0]
        return flat.index_copy(0, slots, own).view_as(block)

    def _tokens(self, batch: Batch, items: Tensor) -> tuple[Tensor, Tensor]:
        """Context tokens (B, T, dim), and the first token of each request's block (B, R, 1, dim)."""
        queries = self.query_encoder(batch.query_text, batch.query_words, batch.query_offsets, self.item_encoder)
        context = items[batch.items] + self.actions(batch.actions) + self.query_of_event(queries)[batch.queries]
        query = torch.where((batch.request_queries > 0)[..., None], queries[batch.request_queries], self.no_query)
        request = self.request + query + self._last(context, batch.positions)
        if self.situation is not None:
            fields = len(self.situation.situation.fields)
            known = batch.situation  # of a batch that does not say, nothing is known
            rows = batch.positions.new_zeros(*batch.positions.shape, fields) if known is None else known
            request = request + self.situation(rows)
        return context, request[:, :, None]

    def _angles(self, batch: Batch, block: int) -> Tensor:
        """Rotary angles of the context and of the requests' blocks: (B, T + R x block, planes)."""
        index = torch.arange(batch.items.shape[1], device=batch.items.device).expand(batch.items.shape[0], -1)
        positions, times = (part.repeat_interleave(block, 1) for part in (batch.positions, batch.request_times))
        return rotary_angles(
            torch.cat([index, positions], dim=1),
            torch.cat([batch.times, times], dim=1),
            self.config.dim // self.config.heads // 2,
            self.config.time_share,
            self.time_base,
        )

    def _last(self, context: Tensor, positions: Tensor) -> Tensor:
        """The projected token of the event right before each request: (B, R, dim), zero for a request without history.

        Through attention alone a request has to learn to find that event; on short histories this shortcut learns
        faster and better.
        """
        index = (positions - 1).clamp(min=0)[..., None].expand(-1, -1, context.shape[-1])
        return self.last_event(context.gather(1, index)) * (positions > 0)[..., None]

    def retrieval_vectors(self, requests: Tensor) -> Tensor:
        """Unit request vectors (..., dim) for the dot product with ``item_index``."""
        return F.normalize(requests, dim=-1)

    def item_index(self, items: Tensor) -> Tensor:
        """Unit item vectors divided by the temperature: (n_items, dim)."""
        return F.normalize(items, dim=-1) / self.config.temperature

    def rank(
        self, encoded: Encoded, row: Tensor, column: Tensor, candidates: Tensor, features: Tensor | None = None
    ) -> Tensor:
        """Logits (N, C, stages) of the ranking head for ``candidates`` (N, C) item ids, -1 for padding.

        The requests are those at ``row`` and ``column`` (N,). ``features`` (N, C, F) are those of
        ``FeedbackRates.features`` with ``model.stages``, None for zeros; without stages the network computes features
        of the pair.
        """
        assert self.ranking is not None
        if not self.config.stages:
            features = self._pair_features(encoded, row, column, candidates)
        block = encoded.blocks[0].shape[2]
        cache, seen = request_rows(encoded.cache, encoded.visible, row, column, block, len(encoded.blocks))
        items = encoded.items[candidates.clamp(min=0)]
        return self.ranking(self.backbone, items, features, encoded.angles[row, column * block], seen, cache)

    @torch.no_grad()
    def _pair_features(self, encoded: Encoded, row: Tensor, column: Tensor, candidates: Tensor) -> Tensor:
        """Features without a gradient: the ranking loss does not train retrieval."""
        dense = self.relevance(encoded.requests[row, column], candidates.clamp(min=0), encoded.items)
        return pair_features(dense, candidates, None if encoded.anchors is None else encoded.anchors.take(row, column))

    def decoder_memory(
        self,
        encoded: Encoded,
        row: Tensor | None = None,
        column: Tensor | None = None,
        decoder: CodeDecoder | None = None,
    ) -> Memory:
        """What the code decoder attends to: the context, and each request's reasoning blocks and anchors.

        ``row`` and ``column`` (N,) choose requests, which become rows of their own; ``decoder`` replaces the network's.
        """
        decoder = self.decoder if decoder is None else decoder
        assert decoder is not None
        thoughts, anchors = torch.cat(encoded.blocks[1:], dim=2) if len(encoded.blocks) > 1 else None, encoded.anchors
        memory = decoder.memory(encoded.requests, encoded.context, encoded.visible)
        if row is not None and column is not None:
            memory = memory.take(row, column)
            thoughts = thoughts[row, column][:, None] if thoughts is not None else None
            anchors = anchors.take(row, column) if anchors is not None else None
        memory = decoder.with_private(memory, thoughts, anchors, encoded.items)
        if decoder.pointer is not None and anchors is not None:
            relevance = self.relevance(memory.state, anchors.ids, encoded.items)
            memory.copy_bias = decoder.pointer(memory.state, anchors, relevance, self.catalogue.trie)
        if decoder.prior_weight is not None:
            logits = self.item_scores(memory.state.detach().flatten(0, 1), encoded.items)
            memory.prior = RetrievalPrior.of_logits(self.catalogue.trie, logits, decoder.prior_weight)
        return memory

    @torch.no_grad()
    def in_taste_order(self, requests: Requests, ids: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Generated items (B, K) and their log-probabilities with the factor of the taste, best first.

        As they are where the network has no taste.
        """
        return (ids, scores) if self.taste is None else self.taste.reordered(self.catalogue.text, requests, ids, scores)

    def item_scores(self, states: Tensor, items: Tensor) -> Tensor:
        """The retrieval head's logits (N, n_items) of request states (N, dim) over ``items`` (n_items, dim)."""
        lengths = torch.linalg.vector_norm(items, dim=-1).clamp(min=NORM_EPSILON)
        return scores(self.retrieval_vectors(states), items) / (lengths * self.config.temperature)

    def relevance(self, state: Tensor, ids: Tensor, items: Tensor) -> Tensor:
        """The retrieval head's scores (..., A) of items ``ids`` (..., A) for request states (..., dim)."""
        return (self.retrieval_vectors(state)[..., None, :] * self.item_index(F.embedding(ids, items))).sum(-1)
