"""The plan's peak of memory against the measured one, on random models of 150 M and more.

Each case runs in a process of its own on rows that are exactly as long as `train.max_length`. The
peak is what the process held at most of memory of its own, and of the base's files that it maps,
net of the same work by a model of no size: imports, the tokenizer, and what torch sets up. Pages
of libraries are left out: how many are in memory depends on what else runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.models import tokenizer
from benchmarks.rows import row
from macpo_data.models.base import Base
from macpo_data.planning import memory
from macpo_data.planning.shapes import Shape, from_config
from macpo_data.recipe.engine import Engine
from macpo_data.recipe.generation import Sampling
from macpo_data.recipe.training import DPO, SFT, Finetuning, Lora, Train
from macpo_data.schema import Message

MODELS = {
    "153M": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "num_key_value_heads": 4, "vocab_size": 32000,
    },
    "427M": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 32000,
    },
    "empty": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 4200,
    },
}  # fmt: skip
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Case:
    """One piece of work."""

    work: str  # sft, dpo, score or generate
    model: str = "153M"
    dtype: str = "float32"
    rows: int = 2  # of a micro batch, or of a batch of the engine
    length: int = 384  # train.max_length; tokens of prompt and answer
    prompt: int = 128
    checkpointing: bool = False
    targets: str = "q, v"
    finetuning: Finetuning = "lora"

    @property
    def lora(self) -> Lora:
        """The adapter."""
        return Lora(targets=ALL if self.targets == "all" else ["q_proj", "v_proj"])

    def words(self) -> str:
        """What a row says of it."""
        what = (
            f"{self.work}, {self.model} in {self.dtype}, {self.rows} rows of {self.length} tokens"
        )
        if self.work in ("sft", "dpo"):
            what += f", LoRA on {self.targets}" if self.finetuning == "lora" else ", all weights"
        return what + (", checkpointing" if self.checkpointing else "")


CASES = [
    Case("sft"),
    Case("sft", targets="all"),
    Case("sft", checkpointing=True),
    Case("sft", dtype="bfloat16", targets="all"),
    Case("dpo"),
    Case("dpo", targets="all"),
    Case("dpo", checkpointing=True),
    Case("dpo", dtype="bfloat16"),
    Case("dpo", model="427M", dtype="bfloat16", checkpointing=True),
    Case("sft", finetuning="full"),
    Case("sft", dtype="bfloat16", finetuning="full"),
    Case("dpo", finetuning="full"),
    Case("dpo", finetuning="full", checkpointing=True),
    Case("score", rows=8),
    Case("generate", rows=32, length=240, prompt=224),
    Case("generate", model="427M", dtype="bfloat16", rows=32, length=240, prompt=224),
]


def config(name: str) -> dict[str, Any]:
    """Of one of the models, as in its config.json."""
    fixed = {"model_type": "llama", "tie_word_embeddings": False, "max_position_embeddings": 4096}
    return {**MODELS[name], **fixed}


def prepare(folder: Path, model: str, dtype: str) -> Path:
    """The base with random weights, unless it is there."""
    path = folder / f"{model}-{dtype}"
    if not path.exists():
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        fast = tokenizer()
        torch.manual_seed(0)
        own = LlamaConfig(**config(model), pad_token_id=0, eos_token_id=2, bos_token_id=None)
        LlamaForCausalLM(own).to(getattr(torch, dtype)).save_pretrained(path)
        fast.save_pretrained(path)
    return path


def text(tokens: int, seed: int) -> str:
    """About so many tokens or more."""
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("etaoinshrdlu", k=4)) for _ in range(tokens))


def prompt(case: Case, seed: int) -> list[Message]:
    """A message of so many tokens, by the tokenizer."""
    fast, words = tokenizer(), text(case.prompt, seed)
    ids = fast(words)["input_ids"][: case.prompt - 8]
    return [{"role": "user", "content": fast.decode(ids)}]


class Watch(threading.Thread):
    """Looks at this process's memory many times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.own, self.mapped = 0, 0  # KiB

    def run(self) -> None:
        """Keep the highest values."""
        for turn in itertools.count():
            self.own = max(self.own, _kib("/proc/self/status", "RssAnon:"))
            if turn % 50 == 0:
                self.mapped = max(self.mapped, _mapped())
            time.sleep(0.02)

    @property
    def peak(self) -> float:
        """MiB."""
        return (self.own + self.mapped) / 1024


def _kib(path: str, field: str) -> int:
    lines = Path(path).read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(field))


def _mapped() -> int:
    """KiB of weights that are mapped from their file and in memory."""
    kib, is_weights = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            is_weights = line.endswith(".safetensors")
        elif is_weights and line.startswith("Rss:"):
            kib += int(line.split()[1])
    return kib


