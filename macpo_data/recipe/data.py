"""Section data: the source and size of each split of prompts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from macpo_data.recipe.section import LATER, Count, Place, Section, Share


class Columns(Section):
    """Which columns of a dataset hold what."""

    prompt: str = "prompt"
    """Column of the prompts: strings or message lists."""
    chosen: str | None = "chosen"
    """Column of the better answers: strings, or message lists whose last turn is the answer. null:
    there is none."""
    rejected: str | None = "rejected"
    """Column of the worse answers, likewise."""
    system: Annotated[str | None, LATER] = None
    """Column of the system turns; null: `system`, where there is one."""
    tools: Annotated[str | None, LATER] = None
    """Column of the tools that the assistant may call; null: `tools`, where there is one."""
    first: Annotated[str | None, LATER] = None
    """Of two answers and a label: column of the one answer, as response_0."""
    second: Annotated[str | None, LATER] = None
    """Column of the other answer, as response_1."""
    label: Annotated[str | None, LATER] = None
    """Column that says which of the two is better, by the end of its column's name: 0, 1, a, b."""
    answers: Annotated[str | None, LATER] = None
    """Of several scored answers to each prompt: column of the lists of answers."""
    score: Annotated[str | None, LATER] = None
    """Key of each answer, or column of lists, with its score: the best answer is taken against the
    worst. With a minus before it, as -rank, less is better."""


class More(Section):
    """Rows of a second dataset, for the same part."""

    source: Literal["ultrafeedback", "ultrachat", "pairs"]
    """What reads it, as in data.source."""
    path: Place
    """Id on the Hub, or a local file."""
    subset: str | None = None
    """Folder of the Hub dataset; null takes its default."""
    revision: str = "main"
    """Commit, tag or branch on the Hub; pinned in lock.json when first read."""
    split: str | None = None
    """Split of the Hub dataset."""
    count: Count
    """Rows to draw."""


class PartSpec(Section):
    """Where one of the three parts of the data comes from."""

    path: Place | list[Place] | None = None
    """Id on the Hub or local files, for this part; null takes data.path."""
    split: str | None = None
    """Split of the Hub dataset; parts of one split are drawn without overlap."""
    count: Count | None = None
    """Rows to draw; null takes all. The three parts share no prompt (but see data.overlap)."""
    more: Annotated[More | None, LATER] = None
    """A second dataset, whose rows come after these; null: none."""


