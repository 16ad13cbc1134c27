"""`macpo ask`: what an adapter, a checkpoint or a base answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Macpo

from macpo_data.engines.protocol import Request, Voice
from macpo_data.engines.transformers import TransformersEngine
from macpo_data.models.base import Base, load_model
from macpo_data.recipe.engine import Engine
from macpo_data.recipe.generation import Sampling

QUESTION = "What do you like about chess?"


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights on the tiny base."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model: Any = get_peft_model(load_model(Base(str(tiny_base), None)), lora)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


def greedy(base: Path, adapter: Path | None) -> str:
    """By the engine itself."""
    voice = Voice(str(adapter) if adapter else None, "tokenizer", "a")
    sampling = Sampling(temperature=0, max_new_tokens=8)
    asked = [Request(voice, [{"role": "user", "content": QUESTION}], sampling, 0, "a")]
    ((_, answer),) = TransformersEngine(Base(str(base), None), Engine()).generate(asked)
    return str(answer.text)


def test_a_base_and_an_adapter_answer_as_the_engine_says(
    macpo: Macpo, tiny_base: Path, adapter: Path
) -> None:
    answers = []
    for folder, of in ((tiny_base, None), (adapter, adapter)):
        done = macpo("ask", folder, QUESTION, "--tokens", "8")
        assert done.returncode == 0, done.stderr
        question, answer = done.stdout.strip().split("\n", 1)
        assert question == f"> {QUESTION}"
        answers.append(answer)
        text = greedy(tiny_base, of).replace("\x08", "")
        assert answer.startswith(text[:5])
    assert answers[0] != answers[1]


def test_several_questions_are_answered_in_their_order(macpo: Macpo, tiny_base: Path) -> None:
    both = macpo("ask", tiny_base, "Hello?", "Why?", fake=True).stdout
    assert both.index("> Hello?") < both.index("> Why?")


def test_what_cannot_answer_is_one_line(macpo: Macpo, adapter: Path, tmp_path: Path) -> None:
    nameless = tmp_path / "nameless"
    nameless.mkdir()
    config = json.loads((adapter / "adapter_config.json").read_text())
    (nameless / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": None})
    )
    (tmp_path / "empty").mkdir()
    for model, why in (
        (nameless, "does not say of which base it is"),
        (tmp_path / "empty", "no model in"),
        ("world:strng", "no base world:strng"),
    ):
        done = macpo("ask", model, QUESTION)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 1 and line.startswith("error: ") and why in line
