"""The trainers that macpo knows. A new one is a file in this folder and a line here."""

from __future__ import annotations

from macpo_data.forms import (
    alignment_handbook,
    axolotl,
    llama_factory,
    macpo,
    ms_swift,
    nemo_rl,
    open_instruct,
    openai,
    openrlhf,
    torchtune,
    trl,
)
from macpo_data.forms.trainer import Published, Trainer, Tree

OWN = macpo.TRAINER
OTHERS = (
    trl.TRAINER,
    axolotl.TRAINER,
    llama_factory.TRAINER,
    openrlhf.TRAINER,
    open_instruct.TRAINER,
    alignment_handbook.TRAINER,
    torchtune.TRAINER,
    nemo_rl.TRAINER,
    ms_swift.TRAINER,
    openai.TRAINER,
)
SECOND_FORMS = (llama_factory.ALPACA,)  # of trainers that stand above, for `macpo convert` alone


def trainers() -> tuple[Trainer, ...]:
    """All of them, our own last."""
    return (*OTHERS, OWN)


def targets() -> dict[str, Trainer]:
    """What `macpo convert` writes for, by name."""
    return {each.name: each for each in (*trainers(), *SECOND_FORMS)}


def forms(preferences: bool) -> list[Published]:
    """The forms in which pairs, or data for fine-tuning, are published: the plain one first."""
    uses = [each.pairs if preferences else each.fine_tuning for each in trainers()]
    written = [use.form for use in uses if use is not None]
    by_suffix = {form.suffix: form for form in written if isinstance(form, Published)}
    return [by_suffix[suffix] for suffix in sorted(by_suffix)]


def files(tree: Tree, repo: str | None) -> dict[str, bytes]:
    """What trainers want at the top of the tree: path -> content."""
    wanted = [each.files(tree, repo) for each in trainers() if each.files is not None]
    return {path: content for each in wanted for path, content in each.items()}
