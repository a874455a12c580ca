"""Typed configuration: one YAML file, then ``key=value`` overrides. Unknown keys are errors that name the nearest valid key."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from genrec.errors import UserError


@dataclass
class DataConfig:
    """Where the log is and what is kept of it."""

    reader: str = "table"  # a name in genrec.data.readers.READERS
    path: str | None = None  # folder or file of the log
    fetch: str | None = None  # data set fetched into `data/` when `path` is not given
    options: dict[str, Any] = field(default_factory=dict)  # passed to the reader
    actions: list[str] | None = None  # actions that become events; null = all
    start_time: str | None = None  # events from this time on: an ISO date or time (UTC) or seconds since 1970
    end_time: str | None = None  # events before this time
    duplicates: str = "drop-exact"  # keep; drop-exact: same user, item, time, action and query; drop-consecutive: also the item just before
    max_user_events: int | None = None  # the newest events of a user that are kept
    min_user_events: int = 1  # iterative k-core over users ...
    min_item_events: int = 1  # ... and items
    keep_unseen_items: bool = False  # keep catalogue items that no event names
    max_quarantine_share: float = 0.05  # more bad rows than this stop the job
    cache: bool = True  # keep the parsed log beside the dataset, so that new files are appended without reading the old ones


@dataclass
class SplitConfig:
    """Which events are held out. Each user is asked once per split: at the first of the events held out.

    ``leave-last-out``: the last event is test, the one before validation (users of at least three events). ``global-time``: two cut
    times for everybody. ``session``: the last session is test, the one before validation (users of at least three sessions).
    ``given``: as the log says; without a validation part, all of a user's last training time is validation (two times at least).
    """

    kind: str = "leave-last-out"
    valid_share: float = 0.1  # global-time only: share of events between the cuts ...
    test_share: float = 0.1  # ... and after the second
    session_by: str = "gap"  # session only: gap = a pause of more than session_gap starts one; request = events of one request_id
    session_gap: float = 30.0  # minutes


@dataclass
class QueryConfig:
    """Synthetic queries for logs that have none (always called synthetic in tables)."""

    synthetic: list[str] = field(default_factory=list)  # kinds: category, title
    share: float = 0.3  # share of training events that also get a query


@dataclass
class TextConfig:
    """Text vectors over title, brand, category and text: ``tfidf`` (no download), ``hf`` (``model``) or ``minilm`` (``genrec[minilm]``)."""

    encoder: str = "tfidf"
    dim: int = 256  # tfidf only, as the next three; the others have their model's width
    max_features: int = 50_000  # of words, and of character n-grams
    min_df: int = 2
    character_share: float = 0.5  # weight of character n-grams beside words, for typos and model numbers
    model: str | None = None  # hf only: a Hugging Face name or a local folder
    query_prefix: str = ""  # hf and minilm: what the model expects before a query ...
    item_prefix: str = ""  # ... and before an item's text
    max_tokens: int = 128  # hf and minilm: the rest of a text is cut off
    batch_size: int = 64  # hf and minilm: texts per forward pass
    cache: str | None = None  # hf and minilm: folder of vectors by content; null = OUTPUT/text-cache
    finetune: bool = False  # train a projection on query-item and item-item pairs of the training events


@dataclass
class SemanticIdConfig:
    """How items get their codes; see genrec/semantic_ids/quantizers. ``null`` sizes follow the catalogue's size by rule."""

    quantizer: str = "rq-opq"  # rq-opq, rq-kmeans, rq-vae, opq (flat), random (a control)
    level_sizes: list[int] | None = None
    opq_subcodebooks: int | None = None
    opq_size: int | None = None
    balance: str = "last"  # rq-opq, last residual level: none, last, last-per-code, last-per-parent
    normalise_residuals: bool = True  # rq-opq: residuals of length 1 before each further level
    iterations: int = 25  # rounds of k-means at most
    fit_queries: bool = False  # fit on the training queries' vectors beside the items', as OneSearch does
    fit_sample: int = 1_000_000  # vectors the codebooks are fitted on; of more, so many are drawn
    vae_dim: int = 32  # rq-vae: width of the latent space ...
    vae_epochs: int = 100  # ... and epochs
    resolve_collisions: bool = True  # give items that share a code the nearest free one in the last two levels
    behaviour_share: float = 0.5  # weight of co-consumption vectors beside the text vectors; 0 = text only
    keywords: bool = True  # join the vectors of core keywords (brand, category, mined words) to the text vectors
    keyword_share: float = 0.5  # weight of the keywords' mean vector


