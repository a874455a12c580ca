"""Loading of configs: one YAML file, then ``key=value`` overrides.

An unknown key is an error that names the nearest valid one, a removed key one that says what to do instead.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from genrec.config.checks import validate
from genrec.config.removed import REMOVED
from genrec.config.schema import Config
from genrec.config.setting import sections, settings
from genrec.errors import UserError

T = TypeVar("T")


def load_config(path: str | Path | None = None, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file, apply ``key=value`` overrides, check keys, types and values.

    Raises ``UserError`` for a missing file, an unknown key, a wrong type or a value out of range.
    """
    with _reported(str(path or "command line")):
        given = OmegaConf.merge(read_yaml(path) if path is not None else {}, _dotlist(overrides))
        config = _config(OmegaConf.structured(Config), given)
    validate(config)
    return config


def read_yaml(path: str | Path, schema: type = Config, what: str = "config") -> Any:
    """A YAML mapping whose keys the schema knows. Raises ``UserError`` for any other file."""
    file = find_file(path)
    if file is None:
        raise UserError(f"{what} file not found: {path}")
    path = file
    with _reported(str(path)):
        loaded = OmegaConf.load(path)
        if not OmegaConf.is_dict(loaded):
            raise UserError(f"{path}: a {what} is a YAML mapping of keys to values")
        check_keys(_flatten(OmegaConf.to_container(loaded), schema), str(path), schema)
    return loaded


def find_file(path: str | Path) -> Path | None:
    """The file, or the shipped config of that path in an installed package: ``configs/movielens-100k.yaml``."""
    shipped = Path(sys.prefix) / "share" / "genrec" / path
    return next((one for one in (Path(path), shipped) if one.is_file()), None)


def read_structured(path: str | Path, schema: type[T], what: str) -> T:
    """A YAML file as an object of a dataclass, with its keys and types checked."""
    loaded = read_yaml(path, schema, what)
    with _reported(str(path)):
        made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), loaded))
    assert isinstance(made, schema)
    return made


def config_from_dict(tree: dict, source: str) -> Config:
    """A config from the plain dictionary that ``to_dict`` made; the same checks of keys and types as for a file."""
    check_keys(_flatten(tree, Config), source)
    with _reported(source):
        return _config(OmegaConf.structured(Config), tree)


def with_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """A copy of a config with ``key=value`` overrides; the same checks as for a file."""
    with _reported("command line"):
        changed = _config(OmegaConf.structured(config), _dotlist(overrides))
    validate(changed)
    return changed


def to_dict(config: Any) -> dict:
    """The plain, JSON-ready form of a config or of one of its sections."""
    tree = OmegaConf.to_container(OmegaConf.structured(config), resolve=True)
    assert isinstance(tree, dict)
    return tree


def check_keys(keys: Iterable[str], source: str, schema: type = Config) -> None:
    """Raise ``UserError`` for the first key that the schema does not have, with the nearest valid name."""
    valid = [*(one.key for one in settings(schema)), *sections(schema)]
    free = tuple(f"{key}." for key in _mappings(schema))
    for key in keys:
        if key not in valid and not key.startswith(free):
            if key in REMOVED:
                raise UserError(f"{source}: '{key}' was removed; {REMOVED[key]}")
            near = difflib.get_close_matches(key, valid, n=1, cutoff=0.0)
            raise UserError(f"{source}: unknown key '{key}'; did you mean '{near[0]}'?")


def _config(*parts: Any) -> Config:
    config = OmegaConf.to_object(OmegaConf.merge(*parts))
    assert isinstance(config, Config)
    return config


def _dotlist(overrides: Iterable[str]) -> Any:
    """Overrides as a tree; ``UserError`` for one that is not ``key=value`` or has an unknown key."""
    given = list(overrides)
    for override in given:
        if "=" not in override:
            raise UserError(f"override '{override}' is not key=value")
        check_keys([override.split("=", 1)[0]], "command line")
    return OmegaConf.from_dotlist(given)


def _mappings(schema: type) -> set[str]:
    """The settings whose values are mappings with keys of their own."""
    return {one.key for one in settings(schema) if isinstance(one.default, dict)}


def _flatten(tree: Any, schema: type) -> Iterator[str]:
    """The dotted keys of a tree, without those inside a setting that is a mapping itself."""
    free = _mappings(schema)

    def keys(branch: dict, prefix: str) -> Iterator[str]:
        for key, value in branch.items():
            yield f"{prefix}{key}"
            if isinstance(value, dict) and f"{prefix}{key}" not in free:
                yield from keys(value, f"{prefix}{key}.")

    return keys(tree, "")


@contextmanager
def _reported(source: str) -> Iterator[None]:
    """Turn what OmegaConf and YAML raise into a ``UserError`` of one line that names the source."""
    try:
        yield
    except OmegaConfBaseException as error:
        key = f" (key {error.full_key})" if error.full_key else ""
        raise UserError(f"{source}: {str(error).splitlines()[0]}{key}") from error
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error})") from error
    except (ValueError, YAMLError) as error:
        raise UserError(f"{source}: is not valid YAML ({' '.join(str(error).split())})") from error
