"""Values that no run can work with are refused before it starts; the key is named."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from genrec.config.schema import (
    Config,
    DecodingConfig,
    EvaluationConfig,
    ModelConfig,
    PreferenceConfig,
    SemanticIdConfig,
    TrainingConfig,
)
from genrec.errors import UserError


def _check_search(decoding: DecodingConfig) -> None:
    """The keys of the search that exclude each other."""
    if decoding.per_first_code < 0:
        raise UserError(f"decoding.per_first_code: must be 0 (no limit) or above, is {decoding.per_first_code}")
    if decoding.search == "exact":
        for key in ("level_beams", "per_first_code", "cuda_graph"):
            if getattr(decoding, key):
                raise UserError(f"decoding.{key}: belongs to decoding.search=beam; exact search has no use for it")
        if decoding.exact_top > decoding.beam:
            raise UserError(
                f"decoding.exact_top: {decoding.exact_top} is above decoding.beam = {decoding.beam}, the most that are returned"
            )
    if decoding.int8 and decoding.cuda_graph:
        raise UserError("decoding.int8: runs on the CPU and decoding.cuda_graph on a GPU; choose one")
    if decoding.compile and (decoding.int8 or decoding.cuda_graph):
        raise UserError(
            "decoding.compile: compiles the plain float32 layers; leave decoding.int8 and decoding.cuda_graph off"
        )


def _check_stages(config: Config) -> None:
    """The keys of staged training that need each other."""
    training = config.training
    before = training.align_epochs + training.cooccur_epochs
    if training.epochs is not None and before >= training.epochs:
        raise UserError(
            f"training.epochs: {training.epochs} leaves no epoch after align_epochs + cooccur_epochs = {before}; give more"
        )
    if training.ema == 1 or (training.ema and training.strategy == "fsdp"):
        raise UserError(
            f"training.ema: {training.ema} must be below 1, and 0 with training.strategy=fsdp (a shard has no average)"
        )
    if not training.same_time and (training.shuffle_ties or training.shuffle_whole):
        raise UserError(
            "training.same_time: false needs events in their order; set shuffle_ties and shuffle_whole to 0"
        )
    if config.split.cold_share and training.refit:
        raise UserError(
            "split.cold_share: a refit learns from validation events, in which cold items are left; set training.refit=false"
        )
    if training.keyword_distill_weight and not config.semantic_ids.keywords:
        raise UserError(
            "training.keyword_distill_weight: the teacher reads keywords; set semantic_ids.keywords=true, or the weight to 0"
        )


def validate(config: Config) -> None:
    """Raise ``UserError`` for values that no run can work with; the key is named."""
    choices = {
        "data.duplicates": (config.data.duplicates, ("keep", "drop-exact", "drop-consecutive")),
        "split.kind": (config.split.kind, ("leave-last-out", "global-time", "session", "given")),
        "split.session_by": (config.split.session_by, ("gap", "request")),
        "text.encoder": (config.text.encoder, ("tfidf", "hf", "minilm")),
        "model.node_vectors": (config.model.node_vectors, ("codes", "nodes", "items")),
        "model.rope": (config.model.rope, ("index", "time", "split", "early")),
        "training.progressive": (config.training.progressive, ("none", "codes", "actions")),
        "training.strategy": (config.training.strategy, ("auto", "ddp", "fsdp")),
        "training.precision": (config.training.precision, ("auto", "32", "bf16")),
        "semantic_ids.quantizer": (config.semantic_ids.quantizer, ("rq-opq", "rq-kmeans", "rq-vae", "opq", "random")),
        "semantic_ids.balance": (config.semantic_ids.balance, ("none", "last", "last-per-code", "last-per-parent")),
        "decoding.search": (config.decoding.search, ("beam", "exact")),
        "decoding.index": (config.decoding.index, ("exact", "flat", "ivf", "hnsw")),
    }
    for key, (value, allowed) in choices.items():
        if value not in allowed:
            raise UserError(f"{key}: '{value}' is not one of {', '.join(allowed)}")
    _check_semantic_ids(config.semantic_ids)
    for kind in config.queries.synthetic:
        if kind not in ("category", "title"):
            raise UserError(f"queries.synthetic: '{kind}' is not one of category, title")
    if not config.training.tasks:
        raise UserError("training.tasks: an empty list learns nothing; name recommendation, search, or both")
    for name in config.training.tasks:
        if name not in ("recommendation", "search"):
            raise UserError(f"training.tasks: '{name}' is not one of recommendation, search")
    known = EvaluationConfig().baselines
    for name in config.evaluation.baselines:
        if name not in known:
            raise UserError(f"evaluation.baselines: '{name}' is not one of {', '.join(known)}")
    positive = {
        "model.dim": config.model.dim, "model.layers": config.model.layers, "model.heads": config.model.heads,
        "model.max_length": config.model.max_length, "model.decoder_layers": config.model.decoder_layers,
        "model.temperature": config.model.temperature, "model.time_bucket": config.model.time_bucket,
        "training.epochs": 1 if config.training.epochs is None else config.training.epochs, "training.batch_size": config.training.batch_size,
        "training.accumulate": 1 if config.training.accumulate is None else config.training.accumulate, "training.patience": config.training.patience,
        "training.learning_rate": config.training.learning_rate, "training.decoder_learning_rate": config.training.decoder_learning_rate, "training.stride": config.training.stride,
        "training.distill_temperature": config.training.distill_temperature,
        "split.session_gap": config.split.session_gap, "text.dim": config.text.dim,
        "text.max_features": config.text.max_features, "text.min_df": config.text.min_df,
        "text.max_tokens": config.text.max_tokens, "text.batch_size": config.text.batch_size,
        "decoding.beam": config.decoding.beam, "decoding.dense": config.decoding.dense,
        "decoding.batch_size": config.decoding.batch_size, "decoding.exact_top": config.decoding.exact_top,
        "decoding.level_beams": min(config.decoding.level_beams, default=1),
    }  # fmt: skip
    for key, value in positive.items():
        if not value > 0:
            raise UserError(f"{key}: must be above 0, is {value}")
    not_negative = {
        "training.devices": config.training.devices, "training.checkpoint_minutes": config.training.checkpoint_minutes,
        "training.checkpoint_steps": config.training.checkpoint_steps, "training.negatives": config.training.negatives or 0,
        "training.threads": config.training.threads, "training.valid_requests": config.training.valid_requests,
        "training.warmup_steps": config.training.warmup_steps, "training.distill_weight": config.training.distill_weight,
        "training.decoder_epochs": config.training.decoder_epochs or 0, "model.reasoning_steps": config.model.reasoning_steps,
        "model.summary_tokens": config.model.summary_tokens,
        "training.align_epochs": config.training.align_epochs, "training.cooccur_epochs": config.training.cooccur_epochs,
        "training.category_weight": config.training.category_weight,
        "training.keyword_distill_weight": config.training.keyword_distill_weight,
        "training.hard_negatives": config.training.hard_negatives, "training.rank_negatives": config.training.rank_negatives,
        "training.progressive_weight": config.training.progressive_weight, "training.rank_weight": config.training.rank_weight,
        "training.rank_pair_weight": config.training.rank_pair_weight, "training.rank_list_weight": config.training.rank_list_weight,
        "decoding.cooccurrence": config.decoding.cooccurrence, "decoding.text": config.decoding.text,
        "decoding.text_neighbours": config.decoding.text_neighbours,
    }  # fmt: skip
    for key, value in not_negative.items():
        if value < 0:
            raise UserError(f"{key}: must not be below 0, is {value}")
    shares = {
        "queries.share": config.queries.share, "model.dropout": config.model.dropout, "model.item_dropout": config.model.item_dropout,
        "model.event_dropout": config.model.event_dropout, "model.cut_share": config.model.cut_share,
        "model.time_share": config.model.time_share, "semantic_ids.behaviour_share": config.semantic_ids.behaviour_share,
        "text.character_share": config.text.character_share, "semantic_ids.keyword_share": config.semantic_ids.keyword_share,
        "training.ema": config.training.ema, "training.label_smoothing": config.training.label_smoothing,
        "training.infonce_easy": config.training.infonce_easy, "training.rank_share": config.training.rank_share,
        "training.generate_share": config.training.generate_share, "training.shuffle_ties": config.training.shuffle_ties,
        "training.shuffle_whole": config.training.shuffle_whole, "split.valid_share": config.split.valid_share,
        "split.test_share": config.split.test_share, "split.cold_share": config.split.cold_share,
        "data.max_quarantine_share": config.data.max_quarantine_share,
    }  # fmt: skip
    for key, value in shares.items():
        if not 0 <= value <= 1:
            raise UserError(f"{key}: must lie between 0 and 1, is {value}")
    if config.data.max_user_events is not None and config.data.max_user_events < 1:
        raise UserError(f"data.max_user_events: must be at least 1 or null, is {config.data.max_user_events}")
    if config.data.actions is not None and not config.data.actions:
        raise UserError("data.actions: an empty list keeps no event; name actions, or null for all")
    if config.data.target_action is not None and config.split.kind == "leave-last-out":
        raise UserError(
            "data.target_action: leave-last-out holds out each user's last event, whatever it is; use another split.kind"
        )
    start, end = (seconds_of(getattr(config.data, key), f"data.{key}") for key in ("start_time", "end_time"))
    if start is not None and end is not None and start >= end:
        raise UserError(f"data.start_time: {config.data.start_time} is not before data.end_time {config.data.end_time}")
    if (config.text.encoder == "hf") != (config.text.model is not None):
        raise UserError(
            f"text.model: is {config.text.model}; text.encoder=hf needs a Hugging Face name or a local folder, the others need null"
        )
    if config.model.dim % (2 * config.model.heads):
        raise UserError(
            f"model.dim: {config.model.dim} cannot be divided by 2 x model.heads = {2 * config.model.heads}"
        )
    if not (config.model.use_ids or config.model.use_text or config.model.use_codes):
        raise UserError("model: at least one of use_ids, use_text, use_codes must be true")
    _check_ranking(config.model, config.training)
    _check_search(config.decoding)
    _check_stages(config)
    _check_preference(config.preference)
    if not config.evaluation.ks or min(config.evaluation.ks) < 1:
        raise UserError("evaluation.ks: a list of whole numbers of at least 1")


PHASES = ("distil", "guided-dpo", "grpo", "plackett-luce", "dpo")


def _check_preference(preference: PreferenceConfig) -> None:
    for name in preference.phases:
        if name not in PHASES:
            raise UserError(f"preference.phases: '{name}' is not one of {', '.join(PHASES)}")
    if not preference.phases:
        raise UserError(f"preference.phases: is empty; give one or more of {', '.join(PHASES)}")
    if preference.teacher not in ("dense", "fused", "ranking", "reward"):
        raise UserError(f"preference.teacher: '{preference.teacher}' is not one of dense, fused, ranking, reward")
    for name in preference.reward:
        if name not in ("click", "next", "both", "relevance"):
            raise UserError(f"preference.reward: '{name}' is not one of click, next, both, relevance")
    for key in (
        "max_requests",
        "epochs",
        "batch_size",
        "learning_rate",
        "beta",
        "negatives",
        "beam",
        "list_length",
        "checkpoint_steps",
    ):
        if not getattr(preference, key) > 0:
            raise UserError(f"preference.{key}: must be above 0, is {getattr(preference, key)}")
    for key in ("margin", "anchor", "kl", "tolerance", "auc_tolerance", "breadth_tolerance"):
        if getattr(preference, key) < 0:
            raise UserError(f"preference.{key}: must not be below 0, is {getattr(preference, key)}")
    if preference.smoothing <= 1 or preference.weight_limit < 1 or preference.samples < 2:
        raise UserError("preference: smoothing must be above 1, weight_limit at least 1 and samples at least 2")
    if not 0 <= preference.soft <= 1:
        raise UserError(f"preference.soft: must lie between 0 and 1, is {preference.soft}")
    if not (
        preference.evidence_share > 0
        and preference.reward_share > 0
        and preference.evidence_share + preference.reward_share < 1
    ):
        raise UserError(
            "preference: evidence_share and reward_share must be above 0 and leave requests for the policy (together below 1)"
        )
    if not preference.position_weights or min(preference.position_weights) < 0:
        raise UserError("preference.position_weights: a list of numbers of at least 0")
    seconds_of(preference.since, "preference.since")


def seconds_of(value: str | None, key: str) -> int | None:
    """A time of the config as seconds since 1970: whole seconds, or an ISO date or time (UTC where it has no offset)."""
    if value is None:
        return None
    text = str(value).strip()
    try:
        return int(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"{key}: '{value}' is neither an ISO date or time nor whole seconds") from None
    return math.floor((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def _check_ranking(model: ModelConfig, training: TrainingConfig) -> None:
    for key in ("user_tokens", "summary_tokens"):
        if getattr(model, key) and not model.use_codes:
            raise UserError(f"model.{key}: is made of code vectors; set model.use_codes=true")
    if model.query_anchors and not model.anchors:
        raise UserError("model.query_anchors: there are no anchors; set model.anchors above 0")
    if training.progressive != "none" and not model.reasoning_steps:
        raise UserError(
            f"training.progressive={training.progressive}: there is no step to supervise; set model.reasoning_steps above 0"
        )
    if training.progressive == "actions" and not model.stages:
        raise UserError(
            "training.progressive=actions: name the stages of the feedback chain, as in model.stages=[click,long_view]"
        )
    if model.stages and not model.ranking and training.progressive != "actions":
        raise UserError("model.stages: nothing learns them; set model.ranking=true or training.progressive=actions")
    if not model.candidate_evidence and not model.ranking:
        raise UserError("model.candidate_evidence=false: there are no candidates; set model.ranking=true")
    if model.candidates_visible and not model.ranking:
        raise UserError("model.candidates_visible: there are no candidates; set model.ranking=true")
    if model.ranking and not model.stages and not training.rank_negatives + training.hard_negatives:
        raise UserError(
            "model.ranking: without model.stages it needs training.rank_negatives or training.hard_negatives above 0"
        )
    if training.infonce_easy < 1 and not training.hard_negatives:
        raise UserError("training.infonce_easy: below 1 it needs training.hard_negatives above 0")
    if model.stages and model.ranking and training.shuffle_whole:
        raise UserError(
            "training.shuffle_whole: must be 0 with model.stages; a shuffled past would hold what became of the items shown"
        )


def _check_semantic_ids(ids: SemanticIdConfig) -> None:
    if ids.level_sizes is not None and (not ids.level_sizes or min(ids.level_sizes) < 1):
        raise UserError(
            f"semantic_ids.level_sizes: {ids.level_sizes} is not a list of whole numbers of at least 1; null sizes them by rule"
        )
    if ids.opq_subcodebooks is not None and ids.opq_subcodebooks < 0:
        raise UserError(f"semantic_ids.opq_subcodebooks: must be 0 (no OPQ) or more, is {ids.opq_subcodebooks}")
    if ids.opq_size is not None and (ids.opq_size < 1 or ids.opq_size & (ids.opq_size - 1)):
        raise UserError(f"semantic_ids.opq_size: must be a power of two, is {ids.opq_size}")
    for key in ("iterations", "fit_sample", "vae_dim", "vae_epochs"):
        if not getattr(ids, key) > 0:
            raise UserError(f"semantic_ids.{key}: must be above 0, is {getattr(ids, key)}")
