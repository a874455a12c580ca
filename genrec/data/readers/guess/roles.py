"""The roles of a table's columns: by their names first, and by what they hold second."""

from __future__ import annotations

import re

import polars as pl

from genrec.data.ids import NULL_WORDS
from genrec.data.readers.guess.languages import role_by_words
from genrec.data.readers.guess.names import (
    DESCRIPTIVE,
    EVENT_NAMES,
    ITEM_NAMES,
    bare,
    flag_of,
    may_be_item,
    rank_of,
    stage_of,
)
from genrec.data.readers.guess.tables import Table
from genrec.data.times import recognise
from genrec.errors import UserError

LABELLED = r"^\S+-[01](?:\s\S+-[01])*$"
CLOCK = r"^\d{1,2}:\d\d(?::\d\d)?(?:\.\d+)?(?: ?[AaPp][Mm])?$"
FLAG_VALUES = {"0", "1", "0.0", "1.0", "true", "false", "yes", "no", "t", "f", "y", "n"}


def assign_roles(table: Table) -> None:
    """Give the columns of a table their roles."""
    _join_numbered(table)
    _join_date_parts(table)
    taken: set[str] = set()
    for role, names in EVENT_NAMES.items():
        name = _best(table, role, names, taken)
        if name is not None:
            table.columns[role] = name
            taken.add(name)
    _assign_by_words(table, taken)
    if table.header:
        _assign_by_content(table, taken)
    else:
        _assign_leftovers(table, taken)
    _join_clock(table, taken)
    if "action" not in table.columns and {"user_id", "item_id"} <= {*table.columns}:
        table.flags = _flags(table, taken)
    record = table.columns.get("item_id", "").rpartition(".")[0]  # in nested records, what stands beside the item
    for role, names in ITEM_NAMES.items():
        free = [name for name in table.sample.columns if name not in {*taken} - {table.columns.get("item_id")}]
        ranked = [
            (rank, name)
            for name in free
            if (rank := rank_of(name, names)) is not None and name != table.columns.get("item_id")
        ]
        ranked = ranked or [(0.0, name) for name in free if role_by_words(name) == role]
        if ranked:
            table.items[role] = min(ranked, key=lambda one: (one[1].rpartition(".")[0] != record, *one))[1]
    item = table.columns.get("item_id")
    if item and bare(item) in ITEM_NAMES["title"] and "title" not in table.items:
        table.items["title"] = item


def _assign_by_words(table: Table, taken: set[str]) -> None:
    """Roles of an event that no column has by its whole name, by the words of the names in any language."""
    for role in ("user_id", "item_id", "timestamp", "action", "query", "quantity"):
        if role in table.columns or table.header:
            continue
        of_items = {name for names in ITEM_NAMES.values() for name in names}
        for name in table.sample.columns:
            free = name not in taken and bare(name) not in of_items
            if (
                free
                and role_by_words(name) == role
                and _fits(table, role, name)
                and not _is_unlikely(table, role, name, 0)
            ):
                table.columns[role] = name
                taken.add(name)
                break


def _best(table: Table, role: str, names: tuple[str, ...], taken: set[str]) -> str | None:
    """The column whose name fits a role best; an unlikely one only where there is no other."""
    ranked = sorted(
        (_is_unlikely(table, role, name, rank), rank, name)
        for name in table.sample.columns
        if name not in taken and (rank := rank_of(name, names)) is not None
    )
    return next((name for _, _, name in ranked if _fits(table, role, name)), None)


def _is_unlikely(table: Table, role: str, name: str, rank: float) -> bool:
    """Whether a column speaks against its name: a constant or describing column for an id, unknown words as actions."""
    if role == "action" and not table.sample[name].dtype.is_nested():
        values = table.sample[name].drop_nulls().cast(pl.String, strict=False).unique().head(50)
        return not any(stage_of(value) is not None for value in values)
    if role not in ("user_id", "item_id"):
        return False
    described = rank >= 100 and DESCRIPTIVE.search(bare(name)) is not None
    column = table.sample[name]
    constant = role == "item_id" and not column.dtype.is_nested() and len(column) > 2 and column.n_unique() == 1
    return described or constant


def _join_numbered(table: Table) -> None:
    """Columns ``item_1``, ``item_2`` ... that hold an item each get one name with a star, the first as its sample."""
    groups: dict[str, list[str]] = {}
    for name in table.sample.columns:
        if match := re.fullmatch(r"(.*?[A-Za-z])([_\W]?)\d+", name):
            groups.setdefault(match[1] + match[2], []).append(name)
    for prefix, names in groups.items():
        others = [name for name in table.sample.columns if name.startswith(prefix) and name not in names]
        rank = rank_of(prefix, EVENT_NAMES["item_id"])
        if len(names) > 1 and not others and rank is not None and rank < 100 and not table.header:
            if _is_matrix(table, names):
                raise UserError(
                    f"{table.files[0]}: a column for each item ({names[0]}, {names[1]}, ...) with numbers in them, a "
                    "matrix; write one row for each user and item"
                )
            table.sample = table.sample.with_columns(table.sample[names[0]].alias(prefix + "*")).drop(names)


