"""How a round grows with its prompts, on a fake engine: `python -m benchmarks.scale 10000 100000`.

For each number of prompts a file of pairs and a recipe with three teachers on them, then rounds 0
and 1 in a process each: wall and processor seconds (the user's, which a busy machine stretches
less), and the most memory that was in use beyond what the process had before it opened the run.
`--profile` lists where a round's time goes.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.rows import row

WORDS = "the water of a garden is light where stone and paper meet in the north"
RECIPE = """
run: scale
rounds: 1
agents:
  teacher_1: {role: teacher, base: "world:weak-a"}
  teacher_2: {role: teacher, base: "world:weak-b"}
  teacher_3: {role: teacher, base: "world:weak-c"}
  student: {role: student, base: "world:strong"}
engine: {name: fake}
"""


def write(folder: Path, count: int) -> int:
    """A file of pairs whose D2 has so many prompts, and its recipe; the bytes of the file."""
    d1, test = 300, 200
    with (folder / "pairs.jsonl").open("w") as file:
        for n in range(count + d1 + test):
            prompt = f"question {n}: {WORDS} {WORDS}?"
            pair = {"prompt": prompt, "chosen": f"{WORDS} {n}", "rejected": f"{n} {WORDS}"}
            file.write(json.dumps(pair) + "\n")
    sizes = {"d1": {"count": d1}, "d2": {"count": count}, "test": {"count": test}}
    values = yaml.safe_load(RECIPE) | {"data": {"source": "pairs", "path": "pairs.jsonl", **sizes}}
    (folder / "macpo.yaml").write_text(yaml.safe_dump(values))
    return (folder / "pairs.jsonl").stat().st_size


def make(folder: Path, round_: int, profile: bool) -> None:
    """Make a round in this process and print what it took, as JSON."""
    from macpo_data.loading.load import load_recipe
    from macpo_run.rounds import Run
    from macpo_run.terminal.progress import progress

    recipe = load_recipe(str(folder / "macpo.yaml"))
    before = resource.getrusage(resource.RUSAGE_SELF)
    begun, profiler = time.perf_counter(), cProfile.Profile()
    with Run(recipe, folder / "runs", progress, lambda line: None) as run:
        if profile:
            profiler.enable()
        run.finish_round(round_)
        profiler.disable()
    after = resource.getrusage(resource.RUSAGE_SELF)
    facts = {
        "wall": time.perf_counter() - begun,
        "user": after.ru_utime - before.ru_utime,
        "mb": (after.ru_maxrss - before.ru_maxrss) / 1000,
    }
    if profile:
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(30)
    print(json.dumps(facts))


def measure(count: int, profile: bool) -> str:
    """A cell of the table: both rounds over so many prompts."""
    with tempfile.TemporaryDirectory() as name:
        size = write(Path(name), count) / 1e6
        cells = []
        for round_ in (0, 1):
            command = [sys.executable, "-m", "benchmarks.scale", "--make", name, str(round_)]
            command += ["--profile"] if profile else []
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            facts = json.loads(done.stdout.splitlines()[-1])
            cells.append(
                f"round {round_}: {facts['wall']:.0f} s ({facts['user']:.0f} s of the processor), "
                f"{facts['mb'] - size:,.0f} MB beyond the input's {size:.0f}"
            )
    return f"{count:,} prompts: {'; '.join(cells)}"


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("counts", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        return make(Path(args.make[0]), int(args.make[1]), args.profile)
    counts = " ".join(map(str, args.counts))
    cells = []
    for count in args.counts:
        cells.append(measure(count, args.profile))
        print(cells[-1], file=sys.stderr, flush=True)
    row(
        "a round of MACPO on the fake engine",
        ". ".join(cells),
        f"python -m benchmarks.scale {counts}",
    )


if __name__ == "__main__":
    main()
