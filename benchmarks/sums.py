"""Small sums as a task: `python -m benchmarks.sums DIR` writes its data and its recipe to a folder.

Two teachers and a student learn to add one digit to two, as 42 + 7, from answers such as "It is
49."; eval.by=answer tells how often they are right. All are one base of the embedded world, which
has never seen a number and is trained in all its weights; the teachers are weak by a share of wrong
answers, each by others. So there is no strong student: what can be seen here is the measure.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path

COUNTS = {"d1": 140, "d2": 160, "test": 100}
SEED = 0
RECIPE = """\
# Small sums, each answer right or wrong. python -m benchmarks.sums wrote this.

run: sums
rounds: 1

data:
  source: pairs
  right: right
  noise: 0.1
  d1: {path: d1.jsonl}
  d2: {path: d2.jsonl}
  test: {path: test.jsonl}
  probe: {count: 20}

agents:
  teacher_1: {role: teacher, base: "world:weak-a"}
  teacher_2: {role: teacher, base: "world:weak-a"}
  student: {role: student, base: "world:weak-a"}

labeller: teacher_1

sampling: {max_new_tokens: 12}

sft: {epochs: 20, learning_rate: 1.0e-3, batch_size: 16}
negative: {epochs: 5, learning_rate: 1.0e-3, batch_size: 16}
dpo: {epochs: 2, learning_rate: 1.0e-4, batch_size: 16, loss: hinge, reference: initial}

train: {finetuning: full, dtype: float32, max_length: 64}

engine: {batch_size: 64}

eval: {by: answer, ceiling: true}
"""


def rows(sums: Iterable[tuple[int, int]], draw: random.Random) -> list[dict[str, str]]:
    """Each sum with a right answer, a wrong one, and the number that is right."""
    written = []
    for a, b in sums:
        wrong = a + b + draw.choice([-10, -2, -1, 1, 2, 10])
        written.append(
            {
                "prompt": f"What is {a} + {b}?",
                "chosen": f"It is {a + b}.",
                "rejected": f"It is {wrong}.",
                "right": str(a + b),
            }
        )
    return written


def main() -> None:
    """Write the files, and say what to run."""
    parser = argparse.ArgumentParser(description="Write small sums and a recipe on them.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(SEED)
    sums = [(a, b) for a in range(10, 100) for b in range(1, 10) if a % 10 + b < 10]
    draw.shuffle(sums)
    for part, count in COUNTS.items():
        taken, sums = sums[:count], sums[count:]
        text = "".join(json.dumps(row) + "\n" for row in rows(taken, draw))
        (folder / f"{part}.jsonl").write_text(text, "utf-8")
    (folder / "sums.yaml").write_text(RECIPE, "utf-8")
    print(f"macpo run --until 1 --recipe {folder}/sums.yaml")
    print(f"macpo eval --recipe {folder}/sums.yaml")


if __name__ == "__main__":
    main()