# dim, layers, heads, decoder_layers
PRESETS = {"nano": (32, 1, 1, 1), "small": (64, 1, 2, 1), "base": (128, 2, 4, 1), "large": (256, 4, 8, 2)}


@dataclass
class ModelConfig:
    """The network. Shapes are written in genrec/model."""

    preset: str | None = None  # nano, small, base or large: sets dim, layers, heads and decoder_layers where these are not given
    dim: int = 128
    layers: int = 2
    heads: int = 4
    dropout: float = 0.3
    max_length: int = 50  # events of history read
    use_ids: bool = True
    use_text: bool = True
    use_codes: bool = True
    query_ngrams: bool = True  # queries: a trainable bag of hashed character n-grams beside that of words
    query_codes: bool = True  # queries: the items' code vectors of their own semantic ID (with use_codes)
    item_dropout: float = 0.1  # share of id vectors hidden in training, so that cold items work
    time_share: float = 0.25  # share of rotary planes turned by time instead of index
    time_bucket: float = 86400.0  # seconds per rotary time unit
    last_event: bool = True  # a request starts from the event before it (a shortcut past the attention)
    anchors: int = 8  # neighbours of each recent event (and as many of its category and brand) that a request attends over; 0 = none
    request_time: bool = False  # may the request's own time be read?
    rope: str = "split"  # what turns the rotary planes: index, time, split (time_share of them by time), early (all by both)
    reasoning_steps: int = 0  # latent steps a request thinks before it answers
    stages: list[str] = field(default_factory=list)  # stages of the log's feedback chain, shallow to deep, that steps and ranking learn
    ranking: bool = False  # candidate tokens and a ranking head: one logit per stage, or one for "comes next" without stages
    candidates_visible: bool = False  # do the candidates of a request see one another?
    temperature: float = 0.1
    decoder_layers: int = 1
    node_vectors: str = "items"  # codes, nodes, items: what the code decoder's outputs are compared with


@dataclass
class TrainingConfig:
    """Optimisation. The epoch count of the refit is the one chosen on validation."""

    tasks: list[str] = field(default_factory=lambda: ["recommendation", "search"])  # what is learnt; one of the two alone for comparison
    epochs: int = 20
    align_epochs: int = 0  # of them, the first: an item's text, asked by nobody -> the item ...
    cooccur_epochs: int = 0  # ... and the next: a query, asked by nobody -> its item, and an item -> the item that followed
    patience: int = 3
    batch_size: int = 128  # sequences per optimiser step, over all devices and accumulated parts
    accumulate: int = 1  # parts a device's share of a step is computed in, one after the other; less memory, the same result
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 100
    label_smoothing: float = 0.0
    category_weight: float = 0.0  # of query -> category of the sought item, beside query -> item
    keyword_distill_weight: float = 0.0  # of a search's distance to the answers to the query with the sought item's keywords (OneSearch-V2: .1)
    retrieve_weight: float = 1.0
    generate_weight: float = 1.0
    decoder_epochs: int = 8  # epochs of the code decoder alone, on the fitted network; 0 = it learns together with everything else
    decoder_learning_rate: float = 2e-3  # of those epochs
    distill_weight: float = 1.0  # of the divergence between the decoder and the retrieval head's distribution; catalogues up to 65,536 items
    distill_temperature: float = 1.0  # above 1: a softer teacher
    progressive: str = "none"  # what each reasoning step learns: none, codes (the first k codes), actions (the k-th of model.stages)
    progressive_weight: float = 0.3  # of the mean over steps
    infonce_easy: float = 1.0  # share of InfoNCE against random items; the rest is against hard ones (shown and not clicked, else mined)
    hard_negatives: int = 20  # of each request, where hard ones are used: there, and beside random ones for the ranking head
    rank_weight: float = 1.0  # of the ranking head's loss (with model.ranking)
    rank_pair_weight: float = 1.0  # in it: of the pairwise term beside the pointwise one ...
    rank_list_weight: float = 0.0  # ... and of the list-wise one
    rank_share: float = 0.25  # share of requests that rank in a step, in a log that does not say what was shown
    rank_negatives: int = 20  # random candidates of each of these
    generate_share: float = 0.5  # share of requests whose codes are also learnt in a step; a fresh draw each time
    same_time: bool = True  # may a request see events of its own second? false where one purchase is several events
    shuffle_ties: float = 0.0  # share of sequences whose events of equal time are permuted, anew in each epoch
    shuffle_whole: float = 0.0  # share of sequences permuted altogether
    negatives: int | None = None  # drawn per step; 0 = softmax over the whole catalogue; null = that up to 4096 items, else 2048
    stride: int = 25  # new events per window of a long sequence
    valid_requests: int = 4000  # validation requests scored after each epoch
    refit: bool = True  # also fit on train + validation with everything chosen before
    threads: int = 0  # 0 = torch's choice
    accelerator: str = "auto"
    devices: int = 0  # processes that train together, started by torchrun; 0 = as many as it has started, 1 without it
    strategy: str = "auto"  # auto and ddp: a copy of the network per device; fsdp: the network sharded over GPUs
    precision: str = "auto"  # 32, bf16; auto = bf16 on a GPU that has it
    checkpoint_minutes: float = 10.0  # a checkpoint at least this often, and after each epoch; 0 = no clock
    checkpoint_steps: int = 0  # also after so many optimiser steps; 0 = not


