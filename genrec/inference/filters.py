"""Which items an answer may hold, as masks over the catalogue.

Masks are applied before anything is proposed, so answers stay exact.
"""

from __future__ import annotations

import copy
import difflib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import polars as pl

from genrec.errors import UserError

SEPARATOR = ">"
MAX_CONDITIONS = 100  # tests of one filter: work per request is bounded
MAX_DEPTH = 10
_OPERATORS = ("eq", "in", "gt", "gte", "lt", "lte", "exists")
Category = str | Sequence[str]


@dataclass(frozen=True)
class Filters:
    """What an answer may hold; ``None`` does not restrict.

    * ``category``: items of any of these, each a name or a path; see ``Categories.mask``.
    * ``in_stock``: only these item ids. ``blocked``: none of these. Ids that the catalogue does not have are ignored.
    * ``where``: a condition on item columns; see ``condition``.
    """

    category: Sequence[Category] | None = None
    in_stock: Sequence[str] | None = None
    blocked: Sequence[str] | None = None
    where: Mapping[str, Any] | None = None

    @property
    def subset(self) -> str:
        """A key of all but ``blocked``: requests with the same key share one mask."""
        return repr((self.category, self.in_stock, self.where))

    @property
    def restricts(self) -> bool:
        """Whether anything but ``blocked`` is given."""
        return self.category is not None or self.in_stock is not None or self.where is not None

    def unknown_categories(self, categories: Categories) -> list[str]:
        """One sentence for each category that no item has."""
        return [note for name in self.category or () if (note := categories.problem(name)) is not None]

    def mask(self, table: pl.DataFrame, categories: Categories) -> np.ndarray:
        """Items that satisfy all but ``blocked``: (n_items,) bool. A category that no item has allows none."""
        mask = np.ones(len(table), bool)
        if self.category is not None:
            mask &= reduce(operator.or_, map(categories.mask, self.category), np.zeros(len(table), bool))
        if self.in_stock is not None:
            mask &= table["item_id"].is_in(list(self.in_stock)).to_numpy()
        if self.where is not None:
            allowed = table.select(condition(self.where, table.schema, categories).fill_null(False)).to_series()
            mask &= allowed.to_numpy() if len(allowed) == len(table) else np.full(len(table), bool(allowed[0]))
        return mask


