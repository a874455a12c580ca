"""The typed settings of a job, section by section; what a key does stands beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class DataConfig:
    """Where the log is and what is kept of it."""

    reader: str = "table"  # a name in genrec.data.readers.READERS
    path: str | None = None  # folder or file of the log
    fetch: str | None = None  # data set fetched into `data/` when `path` is not given
    options: dict[str, Any] = field(default_factory=dict)  # passed to the reader
    actions: list[str] | None = None  # actions that become events; null = all
    target_action: str | None = (
        None  # events below it in the feedback chain are past that a model sees, never what it is to predict
    )
    start_time: str | None = None  # events from this time on: an ISO date or time (UTC) or seconds since 1970
    end_time: str | None = None  # events before this time
    duplicates: str = "drop-exact"  # keep; drop-exact: same user, item, time, action and query; drop-consecutive: also the item just before
    max_user_events: int | None = None  # the newest events of a user that are kept
    min_user_events: int = 1  # iterative k-core over users ...
    min_item_events: int = 1  # ... and items
    keep_unseen_items: bool = False  # keep catalogue items that no event names
    max_quarantine_share: float = 0.05  # more bad rows than this stop the job
    cache: bool = (
        True  # keep the parsed log beside the dataset, so that new files are appended without reading the old ones
    )


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
    cold_share: float = (
        0.0  # share of items without any training event: `genrec evaluate RUN --protocol cold-items` asks for them
    )
    session_by: str = (
        "gap"  # session only: gap = a pause of more than session_gap starts one; request = events of one request_id
    )
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
    balance: str = "last-per-parent"  # rq-opq, last residual level: none, last, last-per-code, last-per-parent
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

    preset: str | None = (
        None  # nano, small, base or large: sets dim, layers, heads and decoder_layers where these are not given
    )
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
    event_dropout: float = 0.0  # share of past events whose item is hidden in training
    cut_share: float = (
        0.0  # share of sequences that are cut in two at a random place in a training step: neither part sees the other
    )
    time_share: float = 0.25  # share of rotary planes turned by time instead of index
    time_bucket: float = 86400.0  # seconds per rotary time unit
    last_event: bool = True  # a request starts from the event before it (a shortcut past the attention)
    anchors: int = 8  # neighbours of each recent event (and as many of its category and brand) that a request attends over; 0 = none
    user_tokens: bool = (
        False  # two tokens beside the request's own: the person's behaviour-built ID, of the last few events and of all
    )
    summary_tokens: int = (
        0  # so many more: all events before the request, by action and code level, those in front of max_length too
    )
    query_anchors: bool | None = (
        None  # a search also attends over items whose text is next to its query's, and those taken after its words; null = where there are anchors and queries
    )
    pointer: bool = (
        True  # may the code decoder copy an anchor, where there are any? codes above anchors gain what these weigh
    )
    request_time: bool = False  # may the request's own time be read?
    rope: str = (
        "split"  # what turns the rotary planes: index, time, split (time_share of them by time), early (all by both)
    )
    reasoning_steps: int = 0  # latent steps a request thinks before it answers
    stages: list[str] = field(
        default_factory=list
    )  # stages of the log's feedback chain, shallow to deep, that steps and ranking learn
    ranking: bool = (
        False  # candidate tokens and a ranking head: one logit per stage, or one for "comes next" without stages
    )
    candidate_evidence: bool = True  # do its candidates carry what is known of the pair? rates of what was shown (stages), else retrieval score and anchors
    candidates_visible: bool = False  # do the candidates of a request see one another?
    temperature: float = 0.1
    decoder_layers: int = 1
    node_vectors: str = "items"  # codes, nodes, items: what the code decoder's outputs are compared with


@dataclass
class TrainingConfig:
    """Optimisation. The epoch count of the refit is the one chosen on validation."""

    tasks: list[str] = field(
        default_factory=lambda: ["recommendation", "search"]
    )  # what is learnt; one of the two alone for comparison
    epochs: int | None = None  # null = by the number of training requests: 20 for small logs, fewer for large ones
    align_epochs: int = 0  # of them, the first: an item's text, asked by nobody -> the item ...
    cooccur_epochs: int = (
        0  # ... and the next: a query, asked by nobody -> its item, and an item -> the item that followed
    )
    patience: int = 3
    batch_size: int = 128  # sequences per optimiser step, over all devices and accumulated parts
    accumulate: int | None = (
        None  # parts of similar lengths a step is computed in, one after the other: less memory and padding, the same result; null = 4 on a CPU, else 1
    )
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 100
    ema: float = 0.0  # decay of averaged weights, as 0.99: these are validated and saved; 0 = the optimiser's own
    label_smoothing: float = (
        0.0  # share of the retrieval target spread evenly over the items that the softmax runs over
    )
    category_weight: float = 0.0  # of query -> category of the sought item, beside query -> item
    keyword_distill_weight: float = (
        0.0  # of a search's distance to the answers to the query with the sought item's keywords (OneSearch-V2: .1)
    )
    retrieve_weight: float = 1.0
    generate_weight: float = 1.0
    decoder_epochs: int | None = (
        None  # of the code decoder alone, on the fitted network; 0 = it learns with everything else; null = as epochs, from 8
    )
    decoder_learning_rate: float = 2e-3  # of those epochs
    distill_weight: float = 1.0  # of the divergence between the decoder and the retrieval head's distribution; catalogues up to 65,536 items
    distill_temperature: float = 1.0  # above 1: a softer teacher
    progressive: str = (
        "none"  # what each reasoning step learns: none, codes (the first k codes), actions (the k-th of model.stages)
    )
    progressive_weight: float = 0.3  # of the mean over steps
    infonce_easy: float = (
        1.0  # share of InfoNCE against random items; the rest is against hard ones (shown and not clicked, else mined)
    )
    hard_negatives: int = (
        20  # of each request, where hard ones are used: there, and beside random ones for the ranking head
    )
    rank_weight: float = 1.0  # of the ranking head's loss (with model.ranking)
    rank_pair_weight: float = 1.0  # in it: of the pairwise term beside the pointwise one ...
    rank_list_weight: float = 0.0  # ... and of the list-wise one
    rank_share: float = 0.25  # share of requests that rank in a step, in a log that does not say what was shown
    rank_negatives: int = 20  # random candidates of each of these
    generate_share: float = 0.5  # share of requests whose codes are also learnt in a step; a fresh draw each time
    same_time: bool = True  # may a request see events of its own second? false where one purchase is several events
    shuffle_ties: float = 0.0  # share of sequences whose events of equal time are permuted, anew in each epoch
    shuffle_whole: float = 0.0  # share of sequences permuted altogether
    negatives: int | None = (
        None  # drawn per step; 0 = softmax over the whole catalogue; null = that up to 4096 items, else 2048
    )
    cold_negatives: bool = False  # are items without a training event, and codes of these alone, wrong answers? false: no, nor do they have an id vector; true: they are never found
    stride: int = 25  # new events per window of a long sequence
    valid_requests: int = 4000  # validation requests scored after each epoch
    refit: bool = True  # also fit on train + validation with everything chosen before
    compile: bool = (
        False  # torch.compile of the Transformer layers: worth its minutes of compiling where steps are many
    )
    threads: int = 0  # 0 = torch's choice
    accelerator: str = "auto"
    devices: int = 0  # processes that train together, started by torchrun; 0 = as many as it has started, 1 without it
    strategy: str = (
        "auto"  # auto and ddp: a copy of the network per process; fsdp: the network sharded over the processes
    )
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
    compile: bool = (
        False  # the decoder's layers through torch.compile: a minute at the first requests, a little faster after
    )
    cuda_graph: bool = False  # the whole beam search as one CUDA graph in bfloat16, GPU only
    dense: int = 100
    index: str = "exact"  # dense top: exact matrix product, or FAISS flat, ivf, hnsw
    cooccurrence: int = 100
    text: int = 50  # for a request with a query
    text_neighbours: int = (
        30  # for a request without one: by text next to the last event's item, which also reaches items nobody has had
    )
    batch_size: int = 256


@dataclass
class EvaluationConfig:
    """What the results table shows."""

    ks: list[int] = field(default_factory=lambda: [5, 10, 20])
    baselines: list[str] = field(
        default_factory=lambda: ["popularity", "itemknn", "cooccurrence", "sasrec", "bm25", "text"]
    )
    sasrec: dict[str, Any] = field(default_factory=dict)  # overrides of `model` and `training` for the SASRec row
    bootstrap: int = 1000


@dataclass
class PreferenceConfig:
    """The stage after training (``genrec prefer``): the code decoder learns from rewards, and is kept only if validation agrees."""

    phases: list[str] = field(
        default_factory=lambda: ["grpo", "dpo"]
    )  # rewards, then interactions; all of them: genrec/preference/phases.py
    levels: dict[str, float] = field(
        default_factory=dict
    )  # worth of a stage of the feedback chain, or of `similar` / `unrelated` items not shown
    click: str | None = None  # the stage that counts as click; null = the first beyond an impression
    order: str | None = None  # the stage that counts as order; null = the deepest
    smoothing: float = 10.0  # added to counts before an item's rates are taken
    evidence_share: float = 0.4  # training requests, by time: the first are only counted ...
    reward_share: float = 0.3  # ... the next fit the reward model, which never sees those that remain for the policy
    request_state: bool = True  # reward model reads the backbone's request state and score (true) or the mean of the history's item vectors
    # Of its towers. `next` is learnt from what was clicked alone and says little of what nobody would click; `both` needs many orders.
    reward: dict[str, float] = field(default_factory=lambda: {"click": 1.0, "next": 0.0, "both": 0.0, "relevance": 0.1})
    rewards: dict[str, float] = field(
        default_factory=lambda: {"model": 1.0, "behaviour": 0.5}
    )  # grpo: names in genrec/preference/rewards.py
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
    position_weights: list[float] = field(
        default_factory=lambda: [2.0, 2.0, 1.0]
    )  # grpo: of code positions; the last for all that follow
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
