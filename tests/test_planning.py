"""The plan: formulas against values counted by hand, sizes of known bases, and bad input."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import OpenRun
from typer.testing import CliRunner

from benchmarks import hardware_table
from macpo.cli import app
from macpo_data.bases.named import PACKAGES
from macpo_data.errors import MacpoError, ModelError
from macpo_data.generation.cost import Ask, Texts
from macpo_data.loading.load import load_recipe
from macpo_data.methods.registry import make_plan
from macpo_data.planning import fits, hardware, memory, work
from macpo_data.planning.outlook import train_fit
from macpo_data.planning.shapes import from_config, shape_of, shipped
from macpo_data.recipe.agents import Agent
from macpo_data.recipe.engine import Engine
from macpo_data.recipe.training import DPO, SFT, Lora, Train

GIB = 1 << 30
# A Llama of two layers, 8 wide: 2 heads of 4, one of keys and values, 16 in feed-forward layers.
SMALL = from_config(
    {
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 100,
        "torch_dtype": "bfloat16",
    },
    "here",
)  # fmt: skip
# q and o 64 each, k and v 32 each, three of 128: 576 in a layer.
MATRICES = 2 * (2 * 64 + 2 * 32 + 3 * 128)
# Embedding and head of 800 each, two norms a layer and one at the end.
ELSEWHERE = 2 * 800 + 5 * 8

PUBLISHED = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.1-70B-Instruct": 70_553_706_496,
    "google/gemma-2-9b-it": 9_241_705_984,
    "google/gemma-2-27b-it": 27_227_128_320,
    "Qwen/Qwen2-72B-Instruct": 72_706_203_648,
    "Qwen/Qwen1.5-110B-Chat": 111_209_914_368,
    "alpindale/WizardLM-2-8x22B": 140_620_634_112,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
}


def agent(base: str) -> Agent:
    return Agent(role="student", base=base)


def train(*, pairs: bool = False, checkpointing: bool = False, **rest: object) -> memory.Training:
    settings = Train(max_length=10, dtype="bfloat16", gradient_checkpointing=checkpointing)
    lora = Lora(r=2, targets=["q_proj", "v_proj"])
    return memory.Training(settings, lora, pairs, rows=3, gpu=True, **rest)  # type: ignore[arg-type]


def test_the_table_holds_every_base_of_a_shipped_recipe_in_its_published_size() -> None:
    assert {base: shape_of(agent(base)).parameters for base in shipped()} == PUBLISHED
    text = "\n".join(path.read_text() for path in Path(hardware_table.__file__).parents[1]
                     .joinpath("recipes").glob("*.yaml"))  # fmt: skip
    named = set(re.findall(r"^ +base: (\S+/\S+)$", text, re.MULTILINE))
    assert named | {package.hub for package in PACKAGES.values()} == set(shipped())


def test_a_mixture_of_experts_meets_two_of_its_eight() -> None:
    """Of Mixtral's kind: 39 B of 141 B, as its makers say."""
    shape = shape_of(agent("alpindale/WizardLM-2-8x22B"))
    assert 38e9 < shape.active < 40e9


def test_a_local_base_is_as_large_as_its_files(tiny_base: Path) -> None:
    """Weights of the fixture, tied or not, as safetensors counts them."""
    from safetensors import safe_open

    with safe_open(tiny_base / "model.safetensors", "np") as file:
        counted = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118
    assert shape_of(agent(str(tiny_base))).parameters == counted


def test_weights_and_adapter_by_hand() -> None:
    assert (SMALL.in_matrices, SMALL.elsewhere) == (MATRICES, ELSEWHERE) == (1152, 1640)
    # q: 2 * (8 + 8), v: 2 * (8 + 4), in two layers.
    assert memory.adapter_weights(SMALL, Lora(r=2, targets=["q_proj", "v_proj"])) == 112
    peak = memory.training(SMALL, train(), 4)
    assert peak.weights == 2 * (1152 + 1640)
    assert peak.trained == 112 * 16  # in float32: weights, gradients, two moments


