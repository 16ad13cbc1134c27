"""Where modules may look: arrows between the rooms run downwards only, lazy imports counted."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("macpo", "macpo_data", "macpo_run", "macpo_train")

# A room is a folder of macpo_data, a module that stands beside the folders, or another package.
# Each with what it may import, from the bottom up; a room may import itself, and everyone `errors`
# and `outside`, the door for what others wrote.
ARROWS = {
    "errors": "",
    "outside": "",
    "text": "",
    "stats": "",
    "versions": "",
    "retry_after": "",
    "world": "",
    "bases": "world",
    "server_answers": "",
    "hub_session": "server_answers",
    "hub_client": "hub_session retry_after",
    "schema": "",
    "prompts": "schema",
    "shipped_recipes": "",
    "signs": "text",
    "recipe": "prompts schema shipped_recipes world",
    "models": "bases hub_session recipe schema world",
    "engines": "bases models recipe schema retry_after server_answers",
    "sources": "hub_client models recipe schema text world",
    "plan": "recipe",
    "store": "bases models plan recipe sources",
    "generation": "bases engines models plan prompts recipe schema sources stats store text "
    "versions world",
    "methods": "generation plan recipe schema store",
    "planning": "bases generation hub_session methods models plan recipe store world",
    "loading": "bases methods prompts recipe schema shipped_recipes world",
    "evaluation": "generation plan recipe schema signs sources stats store text world",
    "forms": "hub_client models recipe schema sources text",
    "report": "evaluation hub_client methods plan recipe schema sources store text versions",
    "hub": "bases forms generation hub_client loading methods models plan prompts recipe schema "
    "sources store versions world",
    "macpo_train": "server_answers bases hub_session models recipe schema signs world",
    "macpo_run": "bases engines evaluation forms generation hub_client hub loading macpo_train "
    "methods models plan planning recipe report schema shipped_recipes signs sources stats store "
    "text versions world",
    "macpo": "macpo_run",
}
TRAINER = 28  # modules of macpo_data in the trainer's closure, at most


def modules() -> dict[str, Path]:
    """Every module by its dotted name."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    dotted = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    return {name.removesuffix(".__init__"): path for name, path in dotted.items()}


@cache
def imports() -> dict[str, set[str]]:
    """What each module imports, wherever in it: at its top, in a function, for types alone."""
    paths = modules()
    arrows: dict[str, set[str]] = {}
    for name, path in paths.items():
        named: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level and node.module, (
                    f"{name}: relative imports hide where to look"
                )
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                named |= {each if each in paths else node.module for each in inside}
        arrows[name] = {each for each in named if each in paths and each != name}
    return arrows


def room(module: str) -> str:
    """The folder of macpo_data that a module lies in, or its package."""
    package, *rest = module.split(".")
    return rest[0] if package == "macpo_data" and rest else package


def allowed_in(name: str) -> set[str]:
    """The rooms that a room may look into."""
    return {"errors", "outside", name, *ARROWS[name].split()}


def reached(start: str) -> set[str]:
    """Everything that a module imports, and what that imports in turn."""
    seen: set[str] = set()
    ahead = [start]
    while ahead:
        new = imports()[ahead.pop()] - seen
        seen |= new
        ahead += new
    return seen


def test_no_module_imports_itself_on_a_roundabout_way() -> None:
    assert [module for module in imports() if module in reached(module)] == []


def test_arrows_between_the_rooms_run_downwards() -> None:
    order = list(ARROWS)
    for name, allowed in ARROWS.items():
        assert all(order.index(lower) < order.index(name) for lower in allowed.split()), name
    wrong = [
        f"{module} imports {other}"
        for module, others in imports().items()
        for other in others
        if "." in other and room(other) not in allowed_in(room(module))
    ]
    assert wrong == []


def test_the_trainer_is_stateless() -> None:
    """What it reaches, however far: no store, no plan, no engine, no method."""
    trainer = [module for module in imports() if room(module) == "macpo_train"]
    closure = {other for module in trainer for other in reached(module)}
    of_data = {module for module in closure if module.startswith("macpo_data.")}
    assert {room(module) for module in of_data} <= {*allowed_in("macpo_train"), "prompts"}
    assert len(of_data) <= TRAINER, sorted(of_data)
    assert not {module for module in closure if room(module) == "macpo_run"}


def test_each_room_says_what_it_is_for() -> None:
    paths = modules()
    for package in (name for name, path in paths.items() if path.name == "__init__.py"):
        first = ast.get_docstring(ast.parse(paths[package].read_text("utf-8")))
        assert first and len(first.splitlines()) <= 12, package
