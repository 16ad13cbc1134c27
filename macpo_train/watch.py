"""Training callback: progress, logged metrics, and signs of failure."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from macpo_data.errors import ModelError
from macpo_data.models.worker import Report
from macpo_data.outside import OutsideError, parse_object, read_bytes
from macpo_data.signs.rules import ENOUGH, Signs, sentences
from macpo_train.ranks import is_first

History = list[dict[str, float]]
SHOWN = ("loss", "dpo", "sft", "weak", "own", "margin", "chosen_logprob", "rejected_logprob")
MARK = "macpo.json"


class Watch(TrainerCallback):  # type: ignore[misc]
    """Tells each step, warns, stops at a loss that is not finite, and marks checkpoints."""

    def __init__(
        self,
        report: Report,
        name: str,
        begins: str,
        keys: dict[str, str],
        rows: int,
        identity: str,
        save_steps: int | None,
        signs: Callable[[History], Signs],
    ) -> None:
        """`begins` is the model as training finds it, for errors.

        `keys` renames trl's metrics; `identity` is what a checkpoint has to match.

        `signs` gives those of a history, of which it is shown the first row and the last ENOUGH.
        """
        self.report = report
        self.name = name
        self.begins = begins
        self.keys = keys
        self.rows = rows  # per step
        self.identity = identity
        self.save_steps = save_steps
        self.signs = signs
        self.reported: set[str] = set()  # signs of failure
        self.begun = self.saved = time.monotonic()
        self.asked = self.saving = 0.0  # when the last checkpoint was asked for; how long it took
        self.first_step: int | None = None

    def history(self, state: Any) -> History:
        """One row per optimiser step, those before a kill included."""
        return [self._row(logs) for logs in state.log_history if "loss" in logs]

    def _row(self, logs: dict[str, Any]) -> dict[str, float]:
        named = {new: float(logs[old]) for old, new in self.keys.items() if old in logs}
        return {"step": float(logs["step"]), **named}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clocks."""
        self.begun = self.saved = time.monotonic()
        self.first_step = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """A step was made.

        Raises:
            ModelError: its loss or gradient is not finite.
        """
        if "loss" not in logs:
            return
        row = self._row({**logs, "step": state.global_step})
        for name in ("loss", "grad_norm"):
            if not math.isfinite(row.get(name, 0.0)):
                kept = last_checkpoint(Path(args.output_dir), self.identity)
                rest = f"; the last good checkpoint is {kept}" if kept else ""
                # Before the first step nothing was learned yet.
                mend = "lower the learning rate" if state.global_step > 1 else "look at its weights"
                raise ModelError(
                    f"the {name} is {row[name]} at step {state.global_step} of {self.begins}; "
                    f"{mend}, or set train.dtype=float32{rest}"
                )
        if not state.is_world_process_zero:
            return
        steps = state.global_step - (self.first_step or 0)
        rate = steps * self.rows / max(time.monotonic() - self.begun, 1e-9)
        notes = [f"{k} {row[k]:.3f}" for k in SHOWN if k in row]
        unit = "pairs" if "dpo" in row else "rows"
        self.report(state.global_step, state.max_steps, " ".join([*notes, f"{rate:.1f} {unit}/s"]))
        made_so_far = [logs for logs in state.log_history if "loss" in logs]
        looked_at = made_so_far[:1] + made_so_far[1:][-ENOUGH:]
        signs = self.signs([self._row(logs) for logs in looked_at])
        new = {n: s for n, s in signs.items() if s["crossed"] and n not in self.reported}
        self.reported |= new.keys()
        for line in sentences(new):
            say(f"{self.name}, step {state.global_step}: {line}")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a checkpoint where it is time."""
        now = time.monotonic()
        due = now - self.saved > max(SECONDS, SHARE * self.saving)
        if self.save_steps is None and due and args.world_size == 1:
            control.should_save, self.asked = True, now

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark a checkpoint as whole: it is the last thing that is written to it."""
        self.saved = time.monotonic()
        self.saving = self.saved - self.asked if self.asked else 0.0
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero:
            (folder / MARK).write_text(json.dumps({"identity": self.identity}), "utf-8")


# Between two checkpoints where the recipe names no steps: at least so many seconds, and so many
# times as long as the last one took to write.
SECONDS, SHARE = 30.0, 100.0


def last_checkpoint(folder: Path, identity: str) -> Path | None:
    """The newest checkpoint that is whole and of the same training."""
    marks = sorted(folder.glob(f"checkpoint-*/{MARK}"), key=lambda p: int(p.parent.name[11:]))
    for mark in reversed(marks):
        try:
            if parse_object(read_bytes(mark)).get("identity") == identity:
                return mark.parent
        except (OSError, OutsideError):
            continue
    return None


def say(line: str) -> None:
    """Tell a person, beside the bar; one of several processes does."""
    if is_first():
        print(f"training: {line}", file=sys.stderr, flush=True)
