"""Typed configuration: one YAML file, then ``key=value`` overrides. Unknown keys are errors that name the nearest valid key."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from genrec.errors import UserError


@dataclass
class DataConfig:
    """Where the log is and what is kept of it."""

    reader: str = "table"  # amazon-2014, movielens, table, simulator
    path: str | None = None  # folder or file of the log
    fetch: str | None = None  # data set fetched into `data/` when `path` is not given
    options: dict[str, Any] = field(default_factory=dict)  # passed to the reader
    min_user_events: int = 1  # iterative k-core over users ...
    min_item_events: int = 1  # ... and items
    keep_unseen_items: bool = False  # keep catalogue items that no event names
    max_quarantine_share: float = 0.05  # more bad rows than this stop the job


@dataclass
class SplitConfig:
    """``leave-last-out``: each user's last event is test, the one before validation. ``global-time``: two cut times for everybody."""

    kind: str = "leave-last-out"
    valid_share: float = 0.1  # global-time only: share of events between the cuts ...
    test_share: float = 0.1  # ... and after the second


@dataclass
class QueryConfig:
    """Synthetic queries for logs that have none (always called synthetic in tables)."""

    synthetic: list[str] = field(default_factory=list)  # kinds: category, title
    share: float = 0.3  # share of training events that also get a query


@dataclass
class TextConfig:
    """TF-IDF and truncated SVD over title, brand, category and text."""

    dim: int = 256
    max_features: int = 50_000
    min_df: int = 2


@dataclass
class SemanticIdConfig:
    """Residual k-means and OPQ. ``null`` sizes follow the catalogue's size by rule."""

    level_sizes: list[int] | None = None
    opq_subcodebooks: int | None = None
    opq_size: int | None = None
    balance_last: bool = True
    behaviour_share: float = 0.5  # weight of co-consumption vectors beside the text vectors; 0 = text only


@dataclass
class ModelConfig:
    """The network. Shapes are written in genrec/model."""

    dim: int = 128
    layers: int = 2
    heads: int = 4
    dropout: float = 0.2
    max_length: int = 50  # events of history read
    use_ids: bool = True
    use_text: bool = True
    use_codes: bool = True
    item_dropout: float = 0.1  # share of id vectors hidden in training, so that cold items work
    time_share: float = 0.25  # share of rotary planes turned by time instead of index
    time_bucket: float = 86400.0  # seconds per rotary time unit
    last_event: bool = True  # a request starts from the event before it (a shortcut past the attention)
    request_time: bool = False  # may the request's own time be read?
    temperature: float = 0.07
    decoder_layers: int = 1
    node_vectors: str = "items"  # codes, nodes, items: what the code decoder's outputs are compared with


@dataclass
class TrainingConfig:
    """Optimisation. The epoch count of the refit is the one chosen on validation."""

    epochs: int = 40
    patience: int = 5
    batch_size: int = 256  # sequences per step
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup_steps: int = 100
    label_smoothing: float = 0.0
    retrieve_weight: float = 1.0
    generate_weight: float = 1.0
    generate_share: float = 0.5  # share of requests whose codes are also learnt in a step; a fresh draw each time
    negatives: int = 0  # 0 = softmax over the whole catalogue
    stride: int = 25  # new events per window of a long sequence
    valid_requests: int = 4000  # validation requests scored after each epoch
    refit: bool = True  # also fit on train + validation with everything chosen before
    threads: int = 0  # 0 = torch's choice
    accelerator: str = "auto"


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