class Probe(Section):
    """Pairs of D1 that are kept out of every training and every test, and watch over a run."""

    count: Annotated[int, Field(ge=0, strict=True)] | None = None
    """Rows of D1; null: 50, or a fifth of D1 where that is less. 0: no probe."""

    def size(self, rows: int) -> int:
        """How many of so many rows of D1 it takes."""
        return min(50, rows // 5) if self.count is None else self.count


class DataBase(Section):
    """What all sources share."""

    source: str
    """What reads the data."""
    d1: PartSpec = PartSpec()
    """Initialises the teachers: prompts with chosen and rejected answers. With method moaa prompts
    for the mixture."""
    d2: PartSpec = PartSpec()
    """The weak-to-strong half: only its prompts are used, in every round; its answers by
    eval.ceiling alone."""
    test: PartSpec = PartSpec()
    """Held out for evaluation; no training prompt occurs in it."""
    probe: Probe = Probe()
    """Pairs of D1 that nothing learns from and no test uses: they watch over the run."""
    limit: Count | None = None
    """At most this many rows of each part, `more` included, for a quick look; null sets no
    bound."""
    max_prompt_chars: Count | None = None
    """Longer prompts, in characters, are put aside; null keeps all."""
    noise: Share = 0.0
    """Share of each teacher's D1 pairs whose answers are swapped: one thing that makes teachers
    weak. Each teacher draws its own, so that their errors are not the same."""
    label_noise: Annotated[Share, LATER] = 0.0
    """Share of the student's weak labels whose chosen and rejected answers are swapped: in round 0,
    and in later rounds of the methods that read them again (weak_labels, spin)."""
    rejected: Annotated[Literal["source", "mismatch"], LATER] = "source"
    """Where D1's worse answers come from. source: it has them. mismatch: each is the better answer
    to another prompt of D1, for data that have good answers alone."""
    overlap: Annotated[bool, LATER] = False
    """Whether D2 is drawn from the prompts of D1; else no prompt is in both."""


class WorldData(DataBase):
    """The embedded world: generated prompts with a gold judge."""

    source: Literal["world"]
    """The embedded world: prompts from a generator, with good and bad answers, and a judge in
    code."""


class FileData(DataBase):
    """A dataset on the Hub, or local files."""

    path: Place | list[Place] | None = None
    """Id on the Hub, or local files (JSON, CSV, parquet, .gz too); a part may name its own."""
    subset: str | None = None
    """Folder of the Hub dataset, such as helpful-base; null takes its default."""
    config: Annotated[str | None, LATER] = None
    """Configuration of the Hub dataset, by the name on its card; null takes its default."""
    revision: str = "main"
    """Commit, tag or branch on the Hub; pinned in lock.json when first read."""

    @model_validator(mode="after")
    def _has_path(self) -> FileData:
        missing = [
            p for p in ("d1", "d2", "test") if self.path is None and getattr(self, p).path is None
        ]
        if missing:
            raise ValueError(f"no path for {', '.join(missing)}: set data.path or data.<part>.path")
        return self


class HHData(FileData):
    """Anthropic HH-RLHF: its raw Human/Assistant text, or parquet with message lists."""

    source: Literal["hh_rlhf"]
    """The reader of Anthropic's "Human: ... Assistant: ..." text."""


class PKUData(FileData):
    """PKU-SafeRLHF: two responses, one better and one safer."""

    source: Literal["pku_saferlhf"]
    """The reader of two answers, and which of them is better and which safer."""
    preference: Literal["better", "safer"] = "better"
    """Which judgement decides what is chosen: better (the more helpful answer) or safer."""


class ReleaseData(DataBase):
    """MACPO's own data as its authors released them, in their order and with their duplicates."""

    source: Literal["macpo_release"]
    """The reader of a clone of the authors' repository: D1's human pairs, D2's prompts and the test
    set as they are. Nothing is shuffled, and a prompt may occur twice or in two parts."""
    path: Place
    """Folder of one dataset in the clone, such as MACPO/data/HH-Helpful."""


class UltraFeedbackData(FileData):
    """UltraFeedback with its best and a worse answer, as in ultrafeedback_binarized."""

    source: Literal["ultrafeedback"]
    """The reader of prompts with the best and a worse of four answers."""
    path: Place | list[Place] | None = "HuggingFaceH4/ultrafeedback_binarized"
    """Id on the Hub, or local files (JSON, CSV, parquet, .gz too); a part may name its own."""


class UltraChatData(FileData):
    """UltraChat: whole conversations, of which the last answer is taken off. No rejected side."""

    source: Literal["ultrachat"]
    """The reader of whole conversations, of which the last answer is taken off."""
    path: Place | list[Place] | None = "HuggingFaceH4/ultrachat_200k"
    """Id on the Hub, or local files (JSON, CSV, parquet, .gz too); a part may name its own."""


class PairsData(FileData):
    """Any preference dataset."""

    source: Literal["pairs"]
    """The reader of any preference dataset, whose columns are named below."""
    columns: Columns = Columns()
    """Which columns of the dataset hold what."""
    right: Annotated[str | None, LATER] = None
    """Column of the right answer to each prompt, for eval.by=answer: a number, a formula, or text.
    Of a worked answer that ends in #### 72, that is 72. null: there is none."""


Data = Annotated[
    WorldData | HHData | PKUData | UltraFeedbackData | UltraChatData | ReleaseData | PairsData,
    Field(discriminator="source"),
]
