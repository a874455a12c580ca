"""Options of readers: known names, values of the right kind, and messages that name the nearest valid word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from genrec.errors import UserError


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that looks most like ``name``, or None when none is close."""
    lowered = {candidate.lower(): candidate for candidate in valid}
    matches = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    return lowered[matches[0]] if matches else None


def did_you_mean(name: str, valid: Sequence[str]) -> str:
    """The end of an error message: the nearest valid name, then all of them."""
    close = nearest(name, valid)
    hint = f"did you mean {close!r}? " if close else ""
    return f"{hint}valid: {', '.join(valid)}"


def check_options(reader: str, options: dict, valid: Sequence[str]) -> None:
    """Raise ``UserError`` for the first option that the reader does not have."""
    for key in options:
        if key not in valid:
            tail = did_you_mean(str(key), valid) if valid else "it takes none"
            raise UserError(f"reader {reader!r} has no option {str(key)!r}; {tail}")


def choice(reader: str, options: dict, key: str, valid: Sequence[str], default: str) -> str:
    """An option that is one of a few words; ``UserError`` for any other."""
    value = options.get(key, default)
    if value not in valid:
        raise UserError(f"reader {reader!r}: option {key} cannot be {value!r}; {did_you_mean(str(value), valid)}")
    return value


def switch(reader: str, options: dict, key: str, default: bool) -> bool:
    """An option that is true or false; ``UserError`` for any other value."""
    value = options.get(key, default)
    if not isinstance(value, bool):
        raise UserError(f"reader {reader!r}: option {key} must be true or false, not {value!r}")
    return value


def number(reader: str, options: dict, key: str, default: float) -> float:
    """An option that is a number; ``UserError`` for any other value."""
    value = options.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"reader {reader!r}: option {key} must be a number, not {value!r}")
    return value
