"""The recipe: shipped ones teach and load, mistakes come all at once, junk never crashes."""

from __future__ import annotations

import re
import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from macpo_data.errors import MacpoError, RecipeError
from macpo_data.loading.load import load_recipe, recipe_text, shipped
from macpo_data.recipe.recipe import Recipe
from macpo_data.world.bases import BASES

PAPER = ("hh_helpful", "hh_harmless", "pku_saferlhf")
MINIMAL: dict[str, Any] = {
    "run": "x",
    "data": {"source": "world"},
    "agents": {
        "t": {"role": "teacher", "base": "world:weak-a"},
        "s": {"role": "student", "base": "world:strong"},
    },
}


def write(folder: Path, values: Any) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def problems(folder: Path, values: Any, sets: list[str] | None = None) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, values), sets)
    assert "\n" not in str(caught.value)
    return caught.value.problems


def with_(**changes: Any) -> dict[str, Any]:
    return {**MINIMAL, **changes}


# ---------------------------------------------------------------------------- shipped recipes


def test_what_is_shipped() -> None:
    assert {"quickstart", *PAPER} <= set(shipped())


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_loads(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.students
    assert recipe.method != "macpo" or recipe.labeller in recipe.teachers


@pytest.mark.parametrize("name", shipped())
def test_the_header_has_the_command(name: str) -> None:
    header = recipe_text(name)[1].split("\n\n")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert re.search(r"^# +macpo run --until \d", header, re.MULTILINE)


@pytest.mark.parametrize("name", PAPER)
def test_the_setting_of_the_paper(name: str) -> None:
    """Values as method notes give them, written out here a second time."""
    recipe = load_recipe(name)
    assert [recipe.agents[t].base for t in recipe.teachers] == [
        "meta-llama/Llama-2-7b-hf",
        "mistralai/Mistral-7B-v0.1",
        "meta-llama/Meta-Llama-3-8B",
    ]
    assert recipe.agents[recipe.students[0]].base == "meta-llama/Llama-2-70b-hf"
    template = "alpaca" if name == "pku_saferlhf" else "vicuna"
    assert {agent.chat_template for agent in recipe.agents.values()} == {template}
    counts = [recipe.data.d1.count, recipe.data.d2.count, recipe.data.test.count]
    assert counts == [5000, 5000, 1000 if name == "pku_saferlhf" else 2000]
    assert (recipe.rounds, recipe.labeller, recipe.data.noise) == (3, "llama2_7b", 0.0)
    assert (recipe.schedule, recipe.negatives) == ("alternating", "once")
    assert recipe.sampling.model_dump() == {
        "temperature": 0.95, "top_p": 0.7, "top_k": 50, "max_new_tokens": 512, "n": 1
    }  # fmt: skip
    assert (recipe.select.keep, recipe.select.on_filter) == (1, "count")
    sft = {"epochs": 3, "learning_rate": 5e-5, "batch_size": 32}
    assert recipe.sft.identity() == sft
    assert recipe.negative.identity() == {**sft, "epochs": 1}
    assert recipe.dpo.model_dump() == {
        "epochs": 1, "learning_rate": 1e-5, "batch_size": 16, "beta": 0.1, "gamma": 0.2,
        "sft_normalization": "response", "reference": "base",
        "loss": "sigmoid", "label_smoothing": 0.0,
    }  # fmt: skip
    assert (recipe.lora.r, recipe.lora.alpha, recipe.lora.dropout) == (8, 16, 0)
    assert recipe.lora.targets == ["q_proj", "v_proj"]
    assert (recipe.train.max_length, recipe.train.scheduler, recipe.train.warmup) == (
        1024, "cosine", 0
    )  # fmt: skip


def test_the_quickstart_needs_nothing_from_outside() -> None:
    recipe = load_recipe("quickstart")
    assert recipe.data.source == "world"
    assert all(agent.base.startswith("world:") for agent in recipe.agents.values())
    assert (recipe.dpo.loss, recipe.dpo.reference) == ("hinge", "initial")
    assert len(recipe.teachers) == 3


def test_the_quickstarts_have_one_idea_each() -> None:
    """All but what makes a recipe's idea is as in the quickstart."""

    def differences(name: str) -> set[str]:
        one, other = (flat(load_recipe(each).model_dump()) for each in ("quickstart", name))
        assert one.keys() == other.keys()
        return {key for key in one if one[key] != other[key]}

    def flat(values: Any, at: str = "") -> dict[str, Any]:
        if not isinstance(values, dict):
            return {at: values}
        return {k: v for key in values for k, v in flat(values[key], f"{at}.{key}").items()}

    labeller = ".agents.teacher_1.noise"
    assert differences("quickstart_elicitation") == {".run", labeller}
    gap = {".agents.student.base", ".agents.student.lr_scale"}
    sft = {".sft.epochs", ".sft.learning_rate"}
    taught = {".data.noise", labeller, *sft, ".dpo.learning_rate"}
    assert differences("quickstart_knowledge") == {".run", *gap, *taught}


@pytest.mark.parametrize("idea", ["", "_elicitation", "_knowledge"])
def test_what_the_bases_of_the_quickstarts_know(idea: str) -> None:
    """Each third is unknown to one teacher; a gap of the student's is one of its labeller's too."""
    recipe = load_recipe(f"quickstart{idea}")
    spec = {name: BASES[agent.base.removeprefix("world:")] for name, agent in recipe.agents.items()}
    assert {spec[teacher].skips for teacher in recipe.teachers} == {0, 1, 2}
    assert recipe.labeller is not None
    lacks = spec[recipe.labeller].skips if idea == "_knowledge" else None
    assert (spec["student"].skips, spec["student"].shuffles) == (None, lacks)


def test_the_quickstart_of_moaa_is_on_the_same_bases() -> None:
    """The teachers' bases propose, each without another third, and the student's is the same."""
    mine, macpo = load_recipe("moaa_quickstart"), load_recipe("quickstart")
    assert mine.mixture is not None
    assert len(mine.mixture.layers) == 1
    proposers = [mine.agents[agent].base for agent in mine.mixture.layers[0]]
    assert proposers == [macpo.agents[teacher].base for teacher in macpo.teachers]
    assert {BASES[base.removeprefix("world:")].skips for base in proposers} == {0, 1, 2}
    assert mine.agents["student"].base == macpo.agents["student"].base
    assert mine.reward == macpo.reward


# ---------------------------------------------------------------------------- finding one


def test_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe().run == load_recipe("quickstart").run
    write(tmp_path, with_(run="mine"))
    (tmp_path / "recipe.yaml").rename("macpo.yaml")
    assert load_recipe().run == "mine"
    assert load_recipe("quickstart").run != "mine"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hh_helpfull", "shipped are .*hh_helpful"),
        ("./none.yaml", "macpo init"),
        (".", "cannot read recipe"),
        ("", "no recipe|cannot read"),
        ("x\0.yaml", "no recipe|cannot read"),
    ],
)
def test_no_such_recipe(name: str, expected: str) -> None:
    with pytest.raises(MacpoError, match=expected):
        load_recipe(name)