class Categories:
    """The items of each category of an item table (``category``: levels from general to specific, in item id order)."""

    def __init__(self, items: pl.DataFrame):
        self.n_items = len(items)
        self._added: tuple[tuple[int, pl.DataFrame, Categories], ...] = ()  # first item, table and index of later items
        column = items["category"]
        if column.dtype != pl.List(pl.String):
            column = pl.Series([None] * len(items), dtype=pl.List(pl.String))
        rows = pl.DataFrame({"item": np.arange(len(items)), "level": column}).explode("level").drop_nulls("level")
        rows = rows.with_columns(pl.col("level").str.strip_chars())
        self.names: list[str] = rows["level"].unique(maintain_order=True).to_list()
        # Items of each level's name, side by side: a look-up reads its own items, not all of the catalogue.
        names = rows["level"].str.to_lowercase()
        self._number = {name: number for number, name in enumerate(names.unique(maintain_order=True))}
        number = names.replace_strict(self._number, return_dtype=pl.Int64).to_numpy() if len(rows) else np.zeros(0, int)
        item = rows["item"].to_numpy()
        first = np.searchsorted(item, item)  # the rows of an item are side by side, general to specific
        order = np.argsort(number, kind="stable")
        self._members, self._depths = item[order], (np.arange(len(item)) - first)[order]
        self._bounds = np.searchsorted(number[order], np.arange(len(self._number) + 1))

    def grown(self, new: pl.DataFrame) -> Categories:
        """The same with ``new`` items behind the known ones.

        They are kept apart, in a few parts of which each is smaller than the one before: the cost is amortised.
        """
        grown, tables = copy.copy(self), [new]
        parts = list(self._added)
        while parts and len(parts[-1][1]) <= sum(map(len, tables)):
            tables.insert(0, parts.pop()[1])
        joined = pl.concat(tables, how="diagonal_relaxed")
        first = self.n_items + len(new) - len(joined)
        grown.n_items = self.n_items + len(new)
        grown._added = (*parts, (first, joined, Categories(joined)))
        grown.names = list(dict.fromkeys([*self.names, *grown._added[-1][2].names]))
        return grown

    def mask(self, category: Category) -> np.ndarray:
        """Items of a category: (n_items,) bool, all False where no item has it.

        One name is a level at any depth. A path, as a list of levels or with " > " between them, is read from the
        top: "Beauty > Hair Care" are the items whose path starts so. Letter case does not matter. Raises
        ``UserError`` for an empty name or level.
        """
        mask = np.zeros(self.n_items, bool)
        mask[self._items(category)] = True
        return mask

    def problem(self, category: Category) -> str | None:
        """What is wrong with a category that no item has, with the nearest name; None for a category with items."""
        if len(self._items(category)):
            return None
        known = {name.lower(): name for name in self.names}
        levels = _levels(category)
        missing = next((level for level in levels if level.lower() not in known), None)
        if missing is None:
            path = f" {SEPARATOR} ".join(levels)
            return (
                f"category '{path}' is no path of the catalogue; its levels exist, but not in this order from the top"
            )
        near = difflib.get_close_matches(missing.lower(), list(known), n=1, cutoff=0.0)
        hint = f"; did you mean '{known[near[0]]}'?" if near else ": its items have no category"
        return f"category '{missing}' is not in the catalogue" + hint

    def _items(self, category: Category) -> np.ndarray:
        levels = [level.lower() for level in _levels(category)]
        if len(levels) == 1 and isinstance(category, str):
            matches = np.unique(self._at(levels[0]))
        else:
            matches = reduce(np.intersect1d, [self._at(level, depth) for depth, level in enumerate(levels)])
        return np.concatenate([matches, *(first + part._items(category) for first, _, part in self._added)])

    def _at(self, name: str, depth: int | None = None) -> np.ndarray:
        """The items that have a lower-case name as their level, at one depth (0 is the top) or at any."""
        number = self._number.get(name)
        if number is None:
            return np.zeros(0, np.int64)
        rows = slice(self._bounds[number], self._bounds[number + 1])
        return self._members[rows] if depth is None else self._members[rows][self._depths[rows] == depth]


def _levels(category: Category) -> list[str]:
    levels = category.split(SEPARATOR) if isinstance(category, str) else list(category)
    levels = [level.strip() for level in levels]
    if not levels or not all(levels):
        raise UserError(
            f"category '{category}' is empty or has an empty level; give a name, or a path such as 'Beauty > Hair Care'"
        )
    return levels


def condition(where: Mapping[str, Any], schema: Mapping[str, pl.DataType], categories: Categories) -> pl.Expr:
    """A condition as an expression over the item table.

    ``{"field": "price", "gte": 5, "lt": 20}`` tests a column; operators are ``eq``, ``in``, ``gt``, ``gte``, ``lt``,
    ``lte`` and ``exists``, and several must all hold. A column of lists matches with any of its entries, ``category``
    as in ``Categories.mask``. ``{"all": [...]}``, ``{"any": [...]}`` and ``{"not": {...}}`` combine conditions. An
    item without a value fails every test but ``{"exists": false}``. Raises ``UserError`` for an unknown column or
    operator, a value of the wrong type, or a condition that is too large.
    """
    counted = 0

    def build(node: Any, depth: int) -> pl.Expr:
        nonlocal counted
        counted += 1
        if counted > MAX_CONDITIONS or depth > MAX_DEPTH:
            raise UserError(f"where: more than {MAX_CONDITIONS} conditions, or nested more than {MAX_DEPTH} deep")
        if not isinstance(node, Mapping) or not node:
            raise UserError("where: a condition is an object with 'field', 'all', 'any' or 'not'")
        if "field" in node:
            return _test(node, schema, categories)
        (name, value), *extra = node.items()
        if extra or name not in ("all", "any", "not"):
            raise UserError(f"where: '{str(name)[:40]}' is not one of field, all, any, not, or stands beside another")
        if name == "not":
            return ~build(value, depth + 1)
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise UserError(f"where: '{name}' needs a list of conditions")
        combine = operator.and_ if name == "all" else operator.or_
        return reduce(combine, [build(one, depth + 1) for one in value])

    return build(where, 1)


