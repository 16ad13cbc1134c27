"""Work on frames and datasets of anybody, without a recipe or a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import polars as pl

from macpo_data.errors import DataError, RecipeError
from macpo_data.schema import MESSAGES, SAMPLES, SCORES
from macpo_run.api.asking import Settings, as_sets, progress_of, require, speaker

if TYPE_CHECKING:
    import datasets

    from macpo_data.models.worker import Progress
    from macpo_data.recipe.recipe import TrainSettings
    from macpo_data.sources.ingest.splits import Dataset, Source

    Data: TypeAlias = pl.DataFrame | datasets.Dataset | str | Path
"""A frame, a dataset of the library `datasets`, a file or folder, or org/name on the Hub."""

FRAME = "the frame"  # how errors call it


class Checked(NamedTuple):
    """What `check` found."""

    fit: bool  # no row is wrong, and the trainer that counts can read it
    trainers: pl.DataFrame  # trainer, reads, how (or why not)
    findings: pl.DataFrame  # level (error, warning, note), what, rows, first


def train(
    data: Data,
    base: str,
    out: str | Path,
    *,
    init: str | None = None,
    reference: str | None = None,
    columns: Mapping[str, str] | None = None,
    settings: Settings | None = None,
    quiet: bool = False,
) -> Path:
    """Train an adapter on preference data, as `macpo train --dataset` does.

    A frame is first written to OUT.parquet, beside the adapter: its manifest names that file.
    Killed, and called again with the same data and settings, it goes on from its last checkpoint.

    Args:
        data: pairs; with the setting objective=sft, prompts and good answers.
        base: the model: Hub id or folder.
        out: folder of the new adapter.
        init: adapter to go on from: a folder, or org/name on the Hub.
        reference: adapter to hold it to.
        columns: which columns hold what, where their names are not the usual ones.
        settings: by dotted key, such as {"dpo.beta": 0.1, "train.max_length": 512}.
        quiet: no progress and no remarks on stderr.

    Returns:
        The adapter's folder, for `peft`.

    Raises:
        MacpoError: the data, the model or a setting does not fit.

    >>> import macpo, polars as pl
    >>> rows = {"prompt": ["2 + 2?", "3 + 3?"], "chosen": ["4.", "6."], "rejected": ["5.", "7."]}
    >>> fake = {"engine.name": "fake"}
    >>> folder = macpo.train(pl.DataFrame(rows), "org/model", "mine", settings=fake, quiet=True)
    >>> (folder / "adapter_config.json").is_file()
    True
    """
    from macpo_data.sources.ingest.splits import Dataset
    from macpo_data.store.store import write_parquet
    from macpo_run.standalone import check_free, train_on

    out = Path(out)
    if isinstance(data, str | Path):
        place = str(data)
    else:
        check_free(out)  # the rows of what is there already stay
        rows = out.with_name(f"{out.name}.parquet")
        rows.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(rows, _frame(data))
        place = str(rows)
    return train_on(
        Dataset(place),
        base,
        out,
        init=init,
        reference=reference,
        sets=_sets(columns, settings),
        progress=progress_of(quiet),
        say=speaker(quiet),
        look=require,
    )


def score(
    rows: pl.DataFrame,
    base: str,
    adapter: str | Path | None = None,
    *,
    column: str = "response",
    settings: Settings | None = None,
    quiet: bool = False,
) -> pl.DataFrame:
    """How likely a model finds answers: log-likelihoods and perplexities.

    Args:
        rows: `prompt`, text or messages (role, content), and a column of answers. A column
            `finish_reason` (of another column than response: `chosen_finish_reason`) says which
            answers the token limit cut (length); without it all have ended (stop).
        base: the model: Hub id or folder.
        adapter: on it: a folder, or org/name on the Hub.
        column: that holds the answers.
        settings: by dotted key: engine.*, chat_template, trust_remote_code.
        quiet: no progress on stderr.

    Returns:
        The rows with sum_logprob, num_tokens, eot_logprob (nats) and perplexity; of another column
        than response these names begin with it, as chosen_perplexity.

    Raises:
        MacpoError: a column is missing, or the model is.

    >>> import macpo, polars as pl
    >>> rows = pl.DataFrame({"prompt": ["Hi", "Hi"], "response": ["Hello there.", None]})
    >>> scored = macpo.score(rows, "org/model", settings={"engine.name": "fake"}, quiet=True)
    >>> scored["num_tokens"].to_list(), scored["perplexity"].is_null().to_list()
    ([2, None], [False, True])
    """
    from macpo_data.loading.load import load_settings

    begins = "" if column == "response" else f"{column}_"
    if missing := [name for name in ("prompt", column) if name not in rows.columns]:
        raise DataError(f"{FRAME} has no column {missing[0]}; it has {', '.join(rows.columns)}")
    ended = f"{begins}finish_reason"
    asked = rows.select(
        _messages(rows),
        pl.col(column).cast(pl.String).alias("response"),
        (pl.col(ended) if ended in rows.columns else pl.lit("stop")).alias("finish_reason"),
    )
    used = load_settings(as_sets(settings))
    scores = _scores(asked, base, adapter, used, progress_of(quiet))
    return rows.with_columns(
        scores.rename({name: f"{begins}{name}" for name in scores.columns}).get_columns()
    )


def select(
    candidates: pl.DataFrame,
    rejected: pl.DataFrame | None = None,
    **settings: object,
) -> pl.DataFrame:
    """Choose the best answers of each prompt: MACPO's student takes the least perplexing one.

    Args:
        candidates: `prompt_id` or `prompt`, `response`, `perplexity`, as `score` returns them, or
            CANDIDATES. `agent` and `finish_reason` are read where they are there.
        rejected: the same of one rejected answer for each prompt: a candidate equal to it is
            caught.
        settings: of the recipe's section `select`, such as keep=2, max_chars=900.

    Returns:
        The candidates in their order with `reason` (the filter that caught one), `rank` (1 is
        best) and `selected`.

    Raises:
        MacpoError: a column is missing, or there is no such setting.

    >>> import macpo, polars as pl
    >>> answers = pl.DataFrame({
    ...     "prompt": ["Hi"] * 3, "response": ["Yo.", "Hello.", ""], "perplexity": [9.0, 3.0, None],
    ... })
    >>> macpo.select(answers)["rank", "selected", "reason"].rows()
    [(2, False, None), (1, True, None), (None, False, 'empty')]
    """
    from pydantic import ValidationError

    from macpo_data.generation.select import by_perplexity
    from macpo_data.loading.explain import explain
    from macpo_data.recipe.generation import Select

    try:
        wanted = Select.model_validate(settings)
    except ValidationError as error:
        raise RecipeError("select", explain(error, Select)) from None
    for name in ("response", "perplexity"):
        if name not in candidates.columns:
            raise DataError(f"{FRAME} has no column {name}; `score` adds perplexities")
    whole = _samples(candidates)
    others = whole.clear() if rejected is None else _samples(rejected)
    ranked = by_perplexity(whole, others.select(SAMPLES.keys()), wanted)
    return candidates.with_columns(ranked["reason", "rank", "selected"].get_columns())


def check(
    data: Data,
    *,
    trainer: str | None = None,
    columns: Mapping[str, str] | None = None,
    tests: Sequence[str] = (),
    tokenizer: str | None = None,
    max_length: int = 1024,
) -> Checked:
    """Look at preference data as each trainer would, as `macpo check` does.

    Args:
        data: of any form.
        trainer: the one that must be able to read it; None for any.
        columns: which columns hold what, where their names are not the usual ones.
        tests: test sets whose prompts must not be in it.
        tokenizer: a model whose tokenizer counts the lengths.
        max_length: tokens of prompt and answer.

    Raises:
        MacpoError: it cannot be read.

    >>> import macpo, polars as pl
    >>> rows = {"prompt": ["2 + 2?", "3 + 3?"], "chosen": ["4.", "6."], "rejected": ["5.", "6."]}
    >>> checked = macpo.check(pl.DataFrame(rows), trainer="trl")
    >>> checked.fit, checked.findings.filter(level="error")["rows"].to_list()
    (False, [1])
    """
    from macpo_data.loading.load import load_settings
    from macpo_run import checking

    used = load_settings(_sets(columns, None))
    look = checking.check(_opened(data), used, trainer, tests, tokenizer, max_length)
    readings = [(each.trainer, each.reads, each.how) for each in look.readings]
    findings = [(each.level, each.what, each.count, each.row) for each in look.findings]
    return Checked(
        look.fit,
        pl.DataFrame(readings, schema={"trainer": pl.String, "reads": pl.Boolean,
                                       "how": pl.String}, orient="row"),
        pl.DataFrame(findings, schema={"level": pl.String, "what": pl.String, "rows": pl.Int64,
                                    "first": pl.Int64}, orient="row"),
    )  # fmt: skip


def convert(
    data: Data,
    trainer: str,
    to: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    settings: Settings | None = None,
) -> Path:
    """Write preference data in the form of one trainer, as `macpo convert` does.

    Args:
        data: of any form.
        trainer: whose form: trl, axolotl, llama-factory, openrlhf and others.
        to: a new folder, which appears when it is whole: the data, the snippet for the trainer's
            own settings, and a README with what became of the rows.
        columns: which columns hold what, where their names are not the usual ones.
        settings: by dotted key; {"chat_template": "none"} writes rendered text as it is.

    Returns:
        The folder.

    Raises:
        MacpoError: there is no such trainer, the data cannot be read, or the folder is in use.

    >>> import macpo, polars as pl
    >>> rows = {"q": ["2 + 2?"], "good": ["4."], "bad": ["5."]}
    >>> names = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    >>> folder = macpo.convert(pl.DataFrame(rows), "axolotl", "for_axolotl", columns=names)
    >>> sorted(path.name for path in folder.iterdir())
    ['README.md', 'config.yaml', 'train.jsonl']
    """
    from macpo_data.loading.load import load_settings
    from macpo_run import converting

    used = load_settings(_sets(columns, settings))
    converting.convert(_opened(data), used, trainer, Path(to))
    return Path(to)


def _sets(columns: Mapping[str, str] | None, settings: Settings | None) -> list[str]:
    return as_sets({**(settings or {}), **{f"columns.{k}": v for k, v in (columns or {}).items()}})


def _frame(data: pl.DataFrame | datasets.Dataset) -> pl.DataFrame:
    """Rows as a frame.

    Raises:
        DataError: they are of another kind.
    """
    if isinstance(data, pl.DataFrame):
        return data
    if hasattr(data, "to_polars"):
        frame: pl.DataFrame = data.to_polars()
        return frame
    raise DataError(
        f"{type(data).__name__} is no frame: give a polars DataFrame, a datasets.Dataset, a file, "
        "a folder, or org/name on the Hub"
    )


def _opened(data: Data) -> Dataset | Source:
    """Data as whoever judges rows takes them."""
    from macpo_data.sources.ingest.files import BATCH, as_records
    from macpo_data.sources.ingest.json_text import Record
    from macpo_data.sources.ingest.splits import Dataset, Source

    if isinstance(data, str | Path):
        return Dataset(str(data))
    frame = _frame(data)

    def batches() -> Iterator[list[Record]]:
        for part in frame.iter_slices(BATCH):
            yield as_records(part.to_arrow())

    return Source(FRAME, batches())


def _messages(rows: pl.DataFrame) -> pl.Expr:
    """The column `prompt` as MESSAGES; text is one turn of a user.

    Raises:
        DataError: it is neither.
    """
    kind = rows.schema["prompt"]
    if kind == pl.String:
        turn = pl.struct(role=pl.lit("user"), content=pl.col("prompt"))
        return pl.concat_list(turn).cast(MESSAGES).alias("prompt")
    fields = {field.name for field in getattr(getattr(kind, "inner", None), "fields", [])}
    if not {"role", "content"} <= fields:
        raise DataError(f"{FRAME}: prompt is {kind}; give text, or messages with role and content")
    turn = pl.struct(role=pl.element().struct["role"], content=pl.element().struct["content"])
    return pl.col("prompt").list.eval(turn).cast(MESSAGES)


def _samples(rows: pl.DataFrame) -> pl.DataFrame:
    """Answers as SAMPLES with SCORES; what is not said of them is as usual."""
    from macpo_data.schema import prompt_id
    from macpo_data.text import repetition

    given = set(rows.columns)
    if "prompt_id" not in given:
        if "prompt" not in given:
            raise DataError(f"{FRAME} has no column prompt_id or prompt: whose answers are these?")
        prompts = rows.select(_messages(rows))["prompt"].to_list()
        rows = rows.with_columns(
            prompt_id=pl.Series(list(map(prompt_id, prompts)), dtype=pl.String)
        )
    texts = rows["response"].to_list()
    usual: dict[str, Any] = {
        "agent": pl.lit(""),
        "policy": pl.lit(""),
        "draw": pl.lit(0, pl.Int64),
        "finish_reason": pl.lit("stop"),
        "repetition": pl.Series([repetition(text or "") for text in texts], dtype=pl.Float64),
        **{name: pl.lit(None, kind) for name, kind in SCORES.items()},
    }
    rows = rows.with_columns(**{name: value for name, value in usual.items() if name not in given})
    return rows.select(pl.col(name).cast(kind) for name, kind in {**SAMPLES, **SCORES}.items())


def _scores(
    rows: pl.DataFrame,
    base: str,
    adapter: str | Path | None,
    settings: TrainSettings,
    progress: Progress,
) -> pl.DataFrame:
    """SCORES of the rows, by a process of its own where a model is loaded."""
    from macpo_data.engines.choose import pick
    from macpo_data.engines.protocol import Voice
    from macpo_data.generation import scoring
    from macpo_data.models import base as bases
    from macpo_data.models.weights import weights_sha256
    from macpo_data.models.worker import Worker
    from macpo_data.recipe.agents import Agent
    from macpo_run.adapter_places import AdapterPlace
    from macpo_run.training import make_bases

    agent = Agent(role="student", base=base, chat_template=settings.chat_template,
                  trust_remote_code=settings.trust_remote_code)  # fmt: skip
    folder = None if adapter is None else AdapterPlace.of(str(adapter)).fetch()
    fingerprint = weights_sha256(folder) if folder else base
    voice = Voice(None if folder is None else str(folder), settings.chat_template, fingerprint)
    if settings.engine.name == "fake":
        with progress(f"scoring under {base}") as report:
            return scoring.score(report, settings.engine, bases.Base(base, None), voice, rows)
    pinned = bases.Base(base, bases.resolve(agent), agent.trust_remote_code)
    make_bases([base], progress)
    engine = pick(settings.engine, "forward")
    with progress(f"scoring under {base}") as report, Worker(base) as worker:
        scored: pl.DataFrame = worker.call(
            "macpo_data.generation.scoring:score", engine, pinned, voice, rows, report=report
        )
    return scored