def test_full_weights_by_hand() -> None:
    """Weights, gradients and two moments in float32, and a copy in bfloat16 to multiply with."""
    full = memory.training(SMALL, train(finetuning="full"), 4)
    assert full.weights == (1152 + 1640) * (4 + 2)
    assert full.trained == (1152 + 1640) * (4 + 8)
    eight_bits = memory.training(SMALL, train(finetuning="full", moments=memory.ADAM_8BIT), 4)
    assert eight_bits.trained == (1152 + 1640) * (4 + 2)
    # Two processes hold a half each, and copies of two of the layers, of 576 weights, in turn.
    half = memory.training(SMALL, train(finetuning="full", shards=2), 4)
    assert half.weights == (1152 + 1640) * 4 / 2 + 2 * 2 * 576
    assert half.trained == (1152 + 1640) * 12 / 2


def test_cards_before_an_adapter() -> None:
    """What is trained of all weights is spread over cards before less of it is trained."""
    shape = shape_of(agent("meta-llama/Llama-3.1-8B-Instruct"))
    recipe = load_recipe("moaa_llama")
    step = next(s for s in make_plan(recipe).steps if s.objective == "dpo")
    own = recipe.agents[step.learner]
    fits = {
        count: train_fit(recipe, step, own, shape, 200, hardware.named(f"{count}xA100-80GB"))
        for count in (8, 1)
    }
    assert fits[8].best.settings.startswith("FSDP over 2 (train.launcher)")
    assert fits[1].best.settings.startswith("train.finetuning=lora")


def test_activations_by_hand() -> None:
    """Thirty tokens. A layer keeps of each: both norms' inputs in float32, 64 bytes; queries, keys,
    values and their mixture, 4 * 8 numbers; three of 16; the adapter's input, 8: 64 + 2 * 88. At
    work are three gradients of 16 and two of 8."""
    assert memory.training(SMALL, train(), 4).activations == 30 * (2 * 240 + 2 * 64)
    again = memory.training(SMALL, train(checkpointing=True), 4)
    # Of each layer its input of 8 numbers, and what one layer keeps.
    assert again.activations == 30 * (2 * 2 * 8 + 240 + 2 * 64)


def test_pairs_share_their_prompt() -> None:
    """Three rows of a prompt of 4 and two answers of 6, whose mask has an entry for each two."""
    pairs = memory.training(SMALL, train(pairs=True), 4)
    assert pairs.activations == 48 * (2 * 240 + 2 * 64) + 3 * 16 * 16 * 3
    assert pairs.logits == 3 * 4 * 48 * 100
    assert memory.training(SMALL, train(), 4).logits == 30 * 100 * 2  # one tile of trl's kernel


def test_processes_share_weights_out() -> None:
    """A half of everything, and two layers whole."""
    half = memory.training(SMALL, train(shards=2), 4)
    assert half.weights == 2792 + 2 * 2 * 576 and half.trained == 112 * 8


def test_writing_by_hand() -> None:
    """A token's keys and values: two layers of 2 * 4 numbers; five answers of 6 to prompts of 4."""
    peak = memory.generating(SMALL, 5, 4, 6)
    assert peak.weights == 2 * 2792
    assert peak.cache == 5 * 10 * 32 * 1.5
    served = memory.serving(SMALL, 2, 10)
    assert served.weights == 2792 and served.cache == 10 * 32 / 2


def test_work_by_hand() -> None:
    """A token meets 1,152 weights and the head's 800, and 10 tokens before it on average 5: four
    FLOPs each in two layers of 8 numbers."""
    assert work.forward(SMALL, 10) == 2 * 1952 + 2 * 2 * 8 * 10
    on = hardware.named("1xA100-80GB")
    texts = Texts(rows=100, prompt=4, chosen=6, rejected=5)
    settings = Train(max_length=20)
    sft = work.training(SMALL, texts, SFT(epochs=3), settings, on, 1)
    assert sft.tokens == 100 * 10 * 3 and sft.flops == 3000 * 2 * work.forward(SMALL, 10)
    assert sft.seconds == pytest.approx(sft.flops / (312e12 * work.READING))
    dpo = work.training(SMALL, texts, DPO(reference="base"), settings, on, 1)
    assert dpo.tokens == 100 * 15  # the prompt once, and read once more for the reference
    assert dpo.flops == 1500 * 3 * work.forward(SMALL, 15)
    full = work.training(SMALL, texts, SFT(epochs=1), settings, on, 1, "full")
    assert full.flops == 1000 * 3 * work.forward(SMALL, 10)


