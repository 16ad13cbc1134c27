"""Whether `check` judges as the trainers do: their own loaders on every form that people bring.

    python -m tests.conformance.run forms [TRAINER ...]     # FORMS=DIR: a folder of more such files

Every form of `CASES` (and file of FORMS) is read by each way that a trainer documents, and what
comes out is compared with the canonical rows, text by text. `check` must say yes where one of the
ways reads it rightly, and no where none does. The records are handed over as JSON lines, so that
the columns are judged and not how a file is written.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conformance.cases import CASES
from conformance.loaders import LOADERS, Case, Triple, tokenizer
from macpo_data.errors import MacpoError
from macpo_data.forms.check import readings
from macpo_data.recipe.data import Columns
from macpo_data.sources.ingest import marks
from macpo_data.sources.ingest.canonical import BEYOND_TEXT, Reason, Row
from macpo_data.sources.ingest.door import open_rows
from macpo_data.sources.ingest.json_text import Record
from macpo_data.sources.ingest.splits import Source

ROWS = 20  # of a file, at most
NAMES = {"prompt": "question", "chosen": "better", "rejected": "worse"}  # where a file has others


def right(case: Case, triples: list[Triple], known: Any) -> bool:
    """Whether all rows came, each with all that it holds, and nothing twice."""
    if len(triples) != len(case.rows) or any(row.media for row in case.rows):
        return False  # text alone is not all of a row with an image
    return all(
        any(_same(triple, each) for each in _rightly(row, known)) or _as_text(triple, record, row)
        for record, row, triple in zip(case.records, case.rows, triples, strict=True)
    )


def _as_text(triple: Triple, record: Record, row: Row) -> bool:
    """Whether whole texts are trained on as they are, and split where the answer begins."""
    answers = [(side or [])[-1]["content"] for side in (row.chosen, row.rejected)]
    whole = [record.get("chosen"), record.get("rejected")]
    if not all(message["content"] in triple[0] for message in row.prompt):
        return False
    sides = triple[1:]
    return [triple[0] + side for side in sides] == whole and [s.strip() for s in sides] == answers


def _same(one: Triple, other: Triple) -> bool:
    return [a.strip() for a in one] == [b.strip() for b in other]


def _rightly(row: Row, known: Any) -> Iterator[Triple]:
    """How a row may be trained on: by a template, or one question and its answers as text."""
    chosen, rejected = row.chosen or [], row.rejected or []
    if not row.holds and len(row.prompt) == 1:
        yield row.prompt[0]["content"], chosen[0]["content"], rejected[0]["content"]
    if not marks.rendered(row):
        more = {"tools": row.tools, "tokenize": False}
        prompt = known.apply_chat_template(row.prompt, add_generation_prompt=True, **more)
        whole = [known.apply_chat_template([*row.prompt, *s], **more) for s in (chosen, rejected)]
        yield prompt, whole[0][len(prompt) :], whole[1][len(prompt) :]


def files(folder: Path) -> Iterator[tuple[str, Source]]:
    """The cases, and the files of the folder FORMS, as records."""
    from macpo_data.sources.ingest.files import is_data
    from macpo_data.sources.ingest.splits import Dataset, open_split

    for name, record in CASES.items():
        yield name, Source(name, iter([[record] * 3]))
    more = Path(os.environ["FORMS"]) if "FORMS" in os.environ else folder / "none"
    for path in sorted(more.glob("*")):
        if path.is_file() and is_data(path):
            yield path.name, open_split(Dataset(str(path)))


def main() -> None:
    """Compare verdict and loader for each file; exit with the number of those that differ."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    trainer, ways = LOADERS[name]
    known, differ, compared = tokenizer(), [], 0
    for at, (title, source) in enumerate(files(folder)):
        try:
            head = source.peek()[:ROWS]
            # What the trainer may say is its matter: the door takes all there is.
            columns = Columns(**{what: name for what, name in NAMES.items() if name in head[0]})
            rows = open_rows(Source(title, iter([head])), columns, takes=BEYOND_TEXT)
            judged = list(rows)
            verdict = next(each for each in readings(rows) if each.trainer == trainer)
        except MacpoError:
            continue  # the door refuses it, for everyone
        usable = [e.row for e in judged if e.row and e.reason in (None, Reason.RENDERED)]
        usable = [row for row in usable if row.rejected is not None]
        if len(usable) < len(judged) or not usable:
            continue  # rows that are wrong whoever reads them
        path = folder / f"{at}.jsonl"
        path.write_text("".join(f"{json.dumps(record)}\n" for record in head))
        case = Case(head, usable, rows.layout, path)
        reads, errors = False, []
        for way in ways(case, known):
            try:
                reads = reads or right(case, way(), known)
            except Exception as error:  # of any class: it is the trainer's own
                errors.append(f"{type(error).__name__}: {error}"[:100])
        compared += 1
        if reads != verdict.reads:
            differ.append(title)
            print(f"  {title}: check says {verdict.reads} ({verdict.how}); its own code reads it "
                  f"rightly: {reads}; {errors}")  # fmt: skip
    print(f"{name}: {compared - len(differ)} of {compared} forms judged as its own code reads them")
    sys.exit(bool(differ))


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    main()
