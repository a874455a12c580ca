"""The options of the ``table`` reader, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from genrec.data.ids import NULL_WORDS
from genrec.data.readers.toolkit import check_options, did_you_mean
from genrec.data.readers.toolkit.options import nearest
from genrec.data.schema import EVENT_SCHEMA, ITEM_SCHEMA
from genrec.data.times import UNITS
from genrec.errors import UserError

FORMATS = ("csv", "tsv", "text", "json", "jsonl", "parquet", "excel")
EVENT_COLUMNS = (*EVENT_SCHEMA, "quantity", "split", "position", "rating", "history")
TABLES = ("columns", "item_columns", "user_columns")


@dataclass
class TableOptions:
    """The options of the ``table`` reader.

    Paths are relative to the data path when that is a folder, else to its folder. A column is named as in the file;
    ``a.b`` is field ``b`` of an object ``a``, and where ``a`` is a list of objects each of them becomes a row;
    ``a[key=x].b`` is ``b`` of the object of the list whose ``key`` is ``x``; a list of columns is joined (a date and
    a clock, an artist and a track); ``item_*`` stands for several columns that hold an item each.
    """

    events: Any = None
    """Events: a file, a folder or a pattern, or a list of them; the data path itself when not given. An entry of a
    list may be a mapping with ``file`` and options of its own (such as ``action: purchase`` or ``columns``)."""
    items: Any = None
    """Items: a file, a folder or a pattern (optional)."""
    users: Any = None
    """Users: a file, a folder or a pattern (optional)."""
    impressions: Any = None
    """Impressions: a file, a folder or a pattern with the columns of events, whose ``action`` says what came of each
    (optional)."""
    columns: dict[str, Any] = field(default_factory=dict)
    """The event column of the data contract -> the file's column; a column not listed is looked for under its own
    name."""
    item_columns: dict[str, Any] = field(default_factory=dict)
    """The same for items."""
    user_columns: dict[str, Any] = field(default_factory=dict)
    """The same for users."""
    items_from_events: bool | None = None
    """Whether items come from columns of the event files; null = when ``item_columns`` is given and ``items`` is
    not."""
    joins: list[dict[str, str]] = field(default_factory=list)
    """Tables whose columns are looked up for each event: ``file`` and ``on``, the column that both have."""
    item_joins: list[dict[str, str]] = field(default_factory=list)
    """The same for items."""
    item_properties: dict[str, str] | None = None
    """For items with one row a property: the columns ``item``, ``property`` and ``value``; the last value of a
    property counts."""
    category_tree: dict[str, str] | None = None
    """A table of categories: ``file`` and its columns ``id``, ``parent`` and perhaps ``name``; an item's category then
    becomes the path from the root."""
    format: str | None = None
    """csv, tsv, text, json, jsonl, parquet or excel; null = by the file's name and content."""
    separator: str | None = None
    """What separates the fields of a text file; null = by its content."""
    quoted: bool | None = None
    """Whether double quotes enclose fields; null = yes, but in tab-separated files only where the header has them."""
    names: list[str] | None = None
    """The names of the event columns where the file has no header line; ``item_names`` and ``user_names`` for the
    other tables."""
    item_names: list[str] | None = None
    user_names: list[str] | None = None
    encoding: str | None = None
    """Of text files, such as utf-8, cp1252 or utf-16; null = by their content."""
    null_values: list[str] | None = None
    """Texts that stand for a missing id; null = NULL, NA, \\N, (not set) and the like."""
    strip_leading_zeros: bool = False
    """Whether ids lose leading zeros, where one table writes 0042 and another 42."""
    timestamp_unit: str | None = None
    """The unit of the times: s, ms, us, ns, iso, excel (day numbers) or order (positions, or the order of the rows);
    null = recognised."""
    timestamp_format: str | None = None
    """How dates are written, as in ``%d.%m.%Y %H:%M``; null = recognised."""
    action: str | None = None
    """The action of all events, where no column says it."""
    actions: dict[Any, str] | None = None
    """The file's action -> ours, as ``{pv: view, buy: purchase}``; an action that is not listed keeps its name."""
    chain: list[str] | None = None
    """The feedback chain, shallow to deep, as ``[impression, click, purchase]``; rows with another action are left
    out and counted."""
    action_flags: dict[str, str] | None = None
    """True/false columns of the file -> the action each speaks of; an event has the deepest one of the chain that is
    true, and the chain's first where none is."""
    min_rating: float | None = None
    """Rows whose column ``rating`` is below it are left out and counted; null = all are events."""
    min_action: str | None = None
    """The shallowest stage of the chain that makes an event; null = all but a first stage called impression."""
    item_separator: str | None = None
    """What separates the items where one field holds several: each becomes a row."""
    item_label: str | None = None
    """What separates an item from its action within such a field, as "-" in ``N12-1``."""
    category_separator: str | None = None
    """What separates the levels of a category path held as text; null = the first of | > / ; that most paths hold."""

    @property
    def null_words(self) -> list[str]:
        """The texts that stand for a missing id."""
        return list(NULL_WORDS) if self.null_values is None else [str(word) for word in self.null_values]

    @property
    def lowest_event(self) -> str | None:
        """The shallowest stage that makes an event, where there is a chain."""
        if not self.chain:
            return None
        shown = self.chain[0] == "impression" and len(self.chain) > 1
        return self.min_action or (self.chain[1] if shown else self.chain[0])

    @property
    def reads_items(self) -> bool:
        """Whether the event files also give the items."""
        if self.items_from_events is None:
            return bool(self.item_columns) and self.items is None
        return self.items_from_events

    def entries(self) -> list[tuple[Any, TableOptions]]:
        """The event files and the options for each; None stands for the data path itself."""
        if not isinstance(self.events, Sequence) or isinstance(self.events, str):
            return [(self.events, self)]
        result: list[tuple[Any, TableOptions]] = []
        for entry in self.events:
            own = dict(entry) if isinstance(entry, Mapping) else {"file": entry}
            if "file" not in own:
                raise UserError(f"reader 'table': an entry of option events needs 'file'; it has {', '.join(own)}")
            file = own.pop("file")
            own["columns"] = {**self.columns, **(own.get("columns") or {})}
            result.append((file, parse_options({**vars(self), "events": None, **own})))
        return result


