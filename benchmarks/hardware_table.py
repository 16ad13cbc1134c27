"""The table of docs/hardware.md: what every shipped recipe takes on three machines.

Those for a smaller card stand there with that as well.

`python -m benchmarks.hardware_table` writes it anew. Nothing is downloaded or run: the sizes of the
data are those that a dry run takes where the data is not there yet.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from macpo_data.generation.cost import Sizes, made_up, unknown
from macpo_data.loading.load import load_recipe, shipped
from macpo_data.methods.registry import make_plan
from macpo_data.planning import hardware
from macpo_data.planning.fits import Fit
from macpo_data.planning.outlook import Outlook, outlook
from macpo_data.recipe.recipe import Recipe
from macpo_data.store.store import Store, states
from macpo_run.terminal.outlook import size, time_of

PAGE = Path(__file__).resolve().parents[1] / "docs" / "hardware.md"
MACHINES = ("8xA100-80GB", "1xH100-80GB", "2xCPU-24GB")
MORE = {"one_gpu_24gb": ("1xRTX4090",), "one_gpu_24gb_ultrafeedback": ("1xRTX4090",)}
BEGIN, END = "<!-- table: python -m benchmarks.hardware_table -->", "<!-- end of table -->"
WORLD_CHARS = 76  # of a prompt and of an answer of the embedded world


def sizes_of(recipe: Recipe) -> Sizes:
    """Of a recipe's data, without a look at any."""
    sizes = unknown(recipe)
    if recipe.data.source != "world":
        return sizes
    sample = made_up(WORLD_CHARS, 1, WORLD_CHARS)
    return replace(sizes, sample=dict.fromkeys(sizes.sample, sample), answer=WORLD_CHARS / 4)


def plans() -> dict[tuple[str, str], Outlook]:
    """All rounds of every shipped recipe on every machine."""
    outlooks = {}
    for name in shipped():
        recipe = load_recipe(name)
        plan, store, sizes = make_plan(recipe), Store(Path("nowhere")), sizes_of(recipe)
        now = states(plan, store)
        for machine in (*MORE.get(name, ()), *MACHINES):
            on = hardware.named(machine)
            outlooks[name, machine] = outlook(plan, store, now, plan.steps, sizes, on)
    return outlooks


def cells(plan: Outlook) -> list[str]:
    """Peaks, disk, hours, and what does not fit, of one recipe on one machine."""
    peaks = []
    for kind in ("train", "gen"):
        own = [row.peak or 0.0 for row in plan.rows if row.step.kind == kind]
        peaks.append(size(max(own, default=0.0)))
    impossible = [fit for fit in plan.misfits if not fit.others]
    if impossible:
        return [*peaks, size(plan.disk), "-", f"not here: {_all(impossible)}"]
    return [*peaks, size(plan.disk), time_of(plan.work.seconds), _all(plan.misfits) or "all fits"]


def _all(fits: list[Fit]) -> str:
    """What does not fit, by what it is and needs, and the first way that would."""
    lines = []
    for fit in fits:
        with_ = f" with {fit.others[0].settings}" if fit.others else ""
        lines.append(f"{fit.what} ({size(fit.way.peak)}){with_}")
    return "; ".join(lines)


def table() -> str:
    """As Markdown."""
    head = [
        "recipe",
        "machine",
        "peak, training",
        "peak, writing and scoring",
        "disk",
        "time",
        "what does not fit, and with what it does",
    ]
    lines = [head, ["---"] * len(head)]
    alike: dict[tuple[str, ...], list[str]] = {}
    for (name, machine), plan in plans().items():
        alike.setdefault((machine, *cells(plan)), []).append(f"`{name}`")
    lines += [[", ".join(names), *row] for row, names in alike.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Write the table into the page."""
    text = PAGE.read_text("utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