@dataclass
class DecodingConfig:
    """Proposals and their fusion."""

    beam: int = 50
    search: str = "beam"  # beam: says how much of its answer is proven; exact: goes on until the first exact_top are
    exact_top: int = 10
    level_beams: list[int] = field(default_factory=list)  # one beam width per code level; empty: beam at every level
    per_first_code: int = 0  # most beams with the same first code, for diverse results; 0: no limit
    int8: bool = False  # decoder with int8 weights, CPU only: smaller, a little less exact
    cuda_graph: bool = False  # the whole beam search as one CUDA graph in bfloat16, GPU only
    dense: int = 100
    index: str = "exact"  # dense top: exact matrix product, or FAISS flat, ivf, hnsw
    cooccurrence: int = 100
    text: int = 50  # for a request with a query
    batch_size: int = 256


@dataclass
class EvaluationConfig:
    """What the results table shows."""

    ks: list[int] = field(default_factory=lambda: [5, 10, 20])
    baselines: list[str] = field(default_factory=lambda: ["popularity", "itemknn", "cooccurrence", "sasrec", "bm25", "text"])
    sasrec: dict[str, Any] = field(default_factory=dict)  # overrides of `model` and `training` for the SASRec row
    bootstrap: int = 1000


@dataclass
class PreferenceConfig:
    """The stage after training (``genrec prefer``): the code decoder learns from rewards, and is kept only if validation agrees."""

    phases: list[str] = field(default_factory=lambda: ["grpo", "dpo"])  # rewards, then interactions; all of them: genrec/preference/phases.py
    levels: dict[str, float] = field(default_factory=dict)  # worth of a stage of the feedback chain, or of `similar` / `unrelated` items not shown
    click: str | None = None  # the stage that counts as click; null = the first beyond an impression
    order: str | None = None  # the stage that counts as order; null = the deepest
    smoothing: float = 10.0  # added to counts before an item's rates are taken
    evidence_share: float = 0.4  # training requests, by time: the first are only counted ...
    reward_share: float = 0.3  # ... the next fit the reward model, which never sees those that remain for the policy
    request_state: bool = True  # reward model reads the backbone's request state and score (true) or the mean of the history's item vectors
    # Of its towers. `next` is learnt from what was clicked alone and says little of what nobody would click; `both` needs many orders.
    reward: dict[str, float] = field(default_factory=lambda: {"click": 1.0, "next": 0.0, "both": 0.0, "relevance": 0.1})
    rewards: dict[str, float] = field(default_factory=lambda: {"model": 1.0, "behaviour": 0.5})  # grpo: names in genrec/preference/rewards.py
    max_requests: int = 20_000  # of each part, the newest
    epochs: int = 1  # of each phase
    batch_size: int = 64  # requests per step
    learning_rate: float = 2e-4
    beta: float = 0.1  # dpo: how far an implicit reward follows the log-ratio to the reference
    margin: float = 0.0  # dpo: by how much the better must be better
    anchor: float = 0.5  # weight of supervised learning on the item that was chosen, beside dpo, grpo and plackett-luce
    negatives: int = 12  # dpo: losers a list, from the beam, what was shown and ignored, lower levels
    weight_limit: float = 3.0  # dpo: pairs count between 1 / this and this
    beam: int = 20  # candidates of the model's own beam
    samples: int = 8  # grpo: items drawn per request; plackett-luce: lists
    list_length: int = 10  # plackett-luce: items of a list
    position_weights: list[float] = field(default_factory=lambda: [2.0, 2.0, 1.0])  # grpo: of code positions; the last for all that follow
    prefix_gate: bool = True  # grpo: a code position that matches what was chosen counts where those before it match
    kl: float = 0.05  # grpo: weight of the divergence from the reference
    teacher: str = "dense"  # distil: dense (retrieval head), fused (the ranking over evidence), ranking (head) or reward (model) over the beam
    soft: float = 0.5  # distil: share of the teacher's targets beside the observed item
    since: str | None = None  # streaming: only requests from this time on (ISO, UTC, or seconds since 1970)
    checkpoint: str | None = None  # streaming: start from this model folder instead of the run's model
    tolerance: float = 0.02  # guard: share by which recall and nDCG may fall
    auc_tolerance: float = 0.005  # guard: by which AUC, GAUC and reward nDCG of shown items may fall
    breadth_tolerance: float = 0.1  # guard: share by which coverage and diversity may fall
    checkpoint_steps: int = 100  # steps between two checkpoints
    in_run: bool = False  # `genrec run` includes the stage