def one(case: Case, folder: Path) -> None:
    """Do the work, and print the peak in MiB and the seconds."""
    base = Base(str(folder / f"{case.model}-{case.dtype}"), None)
    begun, watch = time.perf_counter(), Watch()
    watch.start()
    if case.work in ("sft", "dpo"):
        train(case, base, folder)
    else:
        run_engine(case, base)
    print(
        json.dumps(
            {
                "peak": watch.peak,
                "mapped": watch.mapped / 1024,
                "seconds": time.perf_counter() - begun,
            }
        )
    )


def train(case: Case, base: Base, folder: Path) -> None:
    """One step of one training, or two."""
    from macpo_train.job import Job
    from macpo_train.train import train

    rows = [
        {
            "prompt": prompt(case, n),
            "chosen": text(case.length, n),
            "rejected": text(case.length, n + case.rows),
        }
        for n in range(case.rows)
    ]
    frame = pl.DataFrame(rows).with_columns(
        chosen_finish_reason=pl.lit("length"), rejected_finish_reason=pl.lit("length")
    )
    out = folder / f"out-{time.time_ns()}"
    frame.write_parquet(out.with_suffix(".parquet"))
    # Of all weights, the moments are there from the second step on, beside activations.
    epochs = 2.0 if case.finetuning == "full" else 1.0
    section = (
        SFT(epochs=epochs, batch_size=case.rows)
        if case.work == "sft"
        else DPO(epochs=epochs, batch_size=case.rows, reference="previous")
    )
    settings = Train(
        dtype=case.dtype,  # type: ignore[arg-type]
        max_length=case.length,
        max_truncated=1.0,
        gradient_checkpointing=case.checkpointing,
    )
    job = Job(
        dataset=out.with_suffix(".parquet"),
        column="chosen",
        base=base,
        chat_template="tokenizer",
        start=None,
        out=out,
        settings=section,
        lora=case.lora,
        train=settings,
        finetuning=case.finetuning,
    )
    train(lambda *_: None, job)


def run_engine(case: Case, base: Base) -> None:
    """One batch of the embedded engine."""
    from macpo_data.engines.protocol import Request, ScoreRequest, Voice
    from macpo_data.engines.transformers import TransformersEngine

    engine = TransformersEngine(base, Engine(name="transformers", batch_size=case.rows))
    voice = Voice(None, "tokenizer", "base")
    answer = case.length - case.prompt
    if case.work == "score":
        # Words of the text are several tokens each: cut to the answer's length.
        fast = tokenizer()
        answers = [
            fast.decode(fast(text(answer, n))["input_ids"][:answer]) for n in range(case.rows)
        ]
        requests = [
            ScoreRequest(voice, prompt(case, n // 2), answers[n], False, "a")
            for n in range(case.rows)
        ]
        list(engine.score(requests))
    else:
        sampling = Sampling(max_new_tokens=answer)
        list(
            engine.generate(
                [Request(voice, prompt(case, n), sampling, n, "a") for n in range(case.rows)]
            )
        )


def planned(case: Case, shape: Shape) -> float:
    """What the plan says, in MiB."""
    if case.work == "generate":
        parts = memory.generating(shape, case.rows, case.prompt, case.length - case.prompt)
    elif case.work == "score":
        parts = memory.scoring(shape, case.rows, case.prompt, case.length - case.prompt)
    else:
        settings = Train(
            dtype=case.dtype,  # type: ignore[arg-type]
            max_length=case.length,
            gradient_checkpointing=case.checkpointing,
        )
        training = memory.Training(
            settings,
            case.lora,
            pairs=case.work == "dpo",
            rows=case.rows,
            finetuning=case.finetuning,
        )
        parts = memory.training(shape, training, case.prompt)
    return parts.total / 2**20


def measure(case: Case, folder: Path) -> dict[str, float]:
    """Peak and seconds of a case in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.planning", "--folder", str(folder)]
    done = subprocess.run(
        [*command, "--one", json.dumps(asdict(case))], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Print a row for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", help="cases whose words hold this")
    args = parser.parse_args()
    if args.one:
        return one(Case(**json.loads(args.one)), args.folder)
    with tempfile.TemporaryDirectory() as own:
        folder = args.folder or Path(own)
        for case in CASES:
            if args.only and args.only not in case.words():
                continue
            empty = Case(**{**asdict(case), "model": "empty"})
            for each in (case, empty):
                prepare(folder, each.model, each.dtype)
            whole, bare = measure(case, folder), measure(empty, folder)
            net = whole["peak"] - bare["peak"]
            shape = from_config(config(case.model) | {"torch_dtype": case.dtype}, "here")
            plan = planned(case, shape)
            row(
                f"planned peak: {case.words()}",
                f"{plan / net:.2f}x of the measured one ({plan:,.0f} and {net:,.0f} MiB, "
                f"net of {bare['peak']:,.0f}, {whole['mapped']:,.0f} mapped); "
                f"{whole['seconds']:.0f} s",
                "python -m benchmarks.planning",
            )


if __name__ == "__main__":
    main()
