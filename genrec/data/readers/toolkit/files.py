"""From a path to the files of a log: a folder, one file or a pattern, plain or compressed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from genrec.errors import UserError

COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".zip")


def is_glob(path: str | Path) -> bool:
    """Whether a path is a pattern such as ``logs/day-*.csv.gz``."""
    return any(sign in str(path) for sign in "*?[")


def files_at(path: Path, subfolders: bool = False) -> list[Path]:
    """The files of a folder (and its ``subfolders``), the file itself, or the matches of a pattern, sorted by name.

    Hidden files and files whose name starts with ``_`` are passed over in a folder. Empty when there is none.
    """
    if path.is_dir():
        entries = [*path.iterdir(), *(path.glob("*/*") if subfolders else ())]
        return sorted(file for file in entries if file.is_file() and not file.name.startswith((".", "_")))
    if path.exists():  # before patterns: a file may have a bracket in its name
        return [path]
    if is_glob(path):
        root = Path(path.anchor)
        return sorted(file for file in root.glob(str(path.relative_to(path.anchor))) if file.is_file())
    return []


def plain_name(file: Path) -> str:
    """The file's name without ``.gz`` or ``.zst``."""
    return file.name.removesuffix(file.suffix) if file.suffix in COMPRESSED else file.name


def sibling(folder: Path, name: str) -> Path | None:
    """The file ``name`` in a folder, plain or compressed, or None."""
    return next(
        (folder / (name + suffix) for suffix in ("", *COMPRESSED) if (folder / (name + suffix)).is_file()), None
    )


def find_one(folder: Path, pattern: str) -> Path | None:
    """The one file in ``folder`` that matches a pattern, plain or compressed; ``UserError`` when there are several."""
    matches = sorted({path for suffix in ("", *COMPRESSED) for path in folder.glob(pattern + suffix)})
    if len(matches) > 1:
        names = " and ".join(path.name for path in matches[:3])
        raise UserError(f"{folder}: {names} both match; keep one of them in the folder")
    return matches[0] if matches else None


def files_by_kind(path: Path, kinds: Mapping[str, str], reader: str) -> dict[str, list[Path]]:
    """The files of a layout at a folder, a file or a pattern, by kind, each kind sorted by name.

    ``kinds`` maps a kind to the regular expression of its file names (without ``.gz`` or ``.zst``). Raises
    ``UserError`` when there is no file of any kind, or when one table is there twice (plain and compressed).
    """
    if not path.exists() and not is_glob(path):
        raise UserError(f"{path}: no such file or folder for reader {reader!r}; check the path")
    by_kind: dict[str, list[Path]] = {kind: [] for kind in kinds}
    tables: dict[tuple[Path, str], Path] = {}
    for file in files_at(path):
        kind = next((kind for kind, name in kinds.items() if re.fullmatch(name, plain_name(file))), None)
        if kind is None:
            continue
        table = (file.parent, plain_name(file))
        if table in tables:
            names = f"{tables[table].name} and {file.name}"
            raise UserError(f"{file.parent}: {names} are the same table twice; keep one of them")
        tables[table] = file
        by_kind[kind].append(file)
    if not tables:
        raise no_file(path, reader, [name.replace("\\", "").replace(".*", "*") for name in kinds.values()])
    return by_kind


def no_file(path: Path, reader: str, names: Sequence[str]) -> UserError:
    """The error for a path that holds none of the files that a reader needs."""
    return UserError(f"{path}: no file of reader {reader!r} there; expected {', '.join(names)} (plain, .gz or .zst)")
