"""Preference data round by round, from Python: `import macpo`. The command is in `macpo.cli`.

A run is opened once, and ten functions read it, go on with it, or work on frames without any run.
Nothing is loaded before the first of them is used, torch only where a model is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from macpo_data.errors import MacpoError
    from macpo_run.api.frames import Checked, check, convert, score, select, train
    from macpo_run.api.runs import as_dataset, evaluate, make, open_run, read_round, steps

__all__ = [
    "Checked",
    "MacpoError",
    "as_dataset",
    "check",
    "convert",
    "evaluate",
    "make",
    "open_run",
    "read_round",
    "score",
    "select",
    "steps",
    "train",
]

_PLACES = {
    "MacpoError": "macpo_data.errors",
    **dict.fromkeys(
        ("as_dataset", "evaluate", "make", "open_run", "read_round", "steps"), "macpo_run.api.runs"
    ),
    **dict.fromkeys(
        ("Checked", "check", "convert", "score", "select", "train"), "macpo_run.api.frames"
    ),
}


def __getattr__(name: str) -> Any:
    """What is imported only when somebody asks for it; `__version__` is read from site-packages.

    Raises:
        AttributeError: there is no such name.
    """
    if name == "__version__":
        from importlib.metadata import version

        return version("macpo")
    if name in _PLACES:
        from importlib import import_module

        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The names that completion offers."""
    return [*__all__, "__version__"]