# ---------------------------------------------------------------------------- mistakes


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    """One mistake of each kind; each is said once and begins with its dotted path."""
    mistakes = problems(
        tmp_path,
        {
            "run": "../up",
            "sed": 1,
            "rounds": -1,
            "data": {"source": "pairs", "path": "x", "noise": 1.5, "d1": {"count": "many"}},
            "agents": {
                "a b": {"role": "teacher", "base": "x"},
                "t": {"role": "boss", "base": "x"},
                "s": {"role": "student", "temprature": 1},
                "u": {"role": "student", "base": "x"},
            },
            "labeller": "s",
            "sampling": {"top_p": 0},
            "dpo": {"reference": "last", "beta": -0.1},
            "train": {"warmup": 2},
        },
    )
    begins = {
        "run",
        "sed",
        "rounds",
        "data.noise",
        "data.d1.count",
        "agents.a b",
        "agents.t.role",
        "agents.s.temprature",
        "agents",
        "labeller",
        "sampling.top_p",
        "dpo.reference",
        "dpo.beta",
        "train.warmup",
    }
    assert sorted(p.split(": ")[0] for p in mistakes) == sorted(begins)
    assert "sed: unknown key (did you mean seed?)" in mistakes
    assert "agents.s.temprature: unknown key" in mistakes
    assert "agents: 2 agents with role student, 1 is needed" in mistakes
    assert any(p.startswith("run: a name has only letters") for p in mistakes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"agents": {}}, "agents: no agent with role teacher"),
        ({"agents": {"s": {"role": "student"}}}, "agents.s: a base is missing, or an endpoint"),
        ({"agents": {"t": MINIMAL["agents"]["t"]}}, "agents: 0 agents with role student"),
        ({"labeller": "s"}, "labeller: 's' is no teacher"),
        ({"labeller": "x"}, "labeller: 'x' is no teacher"),
        ({"data": {"source": "hh_rlhf"}}, "no path for d1, d2, test"),
        ({"data": {"source": "hh"}}, "data.source: input should be one of 'world', 'hh_rlhf', "),
        ({"data": {"path": "x"}}, "data: "),
        (
            {"data": {"source": "pku_saferlhf", "path": "x", "preference": "nicer"}},
            "data.preference",
        ),
        ({"data": {"source": "world", "path": "x"}}, "data.path: unknown key"),
        (
            {"data": {"source": "pairs", "path": "x", "columns": {"chsen": "a"}}},
            "data.columns.chsen",
        ),
        ({"data": {"source": "world", "noise": -0.1}}, "data.noise"),
        ({"data": {"source": "world", "limit": 0}}, "data.limit"),
        ({"select": {"by": "judge"}}, "select.by: judge needs a section judge"),
        ({"select": {"keep": 2}}, "select.keep: 2 of only 1 candidates"),
        ({"select": {"max_repetition": 1.1}}, "select.max_repetition"),
        ({"method": "spin2"}, "method: "),
        ({"rounds": 1.5}, "rounds: "),
        ({"rounds": 10**9}, "rounds: input should be less than or equal to 500"),
        ({"run": "a/b"}, "run: a name has only letters"),
        ({"run": ".."}, "run: a name has only letters"),
    ],
)
def test_each_mistake(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    assert any(expected in p for p in problems(tmp_path, with_(**changes)))


def test_settings_from_the_command_line(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    sets = ["dpo.beta=0.5", "sampling.top_k=0", "agents.t.base=other", "data.limit=3"]
    recipe = load_recipe(path, [*sets, "lora.targets=[a, b]", "select.max_chars=null"])
    assert (recipe.dpo.beta, recipe.sampling.top_k, recipe.data.limit) == (0.5, 0, 3)
    assert recipe.agents["t"].base == "other"
    assert recipe.lora.targets == ["a", "b"]
    assert load_recipe(path, ["run=a=b".replace("=b", "_b")]).run == "a_b"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("dpo.beta", "write it as key.key=value"),
        ("=1", "write it as key.key=value"),
        ("a..b=1", "write it as key.key=value"),
        ("run.x=1", "run is not a section"),
        ("dpo.beta=[", "not valid YAML"),
        ("dpo.betta=1", "dpo.betta: unknown key (did you mean beta?)"),
        ("dpo.nothing_like_it=1", "dpo.nothing_like_it: unknown key"),
        ("data.label_nose=1", "data.label_nose: unknown key (did you mean label_noise?)"),
        ("data.columns={}", "data.columns: unknown key"),
        ("agents.t.lr_scal=1", "agents.t.lr_scal: unknown key (did you mean lr_scale?)"),
        ("engine.vllm.memry=1", "engine.vllm.memry: unknown key (did you mean memory?)"),
        ("eval.judge={kin: gold}", "eval.judge.kin: unknown key (did you mean kind?)"),
        ("dpo.loss=hing", "none (did you mean hinge?)"),
        ("data.source=wrld", "'pairs' (did you mean world?)"),
        ("eval.judge.kind=glod", "or 'points' (did you mean gold?)"),
        ("dpo.beta=strong", "dpo.beta: "),
        ("agents.t=null", "agents: no agent with role teacher"),
    ],
)
def test_a_wrong_setting(setting: str, expected: str, tmp_path: Path) -> None:
    assert any(expected in p for p in problems(tmp_path, MINIMAL, [setting]))