@dataclass
class Config:
    """One job: ``genrec run`` makes everything below ``output/name``."""

    name: str = "run"
    output: str = "runs"
    seed: int = 42
    data: DataConfig = field(default_factory=DataConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    queries: QueryConfig = field(default_factory=QueryConfig)
    text: TextConfig = field(default_factory=TextConfig)
    semantic_ids: SemanticIdConfig = field(default_factory=SemanticIdConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)


def _valid_keys(schema: type, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for item in fields(schema):
        keys.append(prefix + item.name)
        default = item.default_factory() if callable(item.default_factory) else None
        if is_dataclass(default):
            keys += _valid_keys(type(default), f"{prefix}{item.name}.")
    return keys


_FREE_KEYS = ("data.options", "evaluation.sasrec", "preference.levels", "preference.reward", "preference.rewards")


def _flatten(tree: dict, prefix: str = "") -> list[str]:
    keys = []
    for key, value in tree.items():
        path = f"{prefix}{key}"
        keys.append(path)
        if isinstance(value, dict) and path not in _FREE_KEYS:
            keys += _flatten(value, path + ".")
    return keys


def check_keys(keys: list[str], source: str, schema: type = Config) -> None:
    """Raise ``UserError`` for the first key that the schema does not have, with the nearest valid name."""
    valid = _valid_keys(schema)
    for key in keys:
        if key in valid or key.startswith(tuple(free + "." for free in _FREE_KEYS)):
            continue
        near = difflib.get_close_matches(key, valid, n=1, cutoff=0.0)
        raise UserError(f"{source}: unknown key '{key}'; did you mean '{near[0]}'?")


def load_config(path: str | Path | None = None, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply ``key=value`` overrides, check keys, types and values.

    Raises ``UserError`` for a missing file, an unknown key, a wrong type or a value out of range.
    """
    merged, loaded = OmegaConf.structured(Config), OmegaConf.create()
    try:
        if path is not None:
            if not Path(path).is_file():
                raise UserError(f"config file not found: {path}")
            loaded = OmegaConf.load(path)
            if not OmegaConf.is_dict(loaded):
                raise UserError(f"{path}: a config is a YAML mapping of keys to values")
            check_keys(_flatten(OmegaConf.to_container(loaded)), str(path))
        for override in overrides or []:
            if "=" not in override:
                raise UserError(f"override '{override}' is not key=value")
            check_keys([override.split("=", 1)[0]], "command line")
        given = OmegaConf.merge(loaded, OmegaConf.from_dotlist(list(overrides or [])))
        merged = OmegaConf.merge(merged, {"model": preset_values(OmegaConf.select(given, "model.preset"))}, given)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(f"{path or 'command line'}: {_reason(error)}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    except (ValueError, YAMLError) as error:
        raise UserError(f"{path or 'command line'}: is not valid YAML ({' '.join(str(error).split())})") from error
    validate(config)
    return config


def preset_values(name: str | None) -> dict[str, int]:
    """The sizes of a preset; none without one. ``UserError`` for an unknown name."""
    if name is None:
        return {}
    if name not in PRESETS:
        raise UserError(f"model.preset: '{name}' is not one of {', '.join(PRESETS)}")
    return dict(zip(("dim", "layers", "heads", "decoder_layers"), PRESETS[name], strict=True))


def _reason(error: OmegaConfBaseException) -> str:
    """The first line of OmegaConf's message, with the key where it knows one."""
    return str(error).splitlines()[0] + (f" (key {error.full_key})" if error.full_key else "")


def config_from_dict(tree: dict, source: str) -> Config:
    """A config from the plain dictionary that ``to_dict`` made; the same checks as for a file."""
    check_keys(_flatten(tree), source)
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(tree)))
    except OmegaConfBaseException as error:
        raise UserError(f"{source}: {_reason(error)}") from error


def with_overrides(config: Config, overrides: list[str]) -> Config:
    """A copy of a config with ``key=value`` overrides; the same checks as for a file."""
    for override in overrides:
        if "=" not in override:
            raise UserError(f"override '{override}' is not key=value")
        check_keys([override.split("=", 1)[0]], "command line")
    try:
        changed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(config), OmegaConf.from_dotlist(overrides)))
    except OmegaConfBaseException as error:
        raise UserError(f"command line: {_reason(error)}") from error
    validate(changed)
    return changed