def parse_options(options: dict) -> TableOptions:
    """The options with their defaults; ``UserError`` names the first that is wrong."""
    check_options("table", options, [entry.name for entry in fields(TableOptions)])
    options = {name: value for name, value in options.items() if value is not None}
    settings = TableOptions(**options)
    for key in TABLES:
        setattr(settings, key, _mapping(getattr(settings, key), key))
    for key in ("items", "users", "impressions"):
        if not isinstance(getattr(settings, key), str | None):
            raise UserError(f"reader 'table': option {key} must be a path, not {getattr(settings, key)!r}")
    for key, valid in (("timestamp_unit", UNITS), ("format", FORMATS)):
        value = getattr(settings, key)
        if value is not None and value not in valid:
            raise UserError(f"reader 'table': unknown {key} {value!r}; {did_you_mean(str(value), valid)}")
    for key in ("category_separator", "separator", "item_separator", "item_label", "timestamp_format"):
        value = getattr(settings, key)
        if value is not None and (not isinstance(value, str) or not value):
            raise UserError(f"reader 'table': option {key} must be a non-empty text")
    if settings.actions is not None:
        settings.actions = {str(theirs): str(ours) for theirs, ours in dict(settings.actions).items()}
    for key in ("actions", "action_flags"):
        if not isinstance(getattr(settings, key), Mapping | None):
            raise UserError(f"reader 'table': option {key} must map names to actions, not {getattr(settings, key)!r}")
    if settings.action_flags:
        stages = [*settings.action_flags.values()]
        unknown = [stage for stage in stages if stage not in (settings.chain or ())]
        if unknown:
            raise UserError(f"reader 'table': action_flags needs option chain with {unknown[0]!r} in it")
    if settings.min_action and settings.min_action not in (settings.chain or ()):
        raise UserError(f"reader 'table': min_action {settings.min_action!r} is no stage of chain {settings.chain}")
    return replace(settings)


def _mapping(value: Any, key: str) -> dict[str, Any]:
    mapping = value or {}
    if not isinstance(mapping, Mapping) or not all(
        isinstance(theirs, str) or (isinstance(theirs, Sequence) and all(isinstance(name, str) for name in theirs))
        for theirs in mapping.values()
    ):
        raise UserError(f"reader 'table': option {key} must map column names to column names, not {mapping!r}")
    valid = {"columns": EVENT_COLUMNS, "item_columns": tuple(ITEM_SCHEMA), "user_columns": ("user_id",)}[key]
    for ours in mapping:
        close = nearest(ours, valid)
        if ours in valid:
            continue
        if key == "columns":
            raise UserError(
                f"reader 'table': columns.{ours} is no column of the contract; {did_you_mean(ours, list(valid))}"
            )
        if close and close not in mapping and _typo(ours, close):
            raise UserError(f"reader 'table': {key}.{ours} is no column of the contract; did you mean {close!r}?")
    return {ours: theirs if isinstance(theirs, str) else list(theirs) for ours, theirs in mapping.items()}


def _typo(word: str, other: str) -> bool:
    """Whether a word looks like a misspelling of another: the same letters, or one more, less or different."""
    if sorted(word.lower()) == sorted(other):
        return True
    short, long = sorted((word.lower(), other), key=len)
    return len(long) - len(short) <= 1 and sum(a != b for a, b in zip(short, long, strict=False)) <= 1