@pytest.mark.parametrize(
    "text", ["", "a: [", "- 1", "7", "a: 1\n b: 2", "? [a]\n: 1", "\t", "!!python/object:x {}"]
)
def test_no_recipe_at_all(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(MacpoError) as caught:
        load_recipe(str(path))
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------- junk

KEYS = sorted({*Recipe.model_fields, "t", "s", "role", "base", "path", "source", "d1", "keep", "n"})
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["world", "pairs", "hh_rlhf", "teacher", "student", "macpo", "../x"])
)
junk = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS) | st.integers() | st.text(max_size=3) | st.none(),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def load_or_complain(folder: Path, text: str, sets: list[str]) -> None:
    path = folder / "junk.yaml"
    path.write_text(text, "utf-8")
    try:
        assert isinstance(load_recipe(str(path), sets), Recipe)
    except MacpoError as error:
        assert "\n" not in str(error), "a mistake is one line"


@settings(max_examples=150, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(KEYS) | st.integers(), junk, max_size=4))
@example(changes={"agents": {"t": None}})
@example(changes={"agents": {"t": {"role": []}}})
@example(changes={"labeller": ["t"]})
@example(changes={"select": 1})
@example(changes={"sampling": [1]})
@example(changes={1: 2})
def test_junk_over_a_good_recipe(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[Any, Any]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    load_or_complain(folder, yaml.safe_dump(MINIMAL | changes), [])


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=30) | st.text(alphabet="ab:-[]{}&*!|>?#%@`'\"\n ,1.", max_size=30))
def test_junk_as_a_file(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    load_or_complain(tmp_path_factory.getbasetemp(), text, [])


@settings(max_examples=150, deadline=None)
@given(
    sets=st.lists(
        st.builds(
            lambda keys, equals, value: ".".join(keys) + equals + value,
            st.lists(st.sampled_from(KEYS) | st.text(string.printable, max_size=3), max_size=3),
            st.sampled_from(["=", ""]),
            st.text(max_size=6) | st.sampled_from(["null", "[]", "{}", "1", "x", "2020-13-01"]),
        ),
        max_size=3,
    )
)
def test_junk_as_settings(tmp_path_factory: pytest.TempPathFactory, sets: list[str]) -> None:
    load_or_complain(tmp_path_factory.getbasetemp(), yaml.safe_dump(MINIMAL), sets)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seed=-1", "seed: input should be greater than or equal to 0"),
        ("seed=true", "seed: input should be a valid integer"),
        ("dpo.beta=.inf", "dpo.beta: input should be a finite number"),
        ("lora.targets=[]", "lora.targets: list should have at least 1 item"),
        ("train.micro_batch_size=3", "train.micro_batch_size: 3 does not divide sft's 16"),
    ],
)
def test_what_the_trainer_would_only_find_late(setting: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        load_recipe("quickstart", [setting])


def test_a_key_that_stands_twice(tmp_path: Path) -> None:
    text = recipe_text("quickstart")[1]
    (tmp_path / "twice.yaml").write_text(text + "\nrounds: 1\n")
    with pytest.raises(RecipeError, match="rounds stands twice"):
        load_recipe(str(tmp_path / "twice.yaml"))


def test_a_part_of_negative_keeps_its_own_defaults() -> None:
    values = yaml.safe_load(recipe_text("quickstart")[1])
    values["negative"] = {"learning_rate": 1e-4}
    assert Recipe.model_validate(values).negative.epochs == 1.0
