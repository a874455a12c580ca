"""Checks of a whole config: relations between settings, which a declaration of one setting cannot express."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from genrec.config.schema import Config, ModelConfig, TrainingConfig
from genrec.config.setting import check_values
from genrec.errors import UserError


def validate(config: Config) -> None:
    """Raise ``UserError`` for values that no run can work with; the message names the key."""
    check_values(config)
    _check_data(config)
    _check_model(config.model)
    _check_ranking(config.model, config.training)
    _check_training(config)


def seconds_of(value: str | None, key: str) -> int | None:
    """A time in Unix seconds, from whole seconds or an ISO date or time (UTC without an offset)."""
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


def _check_data(config: Config) -> None:
    data, text = config.data, config.text
    if data.target_action is not None and config.split.kind == "leave-last-out":
        raise UserError(
            "data.target_action: leave-last-out holds out each user's last event of any action; use another split.kind"
        )
    start, end = seconds_of(data.start_time, "data.start_time"), seconds_of(data.end_time, "data.end_time")
    if start is not None and end is not None and start >= end:
        raise UserError(f"data.start_time: {data.start_time} is not before data.end_time {data.end_time}")
    if (text.encoder == "hf") != (text.model is not None):
        raise UserError(
            f"text.model: is {text.model}; text.encoder=hf needs a Hugging Face name or a folder, others need null"
        )


def _check_model(model: ModelConfig) -> None:
    if model.dim % (2 * model.heads):
        raise UserError(f"model.dim: {model.dim} is not a multiple of 2 x model.heads = {2 * model.heads}")
    for key in ("user_tokens", "summary_tokens"):
        if getattr(model, key) and "codes" not in model.item_inputs:
            raise UserError(f"model.{key}: needs code vectors; add codes to model.item_inputs")
    names = model.situation
    for name in names:
        if names.count(name) > 1 or (name == "auto" and len(names) > 1):
            raise UserError(f"model.situation: '{name}' stands beside a field that says the same")
        if name in ("hour", "weekday") and not model.request_time:
            raise UserError(f"model.situation: {name} is that of the request; set model.request_time=true to read it")


def _check_ranking(model: ModelConfig, training: TrainingConfig) -> None:
    """Settings of ranking head, feedback stages and reasoning that need each other."""
    if training.progressive != "none" and not model.reasoning_steps:
        raise UserError(
            f"training.progressive={training.progressive}: no step to supervise; set model.reasoning_steps above 0"
        )
    if training.progressive == "actions" and not model.stages:
        raise UserError(
            "training.progressive=actions: name the stages of the feedback chain, as in model.stages=[click,long_view]"
        )
    if model.stages and not model.ranking and training.progressive != "actions":
        raise UserError("model.stages: nothing learns them; set model.ranking=true or training.progressive=actions")


def _check_training(config: Config) -> None:
    """Settings of staged training that need each other."""
    training = config.training
    before = training.align_epochs + training.cooccur_epochs
    if training.epochs is not None and before >= training.epochs:
        raise UserError(
            f"training.epochs: {training.epochs} leaves none after align_epochs + cooccur_epochs = {before}; give more"
        )
    if config.split.cold_share and training.refit:
        raise UserError(
            "split.cold_share: a refit learns from validation events, which hold cold items; set training.refit=false"
        )
