"""Writes any preference dataset as a folder in the form of one trainer."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from macpo_data.forms import convert as conversion
from macpo_data.forms.trainer import DATA_FILE
from macpo_data.hub.templates import fill_text
from macpo_data.recipe.agents import RENDERED, takes_text_as_it_is
from macpo_data.recipe.recipe import TrainSettings
from macpo_data.sources.ingest.door import open_rows
from macpo_data.sources.ingest.splits import Dataset, Source
from macpo_data.store.folders import check_new, new_folder
from macpo_data.store.store import naming, sha256

CARD = """\
---
configs:
- config_name: default
  description: sha256 {sha256}
  data_files:
  - split: train
    path: {data}
---
# {name}

{account}

```
{snippet}
```
"""


@dataclass(frozen=True)
class Converted:
    """A folder in the form of a trainer."""

    account: list[str]  # what became of the rows, a line for each thing
    files: list[str]
    snippet: str  # for the trainer's own settings


def convert(of: Dataset | Source, settings: TrainSettings, trainer: str, to: Path) -> Converted:
    """Write a dataset to a folder in the form of a trainer.

    Args:
        of: which dataset.
        settings: of a training; `chat_template: none` writes rendered text as it is.
        trainer: whose form, as the registry names it.
        to: the folder, which appears when all of it is written.

    Raises:
        MacpoError: there is no such trainer, the dataset cannot be read, or the folder is in use.
    """
    target, place = conversion.target(trainer), to.resolve()
    check_new(to)
    rendered = settings.chat_template == RENDERED
    rows = open_rows(of, settings.columns, rendered=takes_text_as_it_is(settings.chat_template))
    use = (conversion.as_text if rendered else conversion.use_for)(rows, target)
    name = re.sub(r"[^\w-]+", "_", place.name)
    snippet = fill_text(
        use.snippet,
        place=_quoted(place, use.snippet_file),
        file=_quoted(place / DATA_FILE, use.snippet_file),
        name=name,
        config=None,
        tag=None,
        beta=settings.dpo.beta,
        gamma=settings.dpo.gamma,
    )
    with new_folder(place) as folder, naming(place):
        done = conversion.write(rows, target, folder / DATA_FILE, use)
        account = "\n".join(f"- {line}" for line in done.lines())
        # By name and card the library datasets knows what it has read before.
        card = CARD.format(data=DATA_FILE, name=name, account=account, snippet=snippet,
                           sha256=sha256(folder / DATA_FILE))  # fmt: skip
        files = {
            use.snippet_file: f"{snippet}\n".encode(),
            "README.md": card.encode(),
            **(use.beside(name) if use.beside else {}),
        }
        for path, content in files.items():
            (folder / path).write_bytes(content)
    return Converted(done.lines(), [DATA_FILE, *files], snippet)


def _quoted(path: Path, file: str) -> str:
    """A path as the snippet's file writes it: for a shell, or as text of YAML or Python."""
    text = str(path)
    if file.endswith(".txt"):
        return shlex.quote(text)
    return text if file.endswith(".yaml") and re.fullmatch(r"[\w./-]+", text) else json.dumps(text)
