"""`macpo convert`: a dataset of any form in the form of one trainer."""

from __future__ import annotations

from pathlib import Path

from macpo_run.commands.run_options import DatasetOptions
from macpo_run.terminal.lines import say


def convert(options: DatasetOptions, trainer: str, to: Path, sets: list[str] | None = None) -> None:
    """Write a dataset to a folder in the form of a trainer, and say what to do with it.

    Args:
        options: which dataset.
        trainer: whose form, as the registry names it.
        to: the folder, which appears when all of it is written.
        sets: settings of a training; `chat_template=none` writes rendered text as it is.

    Raises:
        MacpoError: there is no such trainer, the dataset cannot be read, or the folder is in use.
    """
    from macpo_data.loading.load import load_settings
    from macpo_run import converting

    done = converting.convert(options.dataset(), load_settings(options.settings(sets)), trainer, to)
    for line in done.account:
        say(line)
    say(f"wrote {to}: {', '.join(done.files)}")
    say("")
    say(done.snippet)
