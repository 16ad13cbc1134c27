"""The authors' release: rows as they are, rounds as published ones, prompts as their trainer's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from conftest import Macpo, OpenRun
from pydantic import TypeAdapter

from macpo_data.errors import DataError
from macpo_data.loading.load import load_recipe
from macpo_data.models.templates import make_chat
from macpo_data.recipe.data import Columns, Data
from macpo_data.schema import Message
from macpo_data.sources.files import resolve
from macpo_data.sources.ingest.door import frame, open_rows
from macpo_data.sources.ingest.splits import Dataset
from macpo_data.sources.macpo_release import configs
from macpo_data.sources.parts import read_parts

ASKED = ["USER: Hi.", "USER: Hi. ASSISTANT: Yes?\n USER: Bye. ", "USER: Hi.", "What\u2019s up?"]
STAGES = {
    "strong_students/hh_weak_train_5k_70b_stage%d_help_agent3_filter.json": "the best",
    "weak_teachers/hh_weak_train_5k_7b_stage%d_help_agent3_llama3.json": "the student's",
}


def rows(output: Callable[[int], Any]) -> list[dict[str, Any]]:
    return [{"instruction": t, "input": "", "output": output(n)} for n, t in enumerate(ASKED)]


def _pair(who: str, n: int) -> list[str]:
    return [f"{who} {n}", f"not {n}"]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A dataset of the release, by the authors' names of folders, files and keys."""
    folder = tmp_path / "MACPO/data/HH-Helpful"
    files: dict[str, Callable[[int], Any]] = {
        "hh_test_2k_help.json": lambda n: f"Test {n}",
        "weak_teachers/hh_train_5k_help.json": lambda n: f" Good {n} ",
        "weak_teachers/hh_train_neg_5k_help.json": lambda n: f"Bad {n}",
        "strong_students/hh_weak_train_5k_help.json": lambda n: f"Label {n}",
        "strong_students/hh_weak_neg_5k_help.json": lambda n: f"Twin {n}",
    }
    for name, who in STAGES.items():
        for stage in (1, 2):
            files[name % stage] = partial(_pair, f"{who} {stage}")
    for name, output in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(rows(output), indent=4))
    return folder


def data(folder: Path, **more: Any) -> Data:
    values = {"source": "macpo_release", "path": str(folder), "probe": {"count": 0}, **more}
    return TypeAdapter(Data).validate_python(values)


def read_round(folder: Path, config: str | None) -> pl.DataFrame:
    opened = open_rows(Dataset(str(folder), config), Columns(), rendered=True)
    return frame(list(opened)).filter(pl.col("reason").is_null())


# ---------------------------------------------------------------------------- rows


def test_rows_stay_as_they_are(release: Path) -> None:
    """In their order, twins too, with all white space, and a dialogue as one turn of the user."""
    parts, aside = read_parts(data(release), seed=5)
    for part in ("d1", "d2", "test"):
        assert [turns[0]["content"] for turns in parts[part]["prompt"]] == ASKED
        assert all(len(turns) == 1 for turns in parts[part]["prompt"])
        assert parts[part]["prompt_id"].n_unique() == len(ASKED)
    assert parts["d1"]["chosen"].to_list() == [f" Good {n} " for n in range(4)]
    assert parts["d1"]["rejected"].to_list() == [f"Bad {n}" for n in range(4)]
    assert parts["d2"]["chosen"].null_count() == parts["d2"]["rejected"].null_count() == 4
    assert parts["test"]["chosen"].to_list() == [f"Test {n}" for n in range(4)]
    assert parts["test"]["rejected"].null_count() == 4
    assert aside.is_empty()


def test_a_few_rows_are_the_first_ones(release: Path) -> None:
    parts, _ = read_parts(data(release, limit=3, d1={"count": 2}), seed=1)
    assert parts["d1"]["chosen"].to_list() == [" Good 0 ", " Good 1 "]
    assert len(parts["d2"]) == 3


def test_the_second_half_of_an_instruction(release: Path) -> None:
    """LLaMA-Factory writes it below the first."""
    path = release / "hh_test_2k_help.json"
    path.write_text(json.dumps([{"instruction": "Add.", "input": "1, 2", "output": "3"}]))
    parts, _ = read_parts(data(release), seed=0)
    assert parts["test"]["prompt"][0][0]["content"] == "Add.\n1, 2"


