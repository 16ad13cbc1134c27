"""LLaMA-Factory: it finds datasets by their names in a file dataset_info.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from macpo_data.forms.calls import calls
from macpo_data.forms.shape import Shape
from macpo_data.forms.trainer import (
    CALLS,
    CONVERSATIONS,
    DATA_FILE,
    RENDERED_AGAIN,
    SEVERAL,
    TOOLS,
    WANTS_CONVERSATIONS,
    Answer,
    Form,
    Published,
    Trainer,
    Tree,
    Use,
)
from macpo_data.schema import MESSAGE, MESSAGES
from macpo_data.sources.ingest.canonical import Message, Reason, Refusal, Row, as_json, text
from macpo_data.sources.ingest.json_text import Record

SHAREGPT = Published(
    record=lambda row: {
        "prompt": row.prompt,
        "chosen": row.chosen and row.chosen[0],
        "rejected": row.rejected and row.rejected[0],
    },
    suffix="_sharegpt",
    table={"prompt": MESSAGES, "chosen": MESSAGE, "rejected": MESSAGE, "prompt_id": pl.String()},
    words="each side one message.",
)
_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def _turn(message: Message) -> Record:
    """A message in ShareGPT's words; calls of tools are a turn of their own, as JSON."""
    listed = calls(message)
    if not listed:
        return {"from": _SPEAKERS[message["role"]], "value": message["content"]}
    if message["content"]:
        what = "a message calls a tool and says something, and its turn function_call holds one"
        raise Refusal(Reason.TOOL_CALL, what)
    return {
        "from": "function_call",
        "value": as_json(listed[0] if len(listed) == 1 else listed),
    }


def _turns(messages: list[Message]) -> list[Record]:
    """Turns in the order that it wants: what is asked or observed, what is answered or called."""
    heard = [m["role"] in ("user", "tool") for m in messages if m["role"] != "system"]
    if odd := next((at for at, each in enumerate(heard) if each == at % 2), None):
        if heard[odd]:
            raise Refusal(Reason.TOOL_RESULT, "several results of tools follow each other")
        raise Refusal(
            Reason.SEVERAL_MESSAGES, "several messages of the assistant follow each other"
        )
    return [_turn(message) for message in messages]


def _offered(row: Row) -> Record:
    """The tools as JSON text; every row has them, as it looks for the column in each."""
    return {"tools": as_json(row.tools) if row.tools else ""}


def _ranked(row: Row) -> Record:
    sides = {"chosen": row.chosen, "rejected": row.rejected}
    for side in sides.values():
        _turns([*row.prompt, *(side or [])])
    answers = {name: _turn(side[0]) for name, side in sides.items() if side}
    return {"conversations": _turns(row.prompt), **answers, **_offered(row)}


# ShareGPT's own words, for `macpo convert`: what is published has no calls.
RANKED = Form(record=_ranked)
TALKS = Form(
    record=lambda row: {
        "conversations": _turns([*row.prompt, *(row.chosen or [])]),
        **_offered(row),
    },
    joins=True,
)
TOOLED = frozenset({Reason.TOOL_CALL, Reason.TOOL_RESULT}) | TOOLS
_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}


def _reads(shape: Shape) -> Answer:
    if shape.rendered:
        return False, RENDERED_AGAIN
    if shape.prompt == shape.sides == "text":
        # It joins history, instruction and input as the door does, with the system turn before.
        lost = shape.loses(Reason.TOOLS, beside=True)
        return (False, lost) if lost else (True, f"formatting: alpaca, {_columns(shape)}")
    if shape.prompt == shape.sides == "tagged" and shape.one_each:
        # A call is a turn of its own there.
        lost = shape.loses(
            Reason.TOOLS, Reason.TOOL_CALL, Reason.TOOL_RESULT, beside="history" not in shape.beside
        )
        return (False, lost) if lost else (True, f"formatting: sharegpt, {_columns(shape)}")
    if shape.prompt == "messages" and shape.sides == "message":
        lost = shape.loses(Reason.TOOLS, beside="history" not in shape.beside)
        return (False, lost) if lost else (True, f"formatting: sharegpt, {_columns(shape)}")
    return False, "wants a text each, or each side as one message; as lists, rows vanish"


def _columns(shape: Shape) -> str:
    """Which columns hold what, as dataset_info.json names them; no other is read."""
    names = {"input": "query"}
    prompt = "prompt" if shape.prompt == "text" else "messages"
    columns = {
        prompt: shape.columns.prompt,
        **{names.get(what, what): name for what, name in shape.beside.items()},
        "chosen": shape.columns.chosen,
        "rejected": shape.columns.rejected,
    }
    listed = ", ".join(f"{what}: {name}" for what, name in columns.items())
    return f"ranking: true, columns: {{{listed}}}"


def _fine_tunes(shape: Shape) -> Answer:
    if shape.conversations:
        return True, "stage: sft, formatting: sharegpt"
    if shape.chosen == "tagged":
        return True, f"stage: sft, formatting: sharegpt, columns.messages: {shape.columns.chosen}"
    if shape.prompt == shape.chosen == "text":
        return True, f"stage: sft, formatting: alpaca, columns.prompt: {shape.columns.prompt}"
    return False, WANTS_CONVERSATIONS


