"""The settings of a job, section by section. Each one states its default, the values it accepts, and what it does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from genrec.config.setting import setting

# Snowball's names of the languages whose function words are known.
LANGUAGES = (
    "english", "german", "dutch", "french", "spanish", "portuguese", "italian", "russian", "swedish", "norwegian",
    "danish", "turkish",
)  # fmt: skip


@dataclass
class DataConfig:
    """Which log is read and which of its rows are kept."""

    reader: str = setting("table", "Name of the reader, as listed in data/README.md.")
    path: str | None = setting(None, "File or folder of the log.")
    append: list[str] = setting([], "Logs in the same format that are read behind `data.path`, such as newer days.")
    fetch: str | None = setting(None, "Public data set that is fetched into `data/` when `data.path` is null.")
    options: dict[str, Any] = setting({}, "Options of the reader, such as column names.")
    actions: list[str] | None = setting(None, "Actions that become events; null keeps all.", nonempty=True)
    target_action: str | None = setting(
        None, "Shallowest action that may be a prediction target; shallower events remain in the history."
    )
    start_time: str | None = setting(None, "Drop events before this time: ISO date or time (UTC), or Unix seconds.")
    end_time: str | None = setting(None, "Drop events at or after this time.")
    duplicates: str = setting(
        "drop-exact",
        "Which repeated events are dropped: those equal in user, item, time, action and query, or also "
        "an event for the same item as the user's previous one.",
        choices=("keep", "drop-exact", "drop-consecutive"),
    )
    min_user_events: int = setting(1, "Minimum number of events of a user (iterative k-core).", ge=0)
    min_item_events: int = setting(1, "Minimum number of events of an item (iterative k-core).", ge=0)
    keep_unseen_items: bool = setting(False, "Keep catalogue items without any event.")
    max_quarantine_share: float = setting(0.05, "Stop if a larger fraction of rows is invalid.", ge=0, le=1)


@dataclass
class SplitConfig:
    """Which events are held out.

    A user has at most one test and one validation request per task: the first held-out event of each.
    """

    kind: str = setting(
        "leave-last-out",
        "Hold out each user's last two events, the events after two global times, each user's last two sessions, "
        "or what the log itself marks.",
        choices=("leave-last-out", "global-time", "session", "given"),
    )
    valid_share: float = setting(0.1, "Fraction of events in the validation period of `global-time`.", ge=0, le=1)
    test_share: float = setting(0.1, "Fraction of events in the test period of `global-time`.", ge=0, le=1)
    cold_share: float = setting(
        0.0, "Fraction of items that lose all training events, for `--protocol cold-items`.", ge=0, le=1
    )
    session_gap: float = setting(30.0, "Minutes of the pause that starts a new session.", gt=0)


@dataclass
class QueryConfig:
    """Synthetic queries for logs without searches. Tables always label them as synthetic."""

    synthetic: list[str] = setting(
        [],
        "Kinds of synthetic query; `everyday`: one word, brand or attribute with category, and for held-out events "
        "also half-typed, misspelt and joined words.",
        choices=("category", "title", "everyday"),
    )
    share: float = setting(0.3, "Fraction of training events that also get a synthetic query.", ge=0, le=1)


@dataclass
class TextConfig:
    """Text vectors of items and queries."""

    encoder: str = setting(
        "tfidf",
        "TF-IDF with truncated SVD (no download), a Hugging Face model, or MiniLM from the `minilm` extra.",
        choices=("tfidf", "hf", "minilm"),
    )
    language: str = setting(
        "auto",
        "Language whose words are stemmed in lexical search; `auto` is told by function words, `none` stems nothing.",
        choices=("auto", "none", *LANGUAGES),
    )
    dim: int = setting(256, "Width of TF-IDF vectors.", ge=1)
    model: str | None = setting(None, "Hugging Face name or local folder, with `text.encoder=hf`.")
    query_prefix: str = setting("", "Text that the model expects before a query.")
    item_prefix: str = setting("", "Text that the model expects before an item's text.")
    max_tokens: int = setting(128, "Maximum tokens of a text; the rest is cut off (hf, minilm).", ge=1)


@dataclass
class SemanticIdConfig:
    """How items get their codes. Sizes that are null follow from the size of the catalogue."""

    quantizer: str = setting(
        "rq-opq",
        "Residual k-means with OPQ, residual k-means, residual VAE, flat OPQ, or random codes as a control.",
        choices=("rq-opq", "rq-kmeans", "rq-vae", "opq", "random"),
    )
    level_sizes: list[int] | None = setting(None, "Codes per residual level.", ge=1, nonempty=True)
    opq_subcodebooks: int | None = setting(None, "Number of OPQ codes after the residual levels; 0 is no OPQ.", ge=0)
    behaviour_share: float = setting(
        0.5, "Weight of co-consumption vectors against text vectors; 0 is text alone.", ge=0, le=1
    )
    keywords: bool = setting(
        True, "Add the mean vector of core keywords (brand, category, mined words) to the text vectors, half and half."
    )


@dataclass
class ModelConfig:
    """The network."""

    dim: int = setting(128, "Width of the backbone; a multiple of twice `heads`.", ge=1)
    layers: int = setting(2, "Layers of the backbone.", ge=1)
    heads: int = setting(2, "Attention heads.", ge=1)
    dropout: float | None = setting(
        None, "Dropout; null: 0.5 where histories are short (on average below 30 events), else 0.2.", ge=0, le=1
    )
    max_length: int = setting(50, "Events of history that are read.", ge=1)
    item_inputs: list[str] = setting(
        ["ids", "text", "codes"],
        "What item vectors are made of: a trainable vector per item, the projected text vector, and vectors of the "
        "codes.",
        choices=("ids", "text", "codes"),
        nonempty=True,
    )
    item_dropout: float = setting(0.1, "Fraction of item id vectors hidden in training, for cold items.", ge=0, le=1)
    time_share: float = setting(
        0.25,
        "Fraction of rotary planes that encode time instead of position; 0: position alone, 1: time alone.",
        ge=0,
        le=1,
    )
    time_bucket: float = setting(86400.0, "Seconds per unit of rotary time.", gt=0)
    anchors: int = setting(
        0, "Neighbours, and top items of category and brand, of each recent event that a request attends to.", ge=0
    )
    user_tokens: bool = setting(
        False, "Add two tokens with the user's behaviour-built ID: of recent events and of all."
    )
    summary_tokens: int = setting(
        0, "Tokens that summarise the whole history by action and code level, beyond `max_length` too.", ge=0
    )
    query_anchors: bool | None = setting(
        None,
        "A search also attends to items that it names, by words or a similar text, and to items chosen after its "
        "words; null: where there are queries.",
    )
    pointer: bool = setting(True, "The code decoder may copy an anchor's code.")
    prior: bool | None = setting(
        None,
        "The code decoder begins with the retrieval head's probability of all items below a code; null: up to 65,536 "
        "items.",
    )
    request_time: bool = setting(False, "The model may read the time of the request itself.")
    situation: list[str] = setting(
        [],
        "What a request tells besides history and query: columns of the users' table, `surface`, and with "
        "`request_time` also `hour` and `weekday` (UTC); `auto`: all of these that most requests of the log have.",
    )
    reasoning_steps: int = setting(0, "Latent reasoning steps before a request is answered.", ge=0)
    stages: list[str] = setting(
        [], "Stages of the feedback chain, shallow to deep, that ranking and reasoning steps learn."
    )
    ranking: bool = setting(
        False, "Candidate tokens and a ranking head with one logit per stage, or one for the next item without stages."
    )
    temperature: float = setting(0.07, "Temperature of the retrieval softmax.", gt=0)
    decoder_layers: int = setting(1, "Layers of the code decoder.", ge=1)


@dataclass
class TrainingConfig:
    """Optimisation. The refit on train and validation takes its epochs from the first fit."""

    tasks: list[str] = setting(
        ["recommendation", "search"], "Tasks that are learnt.", choices=("recommendation", "search"), nonempty=True
    )
    epochs: int | None = setting(None, "Maximum epochs; null: 20 for small logs, fewer for large ones.", ge=1)
    align_epochs: int = setting(0, "First epochs that learn item text to item, without a user.", ge=0)
    cooccur_epochs: int = setting(
        0, "Next epochs that learn query to item and item to following item, without a user.", ge=0
    )
    patience: int = setting(3, "Epochs without improvement on validation before training stops.", ge=1)
    batch_size: int = setting(64, "Sequences per optimiser step, over all devices and chunks.", ge=1)
    accumulate: int | None = setting(
        None,
        "Chunks of similar length that a step is computed in, with the same result; null: 4 on a CPU, else 1.",
        ge=1,
    )
    learning_rate: float = setting(1e-3, "Learning rate of AdamW.", gt=0)
    weight_decay: float = setting(0.01, "Weight decay of AdamW.", ge=0)
    retrieve_weight: float = setting(1.0, "Weight of the retrieval loss.", ge=0)
    generate_weight: float = setting(1.0, "Weight of the generation loss.", ge=0)
    decoder_epochs: int | None = setting(
        None, "Epochs of the code decoder on the frozen backbone; 0: joint training; null: by rule, 2 to 8.", ge=0
    )
    distill_weight: float = setting(
        1.0,
        "Weight of distillation from retrieval head to code decoder; over candidates alone above 65,536 items.",
        ge=0,
    )
    progressive: str = setting(
        "none",
        "What reasoning step k learns: nothing of its own, the first k codes, or the k-th stage of `model.stages`.",
        choices=("none", "codes", "actions"),
    )
    infonce_easy: float = setting(
        1.0,
        "Weight of InfoNCE against random items; the rest is against ignored impressions or mined items.",
        ge=0,
        le=1,
    )
    rank_pair_weight: float = setting(1.0, "Weight of the pairwise term of the ranking loss.", ge=0)
    generate_share: float = setting(0.5, "Fraction of requests whose codes are learnt in a step.", ge=0, le=1)
    same_time: bool = setting(True, "A request may see other events of its own second.")
    negatives: int | None = setting(
        None, "Negatives drawn per step; 0: the whole catalogue; null: all up to 16,384 items, else 2048.", ge=0
    )
    stride: int | None = setting(
        None, "New events per training window of a long sequence; null: half of `model.max_length`.", ge=1
    )
    valid_requests: int = setting(4000, "Validation requests scored after each epoch.", ge=0)
    refit: bool = setting(True, "Also fit on train and validation, with everything chosen before.")
    accelerator: str = setting("auto", "Device: auto, cpu or gpu.")
    strategy: str = setting(
        "auto", "A copy of the network per process, or a sharded network (fsdp).", choices=("auto", "ddp", "fsdp")
    )
    precision: str = setting("auto", "Arithmetic; auto is bf16 on a GPU that has it.", choices=("auto", "32", "bf16"))
    checkpoint_minutes: float = setting(
        10.0, "Minutes between checkpoints, besides those after each epoch; 0 is off.", ge=0
    )


@dataclass
class DecodingConfig:
    """Candidate generation and the search for codes."""

    beam: int = setting(50, "Beam width.", ge=1)
    search: str = setting(
        "beam",
        "Beam search with a certificate, or best-first search until the list is proven.",
        choices=("beam", "exact"),
    )
    dense: int = setting(100, "Candidates from dense retrieval.", ge=1)
    index: str = setting(
        "auto",
        "Dense search by an exact product or a FAISS index; `auto`: exact up to 262,144 items x 64 numbers, then IVF.",
        choices=("auto", "exact", "ivf", "hnsw"),
    )
    cooccurrence: int = setting(100, "Candidates from co-occurrence.", ge=0)
    windowed: int = setting(50, "Candidates from windowed transitions.", ge=0)
    recent: int = setting(50, "Candidates that are popular at the time of the request.", ge=0)
    text: int = setting(50, "Candidates from BM25 for a search.", ge=0)
    text_neighbours: int = setting(
        30, "Candidates by text similarity to the last item, for a recommendation; they include cold items.", ge=0
    )
    batch_size: int = setting(256, "Requests that are answered together.", ge=1)


BASELINES = ("popularity", "itemknn", "cooccurrence", "ease", "als", "sasrec", "bsarec", "bm25", "text", "stack")
SEQUENCE_ROWS = {"sasrec": "SASRec", "bsarec": "BSARec"}  # baselines that are networks of their own


@dataclass
class EvaluationConfig:
    """What the results table shows."""

    ks: list[int] = setting([5, 10, 20], "Cut-offs of Recall and nDCG.", ge=1, nonempty=True)
    baselines: list[str] = setting(
        [name for name in BASELINES if name != "bsarec"],
        "Rows of the table beside the model; `stack` (the classic stack, and that with our retrieval): extra `stack`.",
        choices=BASELINES,
    )
    max_requests: int = setting(0, "Maximum requests of a kind, drawn at random; 0 is all.", ge=0)
    sasrec: dict[str, Any] = setting({}, "Overrides of `model` and `training` for the SASRec and BSARec rows.")


@dataclass
class PreferenceConfig:
    """The stage after training (``genrec prefer``).

    The code decoder learns from rewards. It is kept only if validation agrees.
    """

    phases: list[str] = setting(
        ["taste"],
        "Phases in order, see genrec/preference/phases.py.",
        choices=("taste", "distil", "grpo", "plackett-luce", "dpo"),
        nonempty=True,
    )
    levels: dict[str, float] = setting(
        {}, "Value of a stage of the feedback chain, or of `similar` and `unrelated` items without an impression."
    )
    order: str | None = setting(None, "Stage that counts as an order; null: the deepest.")
    reward: dict[str, float] = setting(
        {"click": 1.0, "next": 0.0, "both": 0.0, "relevance": 0.1},
        "Weights of the reward model's towers.",
        choices=("click", "next", "both", "relevance"),
    )
    rewards: dict[str, float] = setting(
        {"model": 1.0, "behaviour": 0.5}, "Weights of the rewards of grpo, see genrec/preference/rewards.py."
    )
    max_requests: int = setting(20_000, "Newest requests that are used from each part.", ge=1)
    epochs: int = setting(1, "Epochs of each phase.", ge=1)
    learning_rate: float = setting(2e-4, "Learning rate.", gt=0)
    anchor: float = setting(0.5, "Weight of supervised learning on the chosen item.", ge=0)
    kl: float = setting(0.05, "Weight of the divergence from the reference (grpo).", ge=0)
    teacher: str = setting(
        "fused",
        "Teacher: the re-ranker over its candidates, or ranking head or reward model over the beam (distil).",
        choices=("fused", "ranking", "reward"),
    )
    strengths: list[float] = setting(
        [0.2, 0.5, 1.0, 2.0, 3.0],
        "Weights of the value's logarithm against the decoder's log-probability (taste; distil by reward, ranking). "
        "Each is tried; of those that the gate accepts, the one with the highest reward nDCG of held-out impressions "
        "is kept, in a log without impressions that with the highest reward.",
        ge=0,
        nonempty=True,
    )
    tolerance: float = setting(0.02, "Acceptance gate: maximum relative loss of Recall and nDCG.", ge=0)


@dataclass
class Config:
    """One job: ``genrec run`` writes everything below ``output/name``."""

    name: str = setting("run", "Name of the run folder.")
    output: str = setting("runs", "Folder of run folders.")
    seed: int = setting(42, "Seed of all random numbers.")
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
