"""What a recipe's file says: shipped ones what differs and why, full ones every key, the schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from macpo_data.loading.load import load_recipe, recipe_text, shipped
from macpo_data.loading.write import SCHEMA, full_text, schema_text
from macpo_data.recipe.descriptions import meanings
from macpo_data.recipe.recipe import Recipe, TrainSettings
from macpo_data.recipe.section import Section
from macpo_data.shipped_recipes import recipes_folder
from macpo_run.commands.init import init

REPEATED = {"more", "path", "split", "count"}  # keys of d2 and test, explained at d1


def sections(kind: type[Section] = Section) -> Iterator[type[Section]]:
    """All sections of a recipe; not those of other files, such as a study."""
    for each in kind.__subclasses__():
        if each.__module__.startswith("macpo_data.recipe."):
            yield each
            yield from sections(each)


def written(section: Section, node: yaml.Node) -> Iterator[tuple[Section, str, int, Any]]:
    """Each key of a YAML with its section, its line, and its value as loaded."""
    assert isinstance(node, yaml.MappingNode)
    for key, inner in node.value:
        value = getattr(section, key.value)
        yield section, key.value, key.start_mark.line, value
        if isinstance(value, Section) and isinstance(inner, yaml.MappingNode):
            yield from written(value, inner)
        if key.value == "agents":
            for name, agent in inner.value:
                yield from written(value[name.value], agent)


def keys_of(text: str, recipe: Recipe) -> list[tuple[Section, str, int, Any]]:
    node = yaml.compose(text, yaml.SafeLoader)
    assert node is not None
    return list(written(recipe, node))


def is_said(lines: list[str], line: int) -> bool:
    """Whether a key has a comment above it or behind its value."""
    return bool(re.match(r"\s*# \S", lines[line - 1]) or re.search(r"\s+# \S", lines[line]))


# ---------------------------------------------------------------------------- the model


def test_every_key_has_a_meaning() -> None:
    kinds = set(sections())
    assert {Recipe, TrainSettings} < kinds and len(kinds) > 30
    for kind in kinds:
        for name in kind.model_fields:
            meaning = meanings(kind).get(name, "")
            assert re.match(r"[\w#].*\.$", meaning, re.DOTALL), f"{kind.__name__}.{name}: {meaning}"


# ---------------------------------------------------------------------------- shipped recipes


@pytest.mark.parametrize("name", shipped())
def test_a_default_is_written_with_a_reason(name: str) -> None:
    """A shipped recipe holds what differs from the defaults, its method, and what a paper says."""
    text, recipe = recipe_text(name)[1], load_recipe(name)
    lines = text.splitlines()
    for section, key, line, value in keys_of(text, recipe):
        if key == "method" or isinstance(value, Section):  # of a section its keys are looked at
            continue
        is_default = value == type(section).model_fields[key].default
        assert not is_default or is_said(lines, line), f"{name}.yaml:{line + 1}"


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_names_the_schema_and_how_to_see_all(name: str) -> None:
    text = recipe_text(name)[1]
    assert text.splitlines()[0] == f"{SCHEMA}schema.json"
    assert f"`macpo init {name} --full`" in re.sub(r"\n# ", " ", text)


# ---------------------------------------------------------------------------- with every key


@pytest.mark.parametrize("name", shipped())
def test_a_full_recipe_is_the_same_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where a shipped recipe's paths start, and those of the copy
    init(name, tmp_path / "full.yaml", full=True)
    assert load_recipe(str(tmp_path / "full.yaml")) == load_recipe(name)
    init(name, tmp_path / "short.yaml", full=False)
    assert load_recipe(str(tmp_path / "short.yaml")) == load_recipe(name)


@pytest.mark.parametrize("name", shipped())
def test_a_full_recipe_explains_every_key(name: str) -> None:
    recipe, short = load_recipe(name), recipe_text(name)[1]
    text = full_text(recipe, short)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    keys = keys_of(text, recipe)
    first = next(iter(recipe.agents.values()))
    for section, key, line, _ in keys:
        again = (section is not first and section in recipe.agents.values()) or (
            section in (recipe.data.d2, recipe.data.test) and key in REPEATED
        )
        assert again or re.match(r"\s*# \S", lines[line - 1]), f"line {line + 1}: {lines[line]}"
    assert {key for section, key, *_ in keys if section is recipe} == set(Recipe.model_fields)
    assert {key for section, key, *_ in keys if section is first} == set(type(first).model_fields)


def test_a_full_recipe_keeps_what_the_recipe_says() -> None:
    text = full_text(load_recipe("hh_helpful"), recipe_text("hh_helpful")[1])
    header = f"{SCHEMA}schema.json\n# MACPO on HH-RLHF helpful, as the paper set it up."
    student = "  # Gated. About 140 GB in bfloat16. What the whole recipe is about.\n  student:"
    assert text.startswith(header) and student in text
    assert "  # Rank. Here: default; the paper's is unknown.\n  r: 8\n" in text
    assert "--full" not in text
    # A sentence that the recipe has from the model stands there once.
    assert text.count("Round 0, the negative agents") == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# Mine.\nrun: x\n\nseed: 1\n", "may share it. Mine.\nrun: x\n"),
        ("# Mine.\n\nrun: x\n", "# Mine.\n\n# Folder under"),
        ("run: x  # mine\n", "may share it. Here: mine.\nrun: x\n"),
        ("run: x\nlora: # mine\n  r: 8 # too\n", "# Rank. Here: too.\n  r: 8\n"),
        ("run: x\nlora: # mine\n  r: 8\n", "that of the round before. Here: mine.\nlora:\n"),
        ("run: 'x # y'\n", "may share it.\nrun: x\n"),
    ],
)
def test_where_a_recipe_may_say_something(text: str, expected: str) -> None:
    """Above a key, behind its value or its colon; a header is a paragraph of comments alone."""
    recipe = load_recipe("quickstart", ["run=x"])
    full = full_text(recipe, text)
    assert expected in full
    assert Recipe.model_validate(yaml.safe_load(full)) == recipe


awkward = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ["a\nb", "# no comment", "null", "1e-3", "yes", "- x", "a: b", "'", '"', "{", "\t", " "]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | awkward,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(awkward, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(extra=st.dictionaries(awkward, values, max_size=3), name=st.from_regex(r"\A[a-z0-9_]+\Z"))
def test_a_full_recipe_holds_any_value(extra: dict[str, Any], name: str) -> None:
    raw = {
        "run": "x",
        "data": {"source": "world"},
        "agents": {
            name[:60] + "t": {"role": "teacher", "base": "world:weak-a"},
            "s": {
                "role": "student",
                "base": "world:strong",
                "endpoint": {"base_url": "http://h/v1", "model": "m", "extra": extra},
            },
        },
    }
    try:
        recipe = Recipe.model_validate(raw)
    except ValueError:  # a key that looks like a secret, or a number that is not finite
        return
    assert Recipe.model_validate(yaml.safe_load(full_text(recipe, "run: x\n"))) == recipe


# ---------------------------------------------------------------------------- for editors


def test_the_schema_is_current() -> None:
    """After a change of the model, `make schema`."""
    assert (recipes_folder() / "schema.json").read_text("utf-8") == schema_text()


def test_the_schema_says_what_keys_mean_and_may_be() -> None:
    schema = json.loads(schema_text())
    kinds = {"Recipe": schema, **schema["$defs"]}
    judge, dpo = kinds["Judge"]["properties"], kinds["DPO"]["properties"]
    assert "likelihood" in judge["kind"]["enum"]
    assert dpo["beta"]["description"] == "How strongly the policy is held to the reference."
    assert (dpo["beta"]["default"], dpo["beta"]["exclusiveMinimum"]) == (0.1, 0.0)
    assert schema["additionalProperties"] is False  # an editor marks a key that does not exist
    assert {"type": "string"} in kinds["RewardModel"]["anyOf"]  # its name alone is enough
    for name, kind in kinds.items():
        for form in kind.get("anyOf", [kind]):
            for key, value in form.get("properties", {}).items():
                # Where a section is described in the same words, pydantic leaves them there.
                assert "description" in value or "$ref" in value, f"{name}.{key}"


def test_a_copy_has_its_schema_beside_it(tmp_path: Path) -> None:
    init("quickstart", tmp_path / "new" / "mine.yaml", full=False)
    schema = tmp_path / "new" / "macpo.schema.json"
    assert schema.read_text("utf-8") == schema_text()
    first = (tmp_path / "new" / "mine.yaml").read_text("utf-8").splitlines()[0]
    assert first == f"{SCHEMA}{schema.name}"
    # A copy of the copy names it once.
    init(str(tmp_path / "new" / "mine.yaml"), tmp_path / "again.yaml", full=True)
    assert (tmp_path / "again.yaml").read_text("utf-8").count(SCHEMA) == 1