def _valid_keys(schema: type, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for item in fields(schema):
        keys.append(prefix + item.name)
        default = item.default_factory() if callable(item.default_factory) else None
        if is_dataclass(default):
            keys += _valid_keys(type(default), f"{prefix}{item.name}.")
    return keys


_FREE_KEYS = ("data.options", "evaluation.sasrec")


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
    merged = OmegaConf.structured(Config)
    try:
        if path is not None:
            if not Path(path).is_file():
                raise UserError(f"config file not found: {path}")
            loaded = OmegaConf.load(path)
            if not OmegaConf.is_dict(loaded):
                raise UserError(f"{path}: a config is a YAML mapping of keys to values")
            check_keys(_flatten(OmegaConf.to_container(loaded)), str(path))
            merged = OmegaConf.merge(merged, loaded)
        for override in overrides or []:
            if "=" not in override:
                raise UserError(f"override '{override}' is not key=value")
            check_keys([override.split("=", 1)[0]], "command line")
        merged = OmegaConf.merge(merged, OmegaConf.from_dotlist(list(overrides or [])))
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(f"{path or 'command line'}: {_reason(error)}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    except (ValueError, YAMLError) as error:
        raise UserError(f"{path or 'command line'}: is not valid YAML ({' '.join(str(error).split())})") from error
    validate(config)
    return config


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


def validate(config: Config) -> None:
    """Raise ``UserError`` for values that no run can work with; the key is named."""
    choices = {
        "split.kind": (config.split.kind, ("leave-last-out", "global-time")),
        "model.node_vectors": (config.model.node_vectors, ("codes", "nodes", "items")),
        "decoding.search": (config.decoding.search, ("beam", "exact")),
        "decoding.index": (config.decoding.index, ("exact", "flat", "ivf", "hnsw")),
    }
    for key, (value, allowed) in choices.items():
        if value not in allowed:
            raise UserError(f"{key}: '{value}' is not one of {', '.join(allowed)}")
    for kind in config.queries.synthetic:
        if kind not in ("category", "title"):
            raise UserError(f"queries.synthetic: '{kind}' is not one of category, title")
    known = EvaluationConfig().baselines
    for name in config.evaluation.baselines:
        if name not in known:
            raise UserError(f"evaluation.baselines: '{name}' is not one of {', '.join(known)}")
    positive = {
        "model.dim": config.model.dim, "model.layers": config.model.layers, "model.heads": config.model.heads,
        "model.max_length": config.model.max_length, "model.decoder_layers": config.model.decoder_layers,
        "model.temperature": config.model.temperature, "model.time_bucket": config.model.time_bucket,
        "training.epochs": config.training.epochs, "training.batch_size": config.training.batch_size,
        "training.learning_rate": config.training.learning_rate, "training.stride": config.training.stride,
        "text.dim": config.text.dim, "decoding.beam": config.decoding.beam, "decoding.dense": config.decoding.dense,
        "decoding.batch_size": config.decoding.batch_size, "decoding.exact_top": config.decoding.exact_top,
        "decoding.level_beams": min(config.decoding.level_beams, default=1),
    }  # fmt: skip
    for key, value in positive.items():
        if not value > 0:
            raise UserError(f"{key}: must be above 0, is {value}")
    shares = {
        "queries.share": config.queries.share, "model.dropout": config.model.dropout, "model.item_dropout": config.model.item_dropout,
        "model.time_share": config.model.time_share, "semantic_ids.behaviour_share": config.semantic_ids.behaviour_share,
        "training.generate_share": config.training.generate_share, "split.valid_share": config.split.valid_share, "split.test_share": config.split.test_share,
        "data.max_quarantine_share": config.data.max_quarantine_share,
    }  # fmt: skip
    for key, value in shares.items():
        if not 0 <= value <= 1:
            raise UserError(f"{key}: must lie between 0 and 1, is {value}")
    if config.model.dim % (2 * config.model.heads):
        raise UserError(f"model.dim: {config.model.dim} cannot be divided by 2 x model.heads = {2 * config.model.heads}")
    if not (config.model.use_ids or config.model.use_text or config.model.use_codes):
        raise UserError("model: at least one of use_ids, use_text, use_codes must be true")
    _check_search(config.decoding)
    if not config.evaluation.ks or min(config.evaluation.ks) < 1:
        raise UserError("evaluation.ks: a list of whole numbers of at least 1")
