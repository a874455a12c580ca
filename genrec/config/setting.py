"""One declaration for each setting: its default, the values it accepts, and one sentence that says what it does."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any

from genrec.errors import UserError

_BOUNDS = {
    "ge": ("at least", lambda value, bound: value >= bound),
    "gt": ("above", lambda value, bound: value > bound),
    "le": ("at most", lambda value, bound: value <= bound),
    "lt": ("below", lambda value, bound: value < bound),
}


def setting(
    default: Any,
    sentence: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: Iterable[str] | None = None,
    nonempty: bool = False,
) -> Any:
    """A dataclass field that carries its own documentation and checks.

    Bounds apply to a number, to each element of a list and to each value of a mapping. ``choices`` apply to a text, to
    each element of a list and to each key of a mapping. ``None`` is accepted where the type of the field allows it.
    """
    bounds = {name: bound for name, bound in (("ge", ge), ("gt", gt), ("le", le), ("lt", lt)) if bound is not None}
    metadata = {
        "sentence": sentence,
        "bounds": bounds,
        "choices": None if choices is None else tuple(choices),
        "nonempty": nonempty,
    }
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Setting:
    """What is declared about one setting; ``key`` is its full name, such as ``model.dim``."""

    key: str
    type: str
    default: Any
    sentence: str
    bounds: dict[str, float]
    choices: tuple[str, ...] | None
    nonempty: bool

    @property
    def range(self) -> str:
        """The accepted values in words; empty where every value of the type is accepted."""
        if self.choices:
            return ", ".join(self.choices)
        if {"ge", "le"} <= set(self.bounds):
            return f"between {self.bounds['ge']} and {self.bounds['le']}"
        return " and ".join(f"{_BOUNDS[name][0]} {bound}" for name, bound in self.bounds.items())

    def check(self, value: Any) -> None:
        """Raise ``UserError`` if a value is not accepted."""
        if value is None:
            return
        if self.nonempty and not value:
            known = f"one or more of {', '.join(self.choices)}" if self.choices else "at least one value"
            raise UserError(f"{self.key}: an empty list; give {known}{', or null' if self.default is None else ''}")
        for name in self._texts(value):
            if self.choices and name not in self.choices:
                raise UserError(f"{self.key}: '{name}' is not one of {', '.join(self.choices)}")
        for number in self._numbers(value):
            if not all(_BOUNDS[name][1](number, bound) for name, bound in self.bounds.items()):
                verb = "lie" if {"ge", "le"} <= set(self.bounds) else "be"
                raise UserError(f"{self.key}: must {verb} {self.range}, is {number}")

    def _texts(self, value: Any) -> Iterable[Any]:
        return value if isinstance(value, list | dict) else [value]

    def _numbers(self, value: Any) -> Iterable[Any]:
        return value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]


def sections(schema: type) -> dict[str, type]:
    """The sections of a schema by name: its fields that are dataclasses themselves."""
    result: dict[str, type] = {}
    for item in fields(schema):
        if isinstance(item.default_factory, type) and is_dataclass(item.default_factory):
            result[item.name] = item.default_factory
    return result


def settings(schema: type, prefix: str = "") -> Iterator[Setting]:
    """Every setting of a schema and of its sections, in the order of declaration."""
    inner = sections(schema)
    for item in fields(schema):
        if item.name in inner:
            yield from settings(inner[item.name], f"{prefix}{item.name}.")
            continue
        default = item.default if item.default_factory is MISSING else item.default_factory()
        about = item.metadata
        yield Setting(
            f"{prefix}{item.name}",
            str(item.type),
            default,
            about.get("sentence", ""),
            about.get("bounds", {}),
            about.get("choices"),
            about.get("nonempty", False),
        )


def check_values(config: Any) -> None:
    """Raise ``UserError`` for the first value of a config that its declaration does not accept."""
    for one in settings(type(config)):
        value = config
        for name in one.key.split("."):
            value = getattr(value, name)
        one.check(value)