def test_writing_is_bound_by_bandwidth() -> None:
    """70 B in bfloat16 are 141 GB for each token of a batch; on a card of 3,350 GB/s of which 60 %
    are reached that is 0.07 s, far above what its FLOPs take."""
    on, shape = hardware.named("1xH100-80GB"), shape_of(agent("meta-llama/Llama-3.1-70B-Instruct"))
    ask = Ask("write", "", "a", 1, 1, 1.0, 1000.0, 1000.0)
    seconds = work.writing(shape, ask, on, cards=1, rows=1, served=True).seconds
    assert seconds == pytest.approx(1000 * 139e9 / (3350e9 * 0.6), rel=0.02)


def test_all_linear_counts_every_matrix() -> None:
    """Of rank 2: q and o 8 + 8 each, k and v 8 + 4 each, three of 8 + 16; two layers."""
    lora = Lora(r=2, targets=["all-linear"])
    assert memory.adapter_weights(SMALL, lora) == 2 * 2 * (2 * 16 + 2 * 12 + 3 * 24)
    named = Lora(r=2, targets=list(SMALL.matrices))
    each, same = (replace(train(pairs=True), lora=lora) for lora in (lora, named))
    assert memory.training(SMALL, each, 4) == memory.training(SMALL, same, 4)


def test_70b_fits_on_one_card_in_four_bits_alone() -> None:
    """The settings that make it fit, as people know them."""
    on, shape = hardware.named("8xA100-80GB"), shape_of(agent("meta-llama/Llama-2-70b-hf"))
    settings = Train(micro_batch_size=2, gradient_checkpointing=True)
    each = memory.Training(settings, Lora(), pairs=True, rows=2, gpu=True)
    fit = fits.trained("train student", "b", shape, each, 16, 200, on)
    four_bits, sharded = fit.others
    assert not fit.fits and fit.way.peak > 130 * GIB
    assert four_bits.settings == "train.quantization=nf4" and 36 * GIB < four_bits.peak < 45 * GIB
    assert sharded.settings == "FSDP over 2 (train.launcher)" and sharded.cards == 2
    one = fits.trained("train student", "b", shape, each, 16, 200, hardware.named("1xL4-24GB"))
    assert not one.others and "name a smaller base" in str(one)


def test_smaller_parts_of_a_batch_fit() -> None:
    """8 B in bfloat16 on 24 GB: 64 rows of 1,024 tokens do not fit, a few do."""
    on, shape = hardware.named("1xRTX4090-24GB"), shape_of(agent("meta-llama/Meta-Llama-3-8B"))
    each = memory.Training(Train(), Lora(), pairs=False, rows=64, gpu=True)
    fit = fits.trained("train student", "b", shape, each, 64, 200, on)
    settings = fit.others[0].settings
    assert settings.startswith("train.micro_batch_size=") and fit.others[0].peak <= fit.room


def test_what_writes_where() -> None:
    """auto is vLLM on named cards; a forward pass that does not fit may be vLLM's."""
    assert fits.serves(Engine(), hardware.named("1xL4-24GB"))
    assert not fits.serves(Engine(), hardware.named("2xCPU-24GB"))
    shape = shape_of(agent("meta-llama/Llama-2-70b-hf"))
    reading = fits.Reading(200, 512, 0.0, writes=False, by_vllm=False)
    on = hardware.named("8xA100-80GB")
    fit = fits.spoken("score under student", "b", shape, reading, Engine(), on)
    assert fit.best.settings == "score.engine=vllm, engine.vllm.tensor_parallel=2"


@pytest.mark.parametrize("text", ["8xZ9000", "A100", "0xH100-80GB", "CPU", "xx", "2xCPU"])
def test_hardware_that_nobody_knows(text: str) -> None:
    with pytest.raises(MacpoError, match="--on"):
        hardware.named(text)