def _is_matrix(table: Table, names: list[str]) -> bool:
    """Whether columns of items hold few numbers, such as ratings or counts, and not items."""
    values = pl.concat([table.sample[name].cast(pl.String).rename("value") for name in names]).drop_nulls()
    return len(names) > 4 and values.n_unique() < len(names) and values.str.contains(r"^\d(?:[.,]\d+)?$").all()


def _join_date_parts(table: Table) -> None:
    """Columns ``year``, ``month`` and ``day``, as partitions have them, get one column of dates."""
    parts = {bare(name): name for name in table.sample.columns}
    if {"year", "month", "day"} <= {*parts}:
        _joined_column(table, [parts[key] for key in ("year", "month", "day")])


def _join_clock(table: Table, taken: set[str]) -> None:
    """A column of dates without a clock and one of clocks become the time."""
    date = table.columns.get("timestamp")
    if date is None or table.sample[date].dtype.is_numeric() or table.sample[date].dtype == pl.Datetime:
        return
    if table.sample[date].cast(pl.String).str.contains(":").any():
        return
    for name in table.sample.columns:
        column = table.sample[name]
        if name in taken or column.dtype.is_nested() or not column.count():
            continue
        if column.dtype == pl.Time or column.cast(pl.String).drop_nulls().str.contains(CLOCK).all():
            table.columns["timestamp"] = _joined_column(table, [date, name])
            taken.add(name)
            return


def _joined_column(table: Table, names: list[str]) -> str:
    """Add the column of several to the sample, as the reader joins them; returns its name."""
    joined = " + ".join(names)
    table.joined[joined] = names
    made = pl.concat_str([pl.col(name).cast(pl.String) for name in names], separator=" ")
    table.sample = table.sample.with_columns(made.alias(joined)).drop(names)
    return joined


def _flags(table: Table, taken: set[str]) -> dict[str, str]:
    """True/false columns that speak of an action each; a column ``label`` speaks of a click."""
    flags = {}
    for name in table.sample.columns:
        column = table.sample[name]
        if name in taken or column.dtype.is_nested() or column.dtype.is_temporal() or not column.count():
            continue
        action = flag_of(name) or ("click" if bare(name) in ("label", "target") else None)
        if action and {*column.drop_nulls().cast(pl.String).str.to_lowercase().unique()} <= FLAG_VALUES:
            flags[name] = action
            if bare(name) in ("label", "target"):
                table.doubts.append(f"column {name!r} is taken as: was it clicked (action_flags)")
    return flags


def _fits(table: Table, role: str, name: str) -> bool:
    column = table.sample[name]
    if column.null_count() == len(column):
        return False
    if role in ("user_id", "item_id") and column.dtype == pl.String:
        missing = column.is_null() | column.is_in(list(NULL_WORDS))
        return float(missing.sum()) < 0.5 * len(column)
    if role == "timestamp":
        return time_kind(column) is not None
    if role == "action" and bare(name).endswith("id"):
        return False
    if role == "action":
        return (
            column.dtype == pl.String
            and column.n_unique() <= 50
            or column.dtype.is_integer()
            and column.n_unique() <= 10
        )
    if role == "history":
        return column.dtype == pl.String or column.dtype == pl.List
    if role == "rating":
        numbers = column.cast(pl.String, strict=False).drop_nulls()
        return bool(numbers.str.contains(r"^-?\d+([.,]\d+)?$").all())
    if role == "quantity":
        return column.cast(pl.String, strict=False).drop_nulls().str.contains(r"^-?\d+([.,]\d+)?$").all()
    return not column.dtype.is_nested() or role == "item_id"


def time_kind(column: pl.Series) -> str | None:
    """How a column of times is written, "ambiguous" where two notations fit, None for no time."""
    if column.dtype.is_nested():
        return None
    try:
        notation = recognise(column, "sample")
    except UserError as error:
        return "ambiguous" if " may be " in str(error) else None
    read = notation.seconds(column)
    return notation.kind if read.null_count() <= column.null_count() + 0.2 * len(column) else None


def _assign_leftovers(table: Table, taken: set[str]) -> None:
    """A time under an unknown name by what it holds, and a bare ``id`` as the item where each row has a user."""
    nested = table.columns.get("item_id", "").rpartition(".")[0]
    if nested and "user_id" not in table.columns and "id" in table.sample.columns and not table.is_key("id"):
        table.columns["user_id"] = "id"  # the records hold a list of events each: they are the users
        taken.add("id")
    if "timestamp" not in table.columns and "user_id" in table.columns:
        times = [name for name in table.sample.columns if name not in taken and _is_clear_time(table.sample[name])]
        if times:
            table.columns["timestamp"] = times[0]
            taken.add(times[0])
    bare_id = next((name for name in table.sample.columns if bare(name) == "id" and name not in taken), None)
    if "user_id" in table.columns and "item_id" not in table.columns and bare_id is not None:
        table.columns["item_id"] = bare_id
        taken.add(bare_id)
    if "user_id" in table.columns and "item_id" not in table.columns:
        likely = [name for name in table.sample.columns if name not in taken and may_be_item(name)]
        likely = [name for name in likely if _fits(table, "item_id", name) and not _is_fractional(table.sample[name])]
        if likely:
            table.columns["item_id"] = likely[0]
            table.doubts.append(f"no column has a known name for the item: {likely[0]!r} is taken (columns.item_id)")
            taken.add(likely[0])