def _test(node: Mapping[str, Any], schema: Mapping[str, pl.DataType], categories: Categories) -> pl.Expr:
    """The test of one column. Never null, so that ``not`` turns it round."""
    field = node["field"]
    if field not in schema:
        near = difflib.get_close_matches(str(field), list(schema), n=1, cutoff=0.0)
        raise UserError(f"where: the items have no column '{str(field)[:40]}'; did you mean '{near[0]}'?")
    operators = {name: value for name, value in node.items() if name != "field"}
    if not operators or set(operators) - set(_OPERATORS):
        raise UserError(f"where: column '{field}' needs one or more of {', '.join(_OPERATORS)}")
    tests = [_comparison(field, schema[field], name, value, categories) for name, value in operators.items()]
    return reduce(operator.and_, tests).fill_null(False)


def _comparison(field: str, dtype: pl.DataType, name: str, value: Any, categories: Categories) -> pl.Expr:
    column = pl.col(field)
    if name == "exists":
        if not isinstance(value, bool):
            raise UserError(f"where: 'exists' of column '{field}' must be true or false")
        return column.is_not_null() if value else column.is_null()
    if name in ("eq", "in"):
        values = value if name == "in" else [value]
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise UserError(f"where: 'in' of column '{field}' needs a list")
        if field == "category":
            if not all(isinstance(one, str) for one in values):
                raise UserError("where: categories are names, or paths such as 'Beauty > Hair Care'")
            return pl.lit(reduce(operator.or_, map(categories.mask, values), np.zeros(categories.n_items, bool)))
        inner = dtype.inner if isinstance(dtype, pl.List) else dtype
        literals = _literals(field, inner, values)  # type: ignore[arg-type]  # polars types an inner type as a class or instance
        if isinstance(dtype, pl.List):
            return column.list.eval(pl.element().cast(literals.dtype).is_in(literals.implode())).list.any()
        return column.cast(literals.dtype).is_in(literals.implode())
    if not dtype.is_numeric():
        raise UserError(f"where: column '{field}' holds no numbers; compare it with eq or in")
    bound = _literals(field, dtype, [value])[0]
    return getattr(operator, {"gt": "gt", "gte": "ge", "lt": "lt", "lte": "le"}[name])(column, bound)


def _literals(field: str, dtype: pl.DataType, values: Sequence[Any]) -> pl.Series:
    """The values as a series that can be compared with a column."""
    numeric = dtype.is_numeric()
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(float(value))
        if not (number if numeric else isinstance(value, bool) if dtype == pl.Boolean else isinstance(value, str)):
            kind = "numbers" if numeric else "true or false" if dtype == pl.Boolean else "texts"
            raise UserError(f"where: column '{field}' is compared with {kind}")
    if numeric:
        return pl.Series(np.array([float(value) for value in values], np.float64))
    return pl.Series(values, dtype=dtype, strict=False)


def facet(table: pl.DataFrame, mask: np.ndarray, field: str, limit: int = 20) -> dict[str, Any]:
    """What the masked items have in a column: the counts of its most frequent values, or the range of numbers.

    ``{"values": {value: count}}`` or ``{"min": x, "max": y, "count": n}``. Raises ``UserError`` for an unknown column.
    """
    if field not in table.columns:
        raise UserError(f"facets: the items have no column '{field[:40]}'; columns: {', '.join(table.columns)}")
    column = table[field].filter(pl.Series(mask)).drop_nulls()
    if column.dtype.is_numeric():
        return {"min": column.min(), "max": column.max(), "count": len(column)}
    if isinstance(column.dtype, pl.List):
        column = column.explode().drop_nulls()
    counts = column.value_counts(sort=True, name="count").sort("count", field, descending=[True, False]).head(limit)
    return {"values": {str(value): count for value, count in counts.iter_rows()}}
