"""Imports go downwards: a room imports only from rooms above it, modules have no cycle, lazy imports included."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import genrec

ROOT = Path(genrec.__file__).parent
# From top to bottom. A room may import from itself and from the rooms before it.
ROOMS = (
    "errors",
    "progress",
    "timing",
    "memory",
    "processor",
    "console",
    "drawing",
    "config",
    "artifacts",
    "data",
    "text",
    "semantic_ids",
    "catalogue",
    "retrieval",
    "model",
    "generation",
    "objectives",
    "ranking",
    "training",
    "runs",
    "evaluation",
    "preference",
    "pipeline",
    "inference",
    "serving",
    "client",
    "cli",
)
# Where a package names what its modules do: the lazy attribute of the public class, and the fit functions of `text`
# (one per encoder).
FRONT_DOORS = {"genrec"}


def modules() -> dict[str, Path]:
    actual = {}
    for path in ROOT.rglob("*.py"):
        name = ".".join(("genrec", *path.relative_to(ROOT).with_suffix("").parts))
        actual[name.removesuffix(".__init__")] = path
    return actual


def imports() -> dict[str, set[str]]:
    """Which modules of the package each module imports, anywhere in its text."""
    known, actual = modules(), defaultdict(set)
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "genrec":
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    actual[name].add(whole if whole in known else node.module)
            elif isinstance(node, ast.Import):
                actual[name] |= {alias.name for alias in node.names if alias.name in known}
    return actual


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_its_place():
    assert {room(name) for name in modules() if name != "genrec"} == set(ROOMS)


def test_imports_go_downwards():
    upwards = [
        f"{name} imports {other}"
        for name, others in imports().items()
        if name not in FRONT_DOORS
        for other in others
        if other not in FRONT_DOORS and ROOMS.index(room(other)) > ROOMS.index(room(name))
    ]
    assert not upwards, "\n".join(upwards)


def test_there_is_no_cycle():
    graph, done, path = imports(), set(), []

    def visit(name: str) -> None:
        if name in done:
            return
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        path.append(name)
        for other in sorted(graph.get(name, ())):
            if other not in FRONT_DOORS:
                visit(other)
        done.add(path.pop())

    for name in sorted(modules()):
        visit(name)