def to_dict(config: Any) -> dict:
    """The plain, JSON-ready form of a config or of one of its sections."""
    return OmegaConf.to_container(OmegaConf.structured(config), resolve=True)


def _check_search(decoding: DecodingConfig) -> None:
    """The keys of the search that exclude each other."""
    if decoding.per_first_code < 0:
        raise UserError(f"decoding.per_first_code: must be 0 (no limit) or above, is {decoding.per_first_code}")
    if decoding.search == "exact":
        for key in ("level_beams", "per_first_code", "cuda_graph"):
            if getattr(decoding, key):
                raise UserError(f"decoding.{key}: belongs to decoding.search=beam; exact search has no use for it")
        if decoding.exact_top > decoding.beam:
            raise UserError(f"decoding.exact_top: {decoding.exact_top} is above decoding.beam = {decoding.beam}, the most that are returned")
    if decoding.int8 and decoding.cuda_graph:
        raise UserError("decoding.int8: runs on the CPU and decoding.cuda_graph on a GPU; choose one")


def _check_stages(config: Config) -> None:
    """The keys of staged training that need each other."""
    training = config.training
    before = training.align_epochs + training.cooccur_epochs
    if before >= training.epochs:
        raise UserError(f"training.epochs: {training.epochs} leaves no epoch after align_epochs + cooccur_epochs = {before}; give more")
    if not training.same_time and (training.shuffle_ties or training.shuffle_whole):
        raise UserError("training.same_time: false needs events in their order; set shuffle_ties and shuffle_whole to 0")
    if training.keyword_distill_weight and not config.semantic_ids.keywords:
        raise UserError("training.keyword_distill_weight: the teacher reads keywords; set semantic_ids.keywords=true, or the weight to 0")


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
        "training.epochs": config.training.epochs, "training.batch_size": config.training.batch_size,
        "training.accumulate": config.training.accumulate, "training.patience": config.training.patience,
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
        "training.decoder_epochs": config.training.decoder_epochs, "model.reasoning_steps": config.model.reasoning_steps,
        "training.align_epochs": config.training.align_epochs, "training.cooccur_epochs": config.training.cooccur_epochs,
        "training.category_weight": config.training.category_weight,
        "training.keyword_distill_weight": config.training.keyword_distill_weight,
        "training.hard_negatives": config.training.hard_negatives, "training.rank_negatives": config.training.rank_negatives,
        "training.progressive_weight": config.training.progressive_weight, "training.rank_weight": config.training.rank_weight,
        "training.rank_pair_weight": config.training.rank_pair_weight, "training.rank_list_weight": config.training.rank_list_weight,
    }  # fmt: skip
    for key, value in not_negative.items():
        if value < 0:
            raise UserError(f"{key}: must not be below 0, is {value}")
    shares = {
        "queries.share": config.queries.share, "model.dropout": config.model.dropout, "model.item_dropout": config.model.item_dropout,
        "model.time_share": config.model.time_share, "semantic_ids.behaviour_share": config.semantic_ids.behaviour_share,
        "text.character_share": config.text.character_share, "semantic_ids.keyword_share": config.semantic_ids.keyword_share,
        "training.infonce_easy": config.training.infonce_easy, "training.rank_share": config.training.rank_share,
        "training.generate_share": config.training.generate_share, "training.shuffle_ties": config.training.shuffle_ties,
        "training.shuffle_whole": config.training.shuffle_whole, "split.valid_share": config.split.valid_share,
        "split.test_share": config.split.test_share,
        "data.max_quarantine_share": config.data.max_quarantine_share,
    }  # fmt: skip
    for key, value in shares.items():
        if not 0 <= value <= 1:
            raise UserError(f"{key}: must lie between 0 and 1, is {value}")
    if config.data.max_user_events is not None and config.data.max_user_events < 1:
        raise UserError(f"data.max_user_events: must be at least 1 or null, is {config.data.max_user_events}")
    if config.data.actions is not None and not config.data.actions:
        raise UserError("data.actions: an empty list keeps no event; name actions, or null for all")
    start, end = (seconds_of(getattr(config.data, key), f"data.{key}") for key in ("start_time", "end_time"))
    if start is not None and end is not None and start >= end:
        raise UserError(f"data.start_time: {config.data.start_time} is not before data.end_time {config.data.end_time}")
    if (config.text.encoder == "hf") != (config.text.model is not None):
        raise UserError(f"text.model: is {config.text.model}; text.encoder=hf needs a Hugging Face name or a local folder, the others need null")
    if config.model.dim % (2 * config.model.heads):
        raise UserError(f"model.dim: {config.model.dim} cannot be divided by 2 x model.heads = {2 * config.model.heads}")
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
    for key in ("max_requests", "epochs", "batch_size", "learning_rate", "beta", "negatives", "beam", "list_length", "checkpoint_steps"):
        if not getattr(preference, key) > 0:
            raise UserError(f"preference.{key}: must be above 0, is {getattr(preference, key)}")
    for key in ("margin", "anchor", "kl", "tolerance", "auc_tolerance", "breadth_tolerance"):
        if getattr(preference, key) < 0:
            raise UserError(f"preference.{key}: must not be below 0, is {getattr(preference, key)}")
    if preference.smoothing <= 1 or preference.weight_limit < 1 or preference.samples < 2:
        raise UserError("preference: smoothing must be above 1, weight_limit at least 1 and samples at least 2")
    if not 0 <= preference.soft <= 1:
        raise UserError(f"preference.soft: must lie between 0 and 1, is {preference.soft}")
    if not (preference.evidence_share > 0 and preference.reward_share > 0 and preference.evidence_share + preference.reward_share < 1):
        raise UserError("preference: evidence_share and reward_share must be above 0 and leave requests for the policy (together below 1)")
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
    if training.progressive != "none" and not model.reasoning_steps:
        raise UserError(f"training.progressive={training.progressive}: there is no step to supervise; set model.reasoning_steps above 0")
    if training.progressive == "actions" and not model.stages:
        raise UserError("training.progressive=actions: name the stages of the feedback chain, as in model.stages=[click,long_view]")
    if model.stages and not model.ranking and training.progressive != "actions":
        raise UserError("model.stages: nothing learns them; set model.ranking=true or training.progressive=actions")
    if model.candidates_visible and not model.ranking:
        raise UserError("model.candidates_visible: there are no candidates; set model.ranking=true")
    if model.ranking and not model.stages and not training.rank_negatives + training.hard_negatives:
        raise UserError("model.ranking: without model.stages it needs training.rank_negatives or training.hard_negatives above 0")
    if training.infonce_easy < 1 and not training.hard_negatives:
        raise UserError("training.infonce_easy: below 1 it needs training.hard_negatives above 0")
    if model.stages and model.ranking and training.shuffle_whole:
        raise UserError("training.shuffle_whole: must be 0 with model.stages; a shuffled past would hold what became of the items shown")


def _check_semantic_ids(ids: SemanticIdConfig) -> None:
    if ids.level_sizes is not None and (not ids.level_sizes or min(ids.level_sizes) < 1):
        raise UserError(f"semantic_ids.level_sizes: {ids.level_sizes} is not a list of whole numbers of at least 1; null sizes them by rule")
    if ids.opq_subcodebooks is not None and ids.opq_subcodebooks < 0:
        raise UserError(f"semantic_ids.opq_subcodebooks: must be 0 (no OPQ) or more, is {ids.opq_subcodebooks}")
    if ids.opq_size is not None and (ids.opq_size < 1 or ids.opq_size & (ids.opq_size - 1)):
        raise UserError(f"semantic_ids.opq_size: must be a power of two, is {ids.opq_size}")
    for key in ("iterations", "fit_sample", "vae_dim", "vae_epochs"):
        if not getattr(ids, key) > 0:
            raise UserError(f"semantic_ids.{key}: must be above 0, is {getattr(ids, key)}")