def test_released_rounds_are_read_as_published_ones(release: Path) -> None:
    names = ["round_0_student", "round_0_teachers", "round_1_llama3", "round_1_student",
             "round_2_llama3", "round_2_student"]  # fmt: skip
    assert list(configs(release)) == names
    first = {name: read_round(release, name).row(2, named=True) for name in names}
    assert {name: (row["chosen"], row["rejected"]) for name, row in first.items()} == {
        "round_0_student": ("Label 2", "Twin 2"),
        "round_0_teachers": (" Good 2 ", "Bad 2"),
        "round_1_llama3": ("the student's 1 2", "not 2"),
        "round_1_student": ("the best 1 2", "not 2"),
        "round_2_llama3": ("the student's 2 2", "not 2"),
        "round_2_student": ("the best 2 2", "not 2"),
    }
    assert len(read_round(release, "round_1_student")) == len(ASKED)
    with pytest.raises(DataError, match=r"has no round_4_student; choose --config round_0"):
        read_round(release, "round_4_student")


def test_a_release_is_pinned_by_its_content(release: Path) -> None:
    before = resolve(str(release), "main")
    assert before == resolve(str(release), "main")
    path = release / "hh_test_2k_help.json"
    path.write_text(path.read_text().replace("Test 1", "Test one"))
    assert resolve(str(release), "main") != before


# ---------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("hh_test_2k_help.json", '{"a": 1}', "help.json: it is no list of rows"),
        ("hh_test_2k_help.json", "[1, ", "cannot read .*help.json: "),
        ("hh_test_2k_help.json", "[7]", "row 0 has no instruction"),
        ("hh_test_2k_help.json", '[{"instruction": "a"}]', "row 0 has not an output that is text"),
        ("hh_test_2k_help.json", None, "has no file of good answers"),
        ("weak_teachers/hh_train_neg_5k_help.json", "[]", "row 0 has not the instruction that hh_"),
        ("strong_students/hh_weak_train_5k_help.json", None, "strong_students has no file of good"),
    ],
)
def test_what_is_not_as_released_is_one_line(
    release: Path, file: str, content: str | None, says: str
) -> None:
    path = release / file
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(DataError, match=says) as raised:
        read_parts(data(release), seed=0)
    assert "\n" not in str(raised.value)
    assert str(raised.value).endswith("; clone github.com/youganglyu/MACPO anew, with all its data")


def test_a_pair_of_which_one_side_is_missing(release: Path) -> None:
    path = next(iter(STAGES)) % 1
    (release / path).write_text(json.dumps(rows(lambda n: ["a", "b"] if n < 2 else ["a"])))
    with pytest.raises(DataError, match="row 2 has not an output of two texts; clone"):
        read_round(release, "round_1_student")


def test_a_checkout_without_its_data(release: Path, tmp_path: Path) -> None:
    """What is named may be the whole clone, or a folder that lacks all."""
    with pytest.raises(DataError, match=f"several datasets; name one: {release}$"):
        read_parts(data(tmp_path / "MACPO"), seed=0)
    shutil.rmtree(release)
    with pytest.raises(
        DataError, match=r"HH-Helpful is not there; data\.path is a dataset's folder"
    ):
        read_parts(data(release), seed=0)
    release.mkdir()
    with pytest.raises(DataError, match="HH-Helpful has no weak_teachers and strong_students"):
        read_parts(data(release), seed=0)


# ---------------------------------------------------------------------------- prompts

A: Message = {"role": "user", "content": "USER: a ASSISTANT: b USER: c"}
B: Message = {"role": "assistant", "content": "d"}
C: Message = {"role": "user", "content": "e"}
S: Message = {"role": "system", "content": "Be brief."}
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request."
)


