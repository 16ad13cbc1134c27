"""A trainer that nobody had heard of, from one module: on the card, in the tree, in `check`."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
import yaml
from conftest import OpenRun
from typer.testing import CliRunner

from macpo.cli import app
from macpo_data.forms import registry
from macpo_data.forms.shape import Shape
from macpo_data.forms.trainer import Answer, Published, Trainer, Tree, Use
from macpo_data.hub import push as hub
from macpo_data.sources.ingest.canonical import text
from macpo_data.sources.ingest.splits import Dataset, open_split

# What follows is all that the file of a new trainer holds.
QA = Published(
    record=lambda row: {
        "question": row.prompt[-1]["content"],
        "good": text(row.chosen),
        "bad": text(row.rejected),
    },
    suffix="_qa",
    table={"question": pl.String(), "good": pl.String(), "bad": pl.String()},
    words="questions with a good and a bad answer, as text.",
)


def reads(shape: Shape) -> Answer:
    wanted = {"question", "good", "bad"} <= shape.kinds.keys()
    return wanted, "questions" if wanted else "wants questions"


def files(tree: Tree, repo: str | None) -> dict[str, bytes]:
    listed = [f"{name}_qa" for name, configs in tree.items() if f"{name}_qa" in configs]
    return {"qa.json": json.dumps(listed).encode()}


TRAINER = Trainer(
    "qa-trainer",
    "The QA trainer",
    Use(QA, "qa {{ place }} {{ config }} --beta {{ beta }} --from {{ tag }}", reads),
    files=files,
)


@pytest.fixture
def tree(open_run: OpenRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two rounds of a run as they are published, by a macpo that knows one trainer more."""
    monkeypatch.setattr(registry, "OTHERS", (*registry.OTHERS, TRAINER))
    with open_run() as run:
        for each in (0, 1):
            run.finish_round(each)
            (step,) = run.select("gen", each, "student")
            push = hub.Push(run.plan, run.store, [step], f"round-{each}", "org/pairs")
            hub.push_to_folder(push, tmp_path / "tree")
    return tmp_path / "tree"


def test_a_trainer_is_one_module(tree: Path) -> None:
    card = (tree / "README.md").read_text()
    snippet = "qa org/pairs round_1_student_qa --beta 0.1 --from round-1"
    assert f"The QA trainer:\n\n```\n{snippet}\n```\n" in card
    assert "- `round_1_student_qa`: questions with a good and a bad answer, as text.\n" in card
    configs = [each["config_name"] for each in yaml.safe_load(card.split("---")[1])["configs"]]
    assert "round_1_student_qa" in configs and "round_0_student_qa" in configs
    assert json.loads((tree / "qa.json").read_text()) == [f"round_{n}_student_qa" for n in (0, 1)]
    rows, plain = (
        pl.DataFrame(open_split(Dataset(str(tree), f"round_1_student{suffix}")).peek())
        for suffix in ("_qa", "")
    )
    assert rows.columns == ["question", "good", "bad"]
    assert rows["good"].equals(plain["chosen_text"]) and len(rows) == 12


def test_check_asks_it_as_well(tree: Path) -> None:
    qa = ["check", str(tree), "--config", "round_1_student_qa"]
    columns = ["--set", "columns.prompt=question", "--set", "columns.chosen=good"]
    columns += ["--set", "columns.rejected=bad"]
    for named in (columns, ["--columns", "prompt=question,chosen=good,rejected=bad"]):
        fits = CliRunner().invoke(app, [*qa, "--for", "qa-trainer", *named])
        assert fits.exit_code == 0, fits.output
    plain = ["check", str(tree), "--config", "round_1_student", "--for", "qa-trainer"]
    refused = CliRunner().invoke(app, plain)
    assert refused.exit_code == 1 and "wants questions" in refused.output


def test_a_suffix_is_one_form() -> None:
    """Else one trainer's files would be another's."""
    for kind in ("pairs", "fine_tuning"):
        uses = [use for each in registry.trainers() if (use := getattr(each, kind))]
        forms = [use.form for use in uses if isinstance(use.form, Published)]
        by_suffix = {form.suffix: form for form in forms}
        assert all(by_suffix[form.suffix] is form for form in forms)
    assert len({each.name for each in registry.trainers()}) == len(registry.trainers())


def test_a_card_is_filled_with_data_and_no_template(tree: Path) -> None:
    """What a model wrote may look like Jinja, a fence or a table; it is text all the same."""
    from macpo_data.hub.card import card
    from macpo_data.hub.index import INDEX, read_index

    index = read_index((tree / INDEX).read_bytes(), "here")
    facts = index["round_1_student"]["facts"]
    evil = "{{ 7 ** 11 }} {% raw %}\n```\n# mine"
    facts["sample"]["chosen"] = [{"role": "assistant", "content": evil}]
    facts["agents"][0]["base"] = "a | {{ 7 ** 11 }}\nb"
    text = card(index, "org/pairs")
    assert "1977326743" not in text and "| a \\| {{ 7 ** 11 }} b |" in text
    assert json.loads(text.split("```json\n")[1].split("\n```")[0])["chosen"][0]["content"] == evil
