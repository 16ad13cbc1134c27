"""Default prompt templates of judges, mixtures and frames. A recipe can name its own files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from macpo_data.errors import MacpoError
from macpo_data.outside import YAML_BYTES, read_text
from macpo_data.schema import Message


def is_own(prompt: str) -> bool:
    """Whether a prompt comes with the package."""
    return prompt.isidentifier() and (resources.files(__name__) / f"{prompt}.txt").is_file()


@cache
def read(prompt: str) -> str:
    """The text of a prompt: one that comes with the package, by its name, or a file.

    Raises:
        MacpoError: there is none.
    """
    try:
        if is_own(prompt):
            return (resources.files(__name__) / f"{prompt}.txt").read_text("utf-8")
        return read_text(Path(prompt).expanduser(), YAML_BYTES)
    except (OSError, ValueError) as error:
        names = sorted(
            f.name[:-4] for f in resources.files(__name__).iterdir() if f.name[-4:] == ".txt"
        )
        raise MacpoError(
            f"cannot read the prompt {prompt}: {error}; name one of {', '.join(names)} or a file"
        ) from None


def lacking(kind: str, prompt: str) -> list[str]:
    """The $names of the package's own prompt of a kind that another text does not have."""
    own, given = (set(Template(read(text)).get_identifiers()) for text in (kind, prompt))
    return sorted(own - given)


def fill(prompt: str, **values: Any) -> str:
    """A prompt with its $names filled in; what is filled in is never read for names itself.

    Raises:
        MacpoError: the prompt has a name that is not known, or a lone $.
    """
    try:
        return Template(read(prompt)).substitute(values).strip()
    except (KeyError, ValueError) as error:
        raise MacpoError(
            f"the prompt {prompt}: {error}; it may use "
            f"{', '.join('$' + name for name in values) or 'no $name'}, and a dollar sign is "
            "written $$"
        ) from None


def question(prompt: Sequence[Message]) -> str:
    """A conversation as a judge reads it: the query alone, or all turns with who said them."""
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in prompt)
