"""The world behind the simulated log: what items are, what people like, and the words for both.

Every item has a latent vector built from its category, brand and attributes, so its text tells its position in the
space; every user has a vector that drifts slowly from one taste to another. Nothing here is a log: see
``genrec.data.simulator.simulate``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import polars as pl

from genrec.data.simulator.vocabulary import (
    AGE_GROUPS,
    COLOURS,
    COUNTRIES,
    DEPARTMENTS,
    MATERIALS,
    NOUNS,
    QUALIFIERS,
    STYLES,
    SYLLABLES,
)
from genrec.errors import UserError

TOP = "Shop"
LEAF_TEMPERATURE = 0.12  # how sharply a user's taste prefers some categories
TABLE_TASTE = 4.0  # how much a cluster's taste bends which items of a category get impressions
CLUSTERS = 32
STAY, FOLLOW = 0.35, 0.25  # the next session keeps the category, or moves on to the one that follows it


@dataclass(frozen=True)
class SimulatorConfig:
    """Size and character of a simulated log."""

    n_users: int = 1_000
    """Users; every one has at least one session."""
    n_items: int = 2_000
    """Items; at least as many as categories."""
    n_events: int = 50_000
    """Target number of events beyond an impression; met within a few percent where users have time for it."""
    n_categories: int = 40
    """Leaf categories."""
    n_brands: int = 50
    """Brands."""
    latent_dim: int = 16
    """Width of the latent vectors."""
    days: int = 60
    """Length of the log."""
    slate_size: int = 10
    """Impressions per request, at most 16; doubles are dropped."""
    search_share: float = 0.3
    """Share of requests that are searches."""
    drift: float = 0.5
    """How far tastes have moved at the end: 0 not at all, 1 to another taste."""
    popularity_exponent: float = 0.6
    """Steepness of item popularity (Zipf)."""
    activity_spread: float = 0.7
    """Spread of the log-normal activity of users."""
    exploration: float = 0.0
    """Share of slots filled with an item drawn uniformly from the catalogue; the log holds the propensities."""
    seed: int = 0
    """Everything follows from it."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            value, whole = getattr(self, entry.name), entry.type == "int"
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise UserError(
                    f"simulator: {entry.name} must be {'a whole number' if whole else 'a number'}, not {value!r}"
                )
            low = 2 if entry.name == "latent_dim" else 1 if whole and entry.name != "seed" else 0
            if value < low:
                raise UserError(f"simulator: {entry.name} must be at least {low}, not {value!r}")
        if self.n_items < self.n_categories:
            raise UserError(f"simulator: n_items ({self.n_items}) must be at least n_categories ({self.n_categories})")
        if self.slate_size > 16 or max(self.search_share, self.drift, self.exploration) > 1:
            raise UserError("simulator: slate_size must be at most 16; search_share, drift and exploration at most 1")


@dataclass(frozen=True)
class World:
    """Latent truth and printable attributes; arrays are indexed by item, user, category or cluster number."""

    item_vectors: np.ndarray  # (item, dim) float32
    item_leaf: np.ndarray  # (item,)
    item_popularity: np.ndarray  # (item,) log popularity, mean 0
    item_brand: np.ndarray
    item_colour: np.ndarray
    item_material: np.ndarray
    item_style: np.ndarray
    item_price: np.ndarray
    leaf_vectors: np.ndarray  # (leaf, dim)
    leaf_next: np.ndarray  # (leaf,) the category that tends to follow
    user_start: np.ndarray  # (user, dim) taste at the first second
    user_end: np.ndarray  # (user, dim) taste at the last second
    user_cluster: np.ndarray  # (user,)
    user_activity: np.ndarray  # (user,) sums to 1
    user_age: np.ndarray
    user_country: np.ndarray
    order: np.ndarray  # (item,) items by category; a slot of the tables below
    leaf_bounds: np.ndarray  # (leaf + 1,) slots of a category
    table: np.ndarray  # (cluster * item,) cluster number + cumulative chance of the slot within the cluster
    slot_log_chance: np.ndarray  # (cluster, item) log chance of an item within its category, by item number
    leaf_names: list[str]
    leaf_paths: list[list[str]]
    brand_names: list[str]
    user_ids: pl.Series
    item_ids: pl.Series

    def taste(self, users: np.ndarray, when: np.ndarray) -> np.ndarray:
        """User vectors (row, dim) at ``when`` (row,), from 0 (the first second) to 1 (the last)."""
        share = np.asarray(when, dtype=np.float32)[..., None]
        mixed = (1 - share) * self.user_start[users] + share * self.user_end[users]
        return mixed / np.linalg.norm(mixed, axis=-1, keepdims=True)

    def leaf_chances(self, taste: np.ndarray) -> np.ndarray:
        """The chance (row, leaf) that a taste opens a session in a category, before habit and follow-up."""
        return _softmax(taste @ self.leaf_vectors.T / LEAF_TEMPERATURE)