def _is_fractional(column: pl.Series) -> bool:
    """Whether a text column holds numbers with a fraction, which are no ids: coordinates, hours, amounts."""
    texts = column.drop_nulls().cast(pl.String, strict=False)
    return int(texts.str.contains(r"^-?\d+\.\d+$").sum()) > 0.5 * len(texts)


def _is_clear_time(column: pl.Series) -> bool:
    """Whether a column holds dates, or numbers that are seconds (or parts of them) between 1995 and 2040."""
    kind = time_kind(column)
    if kind in (None, "order", "excel"):
        return False
    if kind == "ambiguous":
        return True
    middle = recognise(column, "sample").seconds(column).median()
    return isinstance(middle, float) and 788_918_400 < middle < 2_208_988_800


def _assign_by_content(table: Table, taken: set[str]) -> None:
    """Roles of a file without column names: the time, the action, then user and item as the first columns of ids."""
    names = list(table.sample.columns)
    if table.layout.sections:
        table.columns["item_id"] = names[0]
        taken.add(names[0])
    for name in names:
        if "timestamp" not in table.columns and _is_clear_time(table.sample[name]):
            table.columns["timestamp"] = name
            taken.add(name)
        elif "action" not in table.columns and table.sample[name].n_unique() <= 20:
            values = table.sample[name].drop_nulls().cast(pl.String).unique().to_list()
            if values and sum(stage_of(value) is not None for value in values) >= 0.5 * len(values):
                table.columns["action"] = name
                taken.add(name)
    ids = [name for name in names if name not in taken and table.sample[name].null_count() < 0.5 * len(table.sample)]
    ids = [name for name in ids if not _is_fractional(table.sample[name])]
    labelled = [name for name in ids if is_labelled(table.sample[name])]
    if labelled:
        table.columns["item_id"] = labelled[0]
        ids.remove(labelled[0])
        histories = [name for name in names if name not in taken and _lists_items_of(table, name, labelled[0])]
        if histories:
            table.columns["history"] = histories[0]
            ids = [name for name in ids if name != histories[0]]
        ids = [name for name in ids if table.distinct(name) < 0.999] or ids
    elif "timestamp" not in table.columns and ids and table.distinct(ids[0]) > 0.99:
        table.columns["item_id"] = ids.pop(0)  # a table of items: its first column is the key
        texts = sorted(ids, key=lambda name: -float(table.sample[name].str.len_chars().mean() or 0))  # type: ignore[arg-type]
        table.items |= (
            dict(zip(("text", "title"), texts, strict=False))
            if len(texts) > 1
            else dict.fromkeys(["title"][: len(texts)], texts[0])
        )
        return
    if ids:
        table.columns["user_id"] = ids.pop(0)
    if "item_id" not in table.columns and ids:
        first = table.distinct(ids[0])
        richer = [name for name in ids if table.distinct(name) > 2 * first]
        table.columns["item_id"] = richer[0] if richer and table.sample.height > 50 else ids[0]


def is_labelled(column: pl.Series) -> bool:
    """Whether a column lists items with 0 or 1 behind each, as ``N1-0 N2-1``."""
    texts = column.drop_nulls()
    return texts.dtype == pl.String and bool(
        texts.str.contains(LABELLED).all() and texts.str.contains(r"-[01]\s").any()
    )


def _lists_items_of(table: Table, name: str, labelled: str) -> bool:
    """Whether a column lists items of the same shape as a labelled one, without labels: what a person had before."""
    shapes = [
        texts.str.split(" ").explode().str.replace(r"-[01]$", "").str.replace_all(r"\d+", "9").unique()
        for texts in (table.sample[name].drop_nulls(), table.sample[labelled].drop_nulls())
    ]
    return name != labelled and len(shapes[0]) > 0 and shapes[0].is_in(shapes[1].implode()).all()


def list_separator(item: pl.Series) -> str | None:
    """What separates the items where most fields of a column list several; None where they hold one."""
    texts = item.drop_nulls()
    for separator in (" ", ",", "|", ";"):
        several = texts.str.contains(rf"^[\w-]+(?:\s*{re.escape(separator)}\s*[\w-]+)+$")
        if len(texts) and several.mean() > 0.5 and texts.str.contains(rf"^[\d{re.escape(separator)}\s]+$").mean() > 0.5:  # type: ignore[operator]
            return separator
    return None