def _dataset_info(tree: Tree, repo: str | None) -> dict[str, bytes]:
    """Each dataset by name, from the Hub, and once more as NAME_local for a copy on disk."""
    info: dict[str, Any] = {}
    for name, configs in sorted(tree.items()):
        pairs = f"{name}{SHAREGPT.suffix}" in configs
        config = f"{name}{(SHAREGPT if pairs else CONVERSATIONS).suffix}"
        shape = _sharegpt(pairs)
        if repo is not None:
            info[name] = {"hf_hub_url": repo, "subset": config, **shape}
        # A copy of the tree is read by its folder: LLaMA-Factory takes all files in it.
        folder = str(Path(configs[config][0]).parent)
        info[f"{name}_local"] = {"file_name": folder, **shape}
    return _as_file(info)


def _sharegpt(pairs: bool) -> dict[str, Any]:
    """How a dataset of messages is described."""
    ranked = {"messages": "prompt", "chosen": "chosen", "rejected": "rejected"}
    return {
        "formatting": "sharegpt",
        **({"ranking": True} if pairs else {}),
        "columns": ranked if pairs else {"messages": "messages"},
        "tags": _TAGS,
    }


def _own(pairs: bool) -> dict[str, Any]:
    """How a dataset in ShareGPT's own words is described."""
    answers = {"chosen": "chosen", "rejected": "rejected"} if pairs else {}
    columns = {"messages": "conversations", **answers, "tools": "tools"}
    return {"formatting": "sharegpt", "columns": columns} | ({"ranking": True} if pairs else {})


def _alpaca(pairs: bool) -> dict[str, Any]:
    """How a dataset of the Alpaca form is described."""
    asked = {"prompt": "instruction", "system": "system", "history": "history"}
    answers = {"chosen": "chosen", "rejected": "rejected"} if pairs else {"response": "output"}
    shape = {"formatting": "alpaca", "columns": asked | answers}
    return shape | ({"ranking": True} if pairs else {})


def _described(shape: dict[str, Any]) -> Callable[[str], dict[str, bytes]]:
    """The description of one data file, by the name of its dataset."""
    return lambda name: _as_file({name: {"file_name": DATA_FILE, **shape}})


def _as_file(info: dict[str, Any]) -> dict[str, bytes]:
    described = json.dumps(info, indent=1, sort_keys=True, ensure_ascii=False)
    return {"dataset_info.json": f"{described}\n".encode()}


def _asked(row: Row) -> Record:
    """The prompt of a row of plain text: a system turn, pairs of earlier turns, the last one."""
    system, turns = (
        (row.prompt[0], row.prompt[1:]) if row.prompt[0]["role"] == "system" else (None, row.prompt)
    )
    contents = [turn["content"] for turn in turns]
    return {
        "instruction": contents[-1],
        "system": system["content"] if system else "",
        "history": [list(pair) for pair in zip(contents[:-1:2], contents[1:-1:2], strict=True)],
    }


PAIRS_OF_TEXT = Form(
    record=lambda row: {**_asked(row), "chosen": text(row.chosen), "rejected": text(row.rejected)}
)
OUTPUT = Form(record=lambda row: {**_asked(row), "output": text(row.chosen)})


def _reads_text(shape: Shape) -> Answer:
    reads = {"instruction", "chosen", "rejected"} <= shape.kinds.keys() and shape.sides == "text"
    return reads, "formatting: alpaca, ranking: true"


def _fine_tunes_text(shape: Shape) -> Answer:
    return {"instruction", "output"} <= shape.kinds.keys(), "stage: sft, formatting: alpaca"


_PAIRS_SNIPPET = """\
stage: dpo
{% if config %}
dataset_dir: REMOTE:{{ place }}
dataset: {{ name }}
# a copy on disk: dataset_dir: FOLDER, dataset: {{ name }}_local
{% else %}
dataset_dir: {{ place }}
dataset: {{ name }}
{% endif %}
pref_beta: {{ beta }}
pref_ftx: {{ gamma }}"""
_SFT_SNIPPET = """\
stage: sft
{% if config %}
dataset_dir: REMOTE:{{ place }}
dataset: {{ name }}
# a copy on disk: dataset_dir: FOLDER, dataset: {{ name }}_local
{%- else %}
dataset_dir: {{ place }}
dataset: {{ name }}
{%- endif %}"""
TRAINER = Trainer(
    "llama-factory",
    "LLaMA-Factory",
    Use(
        SHAREGPT,
        _PAIRS_SNIPPET,
        _reads,
        takes=TOOLED,
        keys=CALLS,
        calls_whole=False,
        converted=RANKED,
        beside=_described(_own(pairs=True)),
    ),
    Use(
        CONVERSATIONS,
        _SFT_SNIPPET,
        _fine_tunes,
        takes=TOOLED | SEVERAL,
        keys=CALLS,
        calls_whole=False,
        converted=TALKS,
        beside=_described(_own(pairs=False)),
    ),
    files=_dataset_info,
)
ALPACA = Trainer(
    "llama-factory-alpaca",
    "LLaMA-Factory, pairs of plain text",
    Use(
        PAIRS_OF_TEXT,
        _PAIRS_SNIPPET,
        _reads_text,
        beside=_described(_alpaca(pairs=True)),
    ),
    Use(
        OUTPUT,
        _SFT_SNIPPET,
        _fine_tunes_text,
        beside=_described(_alpaca(pairs=False)),
    ),
)