def test_hardware_by_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hardware.named("h200").name == "1xH200-141GB"
    assert hardware.named("2xcpu-24GB").memory == 24 * GIB
    monkeypatch.setattr(hardware, "gpus", lambda: ["NVIDIA A100-SXM4-40GB, 40960, 40000"] * 2)
    assert (hardware.here().name, hardware.here().count) == ("2xA100-40GB", 2)
    monkeypatch.setattr(hardware, "gpus", lambda: ["NVIDIA L40S, 46068, 46000"])
    assert hardware.here().name == "1xL40S-48GB"
    monkeypatch.setattr(hardware, "gpus", lambda: ["Some Card, 8192, 8000"])
    assert hardware.here().flops is None and hardware.here().memory == 8 * GIB


def test_a_base_without_sizes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    with pytest.raises(ModelError, match="tells no 'num_hidden_layers'"):
        shape_of(agent(str(tmp_path)))


@pytest.mark.parametrize("width", [80, 100])
def test_a_plan_is_readable(width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a table within its width, the sum, and for what does not fit a setting that does."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(width))
    command = ["run", "--until", "1", "--dry-run", "-r", "hh_helpful", "--on", "8xA100-80GB"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    rows = [line for line in done.stdout.splitlines() if re.match(r"\d  |round|all", line)]
    assert max(map(len, rows)) <= width and not any("…" in row for row in rows)
    student = next(line for line in rows if line.startswith("1      train positive  student"))
    assert re.search(r"waiting +\d\d\.\d GiB\* +\d+ MiB", student)
    assert ("FLOPs" in done.stdout) == (width >= 92)
    assert "train student: 135 GiB of 79; fits with train.quantization=nf4" in done.stdout
    assert "on 8xA100-80GB (named)" in done.stdout and "to download: 169.5 GiB" in done.stdout
    assert "assumed: 40%" in done.stdout and not (tmp_path / "runs").exists()


def test_a_plan_of_what_is_done_takes_nothing(open_run: OpenRun, tmp_path: Path) -> None:
    from macpo_data.generation.cost import unknown
    from macpo_data.planning.outlook import outlook

    run = open_run("rounds=0")
    assert not run.finish_round(0).waiting
    on = hardware.named("1xL4-24GB")
    plan = outlook(run.plan, run.store, run.states(), run.plan.steps, unknown(run.recipe), on)
    assert (plan.peak, plan.disk, plan.work.tokens, plan.misfits) == (0, 0, 0, [])


def test_bad_hardware_and_a_base_of_unknown_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = ["run", "--dry-run", "--until", "0"]
    wrong = CliRunner().invoke(app, [*plan, "--on", "9xNone"])
    assert isinstance(wrong.exception, MacpoError) and "8xA100-40GB" in str(wrong.exception)
    alone = CliRunner().invoke(app, ["run", "--until", "0", "--on", "8xA100-80GB"])
    assert "say --dry-run" in str(alone.exception)
    base = CliRunner().invoke(app, [*plan, "--set", "agents.student.base=org/nobody"])
    assert base.exit_code == 0 and "no figures of org/nobody" in base.stdout


def test_a_sweep_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds take twice as much as one."""
    monkeypatch.chdir(tmp_path)
    tokens = []
    for seeds in ("1", "2"):
        command = ["sweep", "-r", "quickstart", "--grid", "dpo.beta=0.1,0.2", "--until", "0"]
        done = CliRunner().invoke(app, [*command, "--seeds", seeds, "--dry-run"])
        assert done.exit_code == 0, done.output
        match = re.search(r"disk \d+ MiB, ([\d.,]+)k tokens", done.stdout)
        assert match, done.stdout
        tokens.append(float(match[1].replace(",", "")))
    assert tokens[1] == pytest.approx(2 * tokens[0], rel=0.01)


def test_the_table_of_the_page_is_current() -> None:
    """`python -m benchmarks.hardware_table` writes it anew."""
    page = hardware_table.PAGE.read_text()
    inside = page.split(hardware_table.BEGIN)[1].split(hardware_table.END)[0]
    assert inside.strip() == hardware_table.table()