def build_world(config: SimulatorConfig, rng: np.random.Generator) -> World:
    """Draw a world for a ``SimulatorConfig``."""
    n_items, n_users, dim = config.n_items, config.n_users, config.latent_dim
    departments = min(len(DEPARTMENTS), max(1, config.n_categories // 3))
    leaf_department = np.arange(config.n_categories) % departments
    leaf_vectors = _unit(
        0.7 * _unit(rng.normal(size=(departments, dim)))[leaf_department]
        + _unit(rng.normal(size=(config.n_categories, dim)))
    )
    # Every category gets an item first, so that none is empty; ids say nothing about categories.
    leaf = np.concatenate(
        [np.arange(config.n_categories), rng.integers(0, config.n_categories, n_items - config.n_categories)]
    )
    leaf = rng.permutation(leaf)
    traits = {
        name: rng.integers(0, size, n_items)
        for name, size in (
            ("brand", config.n_brands),
            ("colour", len(COLOURS)),
            ("material", len(MATERIALS)),
            ("style", len(STYLES)),
        )
    }
    vectors = leaf_vectors[leaf] + 0.25 * rng.normal(size=(n_items, dim)) / np.sqrt(dim)
    for values, weight in zip(traits.values(), (0.6, 0.35, 0.25, 0.35), strict=True):
        vectors += weight * _unit(rng.normal(size=(values.max() + 1, dim)))[values]
    vectors = _unit(vectors).astype(np.float32)
    popularity = -config.popularity_exponent * np.log(rng.permutation(n_items) + 10.0)
    popularity -= popularity.mean()
    users = _draw_users(config, rng, n_users, dim)
    centres = users.pop("centres")
    order = np.argsort(leaf, kind="stable")
    bounds = np.searchsorted(leaf[order], np.arange(config.n_categories + 1))
    table, log_chance = _candidate_tables(centres, vectors, popularity, order, bounds)
    names, paths = _categories(leaf_department, config.n_categories)
    price = np.round(
        np.exp(rng.normal(3.0, 0.8, config.n_categories)[leaf] + 0.8 * vectors[:, 0] + 0.2 * rng.normal(size=n_items)),
        2,
    )
    return World(
        item_vectors=vectors,
        item_leaf=leaf,
        item_popularity=popularity,
        item_price=np.maximum(price, 0.5),
        **{f"item_{name}": values for name, values in traits.items()},
        **users,
        leaf_vectors=leaf_vectors.astype(np.float32),
        leaf_next=_cycle(rng.permutation(config.n_categories)),
        order=order,
        leaf_bounds=bounds,
        table=table,
        slot_log_chance=log_chance,
        leaf_names=names,
        leaf_paths=paths,
        brand_names=_brand_names(config.n_brands),
        user_ids=_ids("u", n_users),
        item_ids=_ids("i", n_items),
    )


def _draw_users(config: SimulatorConfig, rng: np.random.Generator, n_users: int, dim: int) -> dict[str, np.ndarray]:
    centres = _unit(rng.normal(size=(CLUSTERS, dim)))
    cluster = rng.integers(0, CLUSTERS, n_users)
    start = _unit(centres[cluster] + 0.8 * rng.normal(size=(n_users, dim)) / np.sqrt(dim))
    elsewhere = _unit(
        centres[rng.integers(0, CLUSTERS, n_users)] + 0.8 * rng.normal(size=(n_users, dim)) / np.sqrt(dim)
    )
    activity = rng.lognormal(0.0, config.activity_spread, n_users)
    # Attributes lean on the taste, so they help a little and never tell it all.
    lean = rng.random(n_users) < 0.5
    age = np.where(lean, cluster % len(AGE_GROUPS), rng.integers(0, len(AGE_GROUPS), n_users))
    return {
        "centres": centres,
        "user_cluster": cluster,
        "user_start": start.astype(np.float32),
        "user_end": _unit((1 - config.drift) * start + config.drift * elsewhere).astype(np.float32),
        "user_activity": activity / activity.sum(),
        "user_age": age,
        "user_country": rng.integers(0, len(COUNTRIES), n_users),
    }


def _candidate_tables(
    centres: np.ndarray, vectors: np.ndarray, popularity: np.ndarray, order: np.ndarray, bounds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Per cluster: a cumulative table over all items by category, to draw from with one binary search."""
    scores = TABLE_TASTE * (centres @ vectors[order].T) + popularity[order]  # (cluster, slot)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    cumulative = np.cumsum(weights, axis=1)
    cumulative /= cumulative[:, -1:]
    per_leaf = np.add.reduceat(weights, bounds[:-1], axis=1)
    log_chance = np.empty(scores.shape, dtype=np.float32)
    log_chance[:, order] = np.log(weights / np.repeat(per_leaf, np.diff(bounds), axis=1))
    return (cumulative + np.arange(len(centres))[:, None]).ravel(), log_chance


def _cycle(tour: np.ndarray) -> np.ndarray:
    """Each category's follower on a round tour through all of them."""
    following = np.empty_like(tour)
    following[tour] = np.roll(tour, -1)
    return following


def _categories(department: np.ndarray, count: int) -> tuple[list[str], list[list[str]]]:
    """Names and paths of the categories: two or three levels under one common top."""
    names, paths = [], []
    for index in range(count):
        noun = NOUNS[index % len(NOUNS)]
        turn = index // len(NOUNS)
        name = noun if turn == 0 else f"{QUALIFIERS[(turn - 1) % len(QUALIFIERS)]} {noun}"
        if turn > len(QUALIFIERS):
            name += f" {1 + (turn - 1) // len(QUALIFIERS)}"
        names.append(name)
        middle = [] if index % 7 == 6 else [DEPARTMENTS[department[index]]]
        paths.append([TOP, *middle, name.capitalize()])
    return names, paths


def _brand_names(count: int) -> list[str]:
    """Distinct names, the same for every seed: three syllables, and more only beyond 7,600 brands."""
    names, base = [], len(SYLLABLES)
    three = base**3 - base**2  # numbers with exactly three digits
    for index in range(count):
        # The stride is prime to ``three``, so it visits every number once and neighbours look unlike.
        digits, rest = [], base**2 + index * 7919 % three + index // three * base**3
        while rest:
            digits.append(SYLLABLES[rest % base])
            rest //= base
        names.append("".join(digits).capitalize())
    return names


def _ids(prefix: str, count: int) -> pl.Series:
    return pl.select(pl.lit(prefix) + pl.int_range(count).cast(pl.String).str.zfill(6)).to_series()


def item_table(world: World) -> pl.DataFrame:
    """The items of a world under the data contract, with colour, material and style as further columns."""
    words = pl.DataFrame(
        {
            "item_id": world.item_ids,
            "brand": pl.Series(world.brand_names).gather(world.item_brand),
            "noun": pl.Series(world.leaf_names).gather(world.item_leaf),
            "category": pl.Series(world.leaf_paths).gather(world.item_leaf),
            "price": world.item_price,
            "colour": pl.Series(COLOURS).gather(world.item_colour),
            "material": pl.Series(MATERIALS).gather(world.item_material),
            "style": pl.Series(STYLES).gather(world.item_style),
        }
    )
    title = pl.format("{} {} {} {}", "brand", "colour", "material", "noun")
    text = pl.format("A {} {} by {}. Made of {} material in {}.", "style", "noun", "brand", "material", "colour")
    return words.select(
        "item_id", title.alias("title"), text.alias("text"), "brand", "category", "price", "colour", "material", "style"
    )


def user_table(world: World) -> pl.DataFrame:
    """The users of a world under the data contract, with age group and country."""
    return pl.DataFrame(
        {
            "user_id": world.user_ids,
            "age_group": pl.Series(AGE_GROUPS).gather(world.user_age),
            "country": pl.Series(COUNTRIES).gather(world.user_country),
        }
    )


def numbers_of(ids: np.ndarray | pl.Series | list, count: int, prefix: str) -> np.ndarray:
    """Row numbers of ids such as ``u000012``; integers pass. ``UserError`` for one that is not of this world."""
    series = pl.Series(ids)
    if series.dtype == pl.String:
        series = series.str.strip_prefix(prefix).cast(pl.Int64, strict=False)
    if series.null_count() or (series < 0).any() or (series >= count).any():
        raise UserError(f"an id is not of this simulated world; expected {prefix}000000 to {prefix}{count - 1:06d}")
    return series.to_numpy()


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)
