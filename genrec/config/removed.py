"""Settings of earlier versions: what to do about a key that a config still has."""

from __future__ import annotations

_DELETE = "delete it; what it chose between made no measured difference, or follows from the data now"
_ADVICE = {
    "data.cache": "delete it; the parsed log is always kept beside the dataset, so that new files are added quickly",
    "data.max_user_events": "set model.max_length, the events of history that are read",
    "decoding.cuda_graph": "delete it; a beam search on a GPU always is a CUDA graph",
    "decoding.exact_top": "set decoding.search=exact",
    "decoding.int8": "set decoding.index=ivf",
    "decoding.level_beams": "set decoding.beam, one width for all levels",
    "evaluation.bootstrap": "delete it; intervals are always given",
    "model.query_ngrams": "delete it; words of a query are always read",
    "model.rope": "set model.time_share; 0 is position alone",
    "model.use_codes": "list codes in model.item_inputs",
    "model.use_ids": "list ids in model.item_inputs",
    "model.use_text": "list text in model.item_inputs",
    "preference.in_run": "start genrec run with the option --prefer",
    "preference.samples": "set preference.phases, see genrec/preference/phases.py",
    "split.session_by": "set split.session_gap",
    "text.cache": "delete it; vectors of hf and minilm are always kept by content",
    "text.finetune": "delete it; text vectors stay those of the encoder",
    "training.checkpoint_steps": "set training.checkpoint_minutes",
    "training.devices": "start the command with torchrun --nproc-per-node=N",
    "training.single_target": "delete it; all events of a history are learnt in one pass",
    "training.threads": "set the environment variable OMP_NUM_THREADS",
    "training.warmup_steps": "delete it; the warm-up follows from the number of steps",
}
_OTHERS = """
decoding.compile decoding.per_first_code
model.candidate_evidence model.candidates_visible model.cut_share model.event_dropout model.last_event
model.node_vectors model.preset model.query_codes
preference.auc_tolerance preference.batch_size preference.beam preference.beta preference.breadth_tolerance
preference.checkpoint preference.checkpoint_steps preference.click preference.evidence_share preference.list_length
preference.margin preference.negatives preference.position_weights preference.prefix_gate preference.request_state
preference.reward_share preference.since preference.smoothing preference.soft preference.weight_limit
semantic_ids.balance semantic_ids.balance_last semantic_ids.fit_queries semantic_ids.fit_sample semantic_ids.iterations
semantic_ids.keyword_share semantic_ids.normalise_residuals semantic_ids.opq_size semantic_ids.resolve_collisions
semantic_ids.vae_dim semantic_ids.vae_epochs
text.batch_size text.character_share text.max_features text.min_df
training.category_weight training.cold_negatives training.compile training.decoder_learning_rate
training.distill_temperature training.ema training.hard_negatives training.keyword_distill_weight
training.label_smoothing training.progressive_weight training.rank_group training.rank_list_weight
training.rank_negatives training.rank_share training.rank_weight training.shuffle_ties training.shuffle_whole
"""
REMOVED = dict.fromkeys(_OTHERS.split(), _DELETE) | _ADVICE
