"""Typed configuration: one YAML file, then ``key=value`` overrides. Unknown keys are errors that name the nearest valid key."""

from __future__ import annotations

import difflib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from genrec.config.checks import validate
from genrec.config.schema import PRESETS, Config
from genrec.errors import UserError


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