@pytest.mark.parametrize(
    ("template", "messages", "expected"),
    [
        # LLaMA-Factory 0.5.3 puts together: the system sentence alone, then "USER: {} ASSISTANT:",
        # then the answer and the end-of-sequence token; of a second turn vicuna parts nothing, and
        # alpaca by an empty line.
        ("vicuna-release", [A], f"{VICUNA}USER: USER: a ASSISTANT: b USER: c ASSISTANT:"),
        ("vicuna-release", [A, B],
         f"{VICUNA}USER: USER: a ASSISTANT: b USER: c ASSISTANT:d<eos>"),
        ("vicuna-release", [C, B, C], f"{VICUNA}USER: e ASSISTANT:d<eos>USER: e ASSISTANT:"),
        ("vicuna-release", [S, C], "Be brief.USER: e ASSISTANT:"),
        ("alpaca-release", [C], f"{ALPACA}### Instruction:\ne\n\n### Response:\n"),
        ("alpaca-release", [C, B], f"{ALPACA}### Instruction:\ne\n\n### Response:\nd<eos>"),
        ("alpaca-release", [C, B, C],
         f"{ALPACA}### Instruction:\ne\n\n### Response:\nd<eos>\n\n"
         "### Instruction:\ne\n\n### Response:\n"),
        ("alpaca-release", [S, C], "Be brief.### Instruction:\ne\n\n### Response:\n"),
    ],
)  # fmt: skip
def test_templates_write_what_the_authors_trained_on(
    tiny_base: Path, template: str, messages: list[Message], expected: str
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    chat = make_chat(tokenizer, template, "b")
    asks = messages[-1]["role"] == "user"
    text = chat.renderer.texts([messages], asks)[0]
    assert text.encode() == expected.replace("<eos>", tokenizer.eos_token).encode()
    assert chat.eot_id == tokenizer.eos_token_id
    if asks:
        assert tokenizer.decode(chat.prompt_ids(messages)) == text


# ---------------------------------------------------------------------------- whole


@pytest.mark.parametrize("name", ["hh_helpful", "hh_harmless", "pku_saferlhf"])
def test_a_recipe_differs_from_the_plain_one_where_it_says(name: str) -> None:
    """In the data, the probe and the template, and in nothing else."""
    plain, released = load_recipe(name), load_recipe(f"{name}_release")
    assert released.data.source == "macpo_release" and released.data.probe.count == 0
    template = "alpaca-release" if name == "pku_saferlhf" else "vicuna-release"
    assert {agent.chat_template for agent in released.agents.values()} == {template}
    one, other = (recipe.model_dump(exclude={"data", "run"}) for recipe in (plain, released))
    for agent in (*one["agents"].values(), *other["agents"].values()):
        del agent["chat_template"]
    assert one == other


def test_a_dry_run_needs_no_data(macpo: Macpo) -> None:
    done = macpo("run", "--dry-run", "--recipe", "hh_helpful_release", "--on", "8xA100-80GB")
    assert done.returncode == 0, done.stderr
    assert "time" in done.stdout


def test_rounds_on_a_release(release: Path, open_run: OpenRun, tmp_path: Path) -> None:
    """All steps of two rounds, on the fake engine: each twin stays a row of its own."""
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    recipe["data"] = {"source": "macpo_release", "path": str(release), "probe": {"count": 0}}
    for agent in recipe["agents"].values():
        agent["chat_template"] = "vicuna-release"
    file = tmp_path / "released.yaml"
    file.write_text(yaml.safe_dump(recipe))
    run = open_run(file=file)
    for round_ in (0, 1):
        assert run.finish_round(round_)
    pairs = pl.read_parquet(next(run.store.root.glob("data/round-1-student-*/pairs.parquet")))
    assert sorted(turns[0]["content"] for turns in pairs["prompt"]) == sorted(ASKED)


def test_training_on_a_released_round(release: Path, tiny_base: Path, macpo: Macpo) -> None:
    """With the template of the release, rows that hold USER: and ASSISTANT: are no mistake."""
    args = ["train", "--dataset", release, "--config", "round_1_student", "--base", tiny_base,
            "--set", "train.dtype=float32"]  # fmt: skip
    refused = macpo(*args, "--out", "a")
    assert "left out" in refused.stdout + refused.stderr
    done = macpo(*args, "--out", "b", "--set", "chat_template=vicuna-release")
    assert done.returncode == 0, done.stderr
    assert "used 4" in done.stdout + done.stderr


def test_the_made_up_release_beside_the_project(macpo: Macpo, tmp_path: Path) -> None:
    import sys
    from subprocess import run

    from conftest import shared

    run([sys.executable, shared("cases/make_release.py"), tmp_path], check=True)
    for folder in sorted((tmp_path / "data").iterdir()):
        parts, aside = read_parts(data(folder), seed=0)
        assert {len(parts[part]) for part in ("d1", "d2", "test")} == {8} and aside.is_empty()
        assert len(configs(folder)) == 2 + 3 * 4
        for config in configs(folder):
            assert len(read_round(folder, config)) == 8
