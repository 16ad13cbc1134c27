"""What `macpo convert` writes, read by each trainer's own loader with the settings beside it.

    python -m tests.conformance.run converted [TRAINER ...]

Each row of rows.py is converted alone first, which says whether the form takes it or names why
not; then all together. All that were taken have to come out of the loader, in order, with prompt,
chosen, rejected, tools and calls as they were.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from typer.testing import CliRunner

from conformance.loaders import tokenizer
from conformance.readers import TORCHTUNE, stand_in
from conformance.rows import FINE_TUNING, PAIRS, RENDERED
from macpo.cli import app
from macpo_data.forms.registry import targets
from macpo_data.sources.ingest.json_text import Record

Seen = tuple[str, str, str]  # what is trained on: prompt, chosen, rejected (empty: fine-tuning)
NONE = ("--set", "chat_template=none")


def convert(records: list[Record], trainer: str, to: Path, *options: str) -> str | None:
    """Convert records; None, or why none of them can be written."""
    source = to.with_suffix(".jsonl")
    source.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    words = ["convert", str(source), "--for", trainer, "--to", str(to), *options]
    done = CliRunner().invoke(app, words)
    if done.exit_code == 0:
        return None
    if refused := re.search(r"no row can be written for .*: row 0: (.*)", str(done.exception)):
        return refused[1]
    raise done.exception or AssertionError(done.output)


def config(folder: Path) -> Any:
    """The settings that convert wrote: a configuration, or the words of a command."""
    text = folder / "config.yaml"
    if text.is_file():
        return yaml.safe_load(text.read_text())
    words = shlex.split((folder / "command.txt").read_text())
    options = [at for at, word in enumerate(words) if word.startswith("--")]
    ends = [*options[1:], len(words)]
    return {words[a].lstrip("-"): words[a + 1 : b] for a, b in zip(options, ends, strict=True)}


def plain(message: Record) -> Record:
    """A message without what is none; of calls name and arguments, which all trainers have."""
    held = {k: v for k, v in message.items() if v is not None and k != "tool_call_id"}
    if calls := held.pop("tool_calls", None):
        named = [call.get("function", call) for call in calls]
        held["tool_calls"] = [
            {"name": c["name"], "arguments": _value(c["arguments"])} for c in named
        ]
    return held


def _value(arguments: Any) -> Any:
    return json.loads(arguments) if isinstance(arguments, str) else arguments


def seen(known: Any, prompt: list[Record], sides: list[list[Record]], tools: Any) -> Seen:
    """A row as it is trained on, by the template of the tests."""
    tools = json.loads(tools) if isinstance(tools, str) and tools else tools or None
    turns = [plain(message) for message in prompt]
    more = {"tools": tools, "tokenize": False}
    first = known.apply_chat_template(turns, add_generation_prompt=True, **more)
    whole = [
        known.apply_chat_template([*turns, *map(plain, side)], **more)[len(first) :]
        for side in sides
    ]
    return first, whole[0], whole[1] if len(whole) > 1 else ""


def expected(known: Any, record: Record) -> Seen:
    if isinstance(record["prompt"], str):
        return record["prompt"], record["chosen"], record["rejected"]
    sides = [record[name] for name in ("chosen", "rejected", "completion") if name in record]
    return seen(known, record["prompt"], sides, record.get("tools"))


def _named_call(text: str) -> str:
    """Calls in a text of the template, as `plain` has them: whole ones are JSON as well."""

    def named(match: re.Match[str]) -> str:
        calls = plain({"tool_calls": json.loads(match[1])})["tool_calls"]
        return f"[call]{json.dumps(calls, ensure_ascii=False)}<|end|>"

    return re.sub(r"\[call\](\[.*?\])<\|end\|>", named, text)


def _folder(place: str) -> Any:
    from datasets import load_dataset

    return load_dataset(place, split="train")


def trl(folder: Path, known: Any, kind: str) -> Iterator[Seen]:
    """As `trl dpo` prepares the folder."""
    from trl import DPOTrainer

    rows = _folder(config(folder)["dataset_name"][0])
    settings = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="")
    trainer: Any = SimpleNamespace(_tokenizer=known)
    ready = DPOTrainer._prepare_dataset(trainer, rows, known, settings, "train")
    for own, row in zip(rows, ready, strict=True):
        sides = [known.decode(row[f"{side}_ids"]) for side in ("chosen", "rejected")]
        if kind == "rendered":  # it ends a text that has no end of its own
            ends = [str(own[side]).endswith(known.eos_token) for side in ("chosen", "rejected")]
            sides = [text if end else text.removesuffix(known.eos_token)
                     for text, end in zip(sides, ends, strict=True)]  # fmt: skip
        yield known.decode(row["prompt_ids"]), sides[0], sides[1]


def openrlhf(folder: Path, known: Any, kind: str) -> Iterator[Seen]:
    """Its loading and preprocessing, by the words of the command."""
    from openrlhf.datasets.reward_dataset import preprocess_data
    from openrlhf.datasets.utils import blending_datasets

    words = config(folder)
    strategy: Any = SimpleNamespace(print=lambda *_: None, is_rank_0=lambda: False,
                                    args=SimpleNamespace(use_ms=False))  # fmt: skip
    template = known.apply_chat_template if "data.apply_chat_template" in words else None
    keys = [words[f"data.{name}_key"][0] for name in ("prompt", "chosen", "rejected")]
    for row in blending_datasets(words["data.dataset"][0], None, strategy):
        prompt, chosen, rejected, _ = preprocess_data(row, None, *keys, template, is_dpo=True)
        yield prompt, chosen, rejected


def axolotl(folder: Path, known: Any, kind: str) -> Iterator[Seen]:
    """Its loading by the configuration, and the strategy that it names."""
    # Its loaders of models and tokenizers, and what samplers, telemetry and downloads want.
    stand_in("axolotl.loaders", "requests", "requests.exceptions", "requests.adapters", "numba")
    from axolotl.prompt_strategies.dpo import load
    from axolotl.utils.data.shared import load_dataset_with_config
    from axolotl.utils.dict import DictDefault

    whole = DictDefault({"chat_template": "tokenizer_default", **config(folder)})
    (entry,) = whole.datasets
    rows = load_dataset_with_config(entry, False, streaming=False)
    strategy = load(entry.type, whole, dataset_idx=0)
    transform = strategy[0] if isinstance(strategy, tuple) else strategy
    for row in rows:
        row = transform(row, tokenizer=known)
        yield row["prompt"], row["chosen"], row["rejected"]


def alignment_handbook(folder: Path, known: Any, kind: str) -> Iterator[Seen]:
    """Its loading of the folder with the columns that the configuration names."""
    stand_in("alignment.decontaminate", "alignment.model_utils", "alignment.release")
    from alignment.data import apply_chat_template, get_datasets

    (entry,) = config(folder)["dataset_mixture"]["datasets"]
    mixed = get_datasets({entry["id"]: 1.0}, [entry["split"]], None, entry["columns"],
                         shuffle=False)  # fmt: skip
    for row in mixed["train"]:
        row = apply_chat_template(row, known, "dpo", auto_insert_empty_system_msg=False)
        opening = "<|assistant|>"  # it renders the prompt without what opens the answer
        yield (row["text_prompt"] + opening, row["text_chosen"].removeprefix(opening),
               row["text_rejected"].removeprefix(opening))  # fmt: skip


def torchtune(folder: Path, known: Any, kind: str) -> Iterator[Seen]:
    """Its dataset as the configuration builds it, up to the messages that tokenizers take."""
    stand_in(*TORCHTUNE)
    named = config(folder)["dataset"]
    module, _, component = named.pop("_component_").rpartition(".")
    rows = getattr(importlib.import_module(module), component)(None, **named)
    for row in rows._data:
        both = rows._message_transform(row)
        turns = [[{"role": m.role, "content": m.text_content} for m in both[side]]
                 for side in ("chosen", "rejected")]  # fmt: skip
        assert turns[0][:-1] == turns[1][:-1]
        yield seen(known, turns[0][:-1], [turns[0][-1:], turns[1][-1:]], None)


def llamafactory(folder: Path, known: Any, kind: str) -> Iterator[Seen]:
    """Its parser, loader and converter; and its own formatters take each call and each tool."""
    stand_in("torchaudio")
    from llamafactory.data.formatter import FunctionFormatter, ToolFormatter
    from llamafactory.data.loader import _load_single_dataset
    from llamafactory.data.parser import get_dataset_list

    words = config(folder)
    place = words["dataset_dir"]
    (attribute,) = get_dataset_list([words["dataset"]], place)
    data = SimpleNamespace(
        dataset_dir=place, streaming=False, max_samples=None, preprocessing_num_workers=None,
        overwrite_cache=True, media_dir=None,
    )  # fmt: skip
    model = SimpleNamespace(cache_dir=None, hf_hub_token=None)
    training = SimpleNamespace(local_process_index=0, dataloader_num_workers=0)
    calls = FunctionFormatter(slots=["{{content}}"], tool_format="qwen")
    offered = ToolFormatter(tool_format="qwen")

    def message(turn: Record) -> Record:
        if turn["role"] != "function":
            roles = {"observation": "tool"}
            return {"role": roles.get(turn["role"], turn["role"]), "content": turn["content"]}
        calls.apply(content=turn["content"])
        value = json.loads(turn["content"])
        listed = value if isinstance(value, list) else [value]
        return {"role": "assistant", "content": "", "tool_calls": listed}

    for row in _load_single_dataset(attribute, model, data, training):
        enough = 2 if kind == "pairs" else 1
        if len(row["_prompt"]) % 2 != 1 or len(row["_response"]) < enough:
            continue  # as its processors do
        if row["_tools"]:
            offered.apply(content=row["_tools"])
        system = [{"role": "system", "content": row["_system"]}] if row["_system"] else []
        prompt = [*system, *map(message, row["_prompt"])]
        yield seen(known, prompt, [[message(each)] for each in row["_response"]], row["_tools"])


def ms_swift(folder: Path, known: Any, kind: str) -> Iterator[Seen]:
    """Its loading of the file, and the inputs that its templates take; its own parser of calls."""
    import peft  # noqa: F401  # before what stands in for others

    stand_in(
        "modelscope", "modelscope.hub", "modelscope.hub.api", "modelscope.hub.constants",
        "modelscope.hub.file_download", "modelscope.hub.repository", "modelscope.hub.utils",
        "modelscope.hub.utils.utils", "modelscope.utils", "modelscope.utils.config_ds",
        "modelscope.utils.logger", "modelscope.utils.repo_utils", "requests",
        "requests.exceptions", "requests.adapters", "urllib3", "urllib3.util",
        "urllib3.util.retry", "aiohttp",
    )  # fmt: skip
    from swift.agent_template.base import BaseAgentTemplate
    from swift.dataset import load_dataset
    from swift.template.template_inputs import TemplateInputs

    def messages(inputs: Any) -> list[Record]:
        system = [{"role": "system", "content": inputs.system}] if inputs.system else []
        listed: list[Record] = system
        for turn in inputs.messages:
            if turn["role"] != "tool_call":
                listed.append({"role": turn["role"], "content": turn["content"]})
                continue
            call = BaseAgentTemplate._parse_tool_call(turn["content"])
            if listed[-1]["role"] != "assistant":
                listed.append({"role": "assistant", "content": ""})
            listed[-1].setdefault("tool_calls", []).append(call)
        return listed

    rows, _ = load_dataset(config(folder)["dataset"][0], shuffle=False)
    for row in rows:
        inputs = TemplateInputs.from_dict({k: v for k, v in row.items() if v is not None})
        chosen = messages(inputs.chosen)
        if inputs.rejected is None:
            at = max(i for i, m in enumerate(chosen) if m["role"] in ("user", "tool"))
            yield seen(known, chosen[: at + 1], [chosen[at + 1 :]], inputs.chosen.tools)
            continue
        rejected = messages(inputs.rejected)
        assert chosen[:-1] == rejected[:-1] and inputs.chosen.tools == inputs.rejected.tools
        yield seen(known, chosen[:-1], [chosen[-1:], rejected[-1:]], inputs.chosen.tools)


Reader = Callable[[Path, Any, str], Iterator[Seen]]
# Of each package: its targets, and the kinds of data that its loader is asked for.
READERS: dict[str, tuple[Reader, tuple[str, ...], tuple[str, ...]]] = {
    "trl": (trl, ("trl",), ("pairs", "rendered")),
    "openrlhf": (openrlhf, ("openrlhf",), ("pairs", "rendered")),
    "axolotl": (axolotl, ("axolotl",), ("pairs", "rendered")),
    "alignment_handbook": (alignment_handbook, ("alignment-handbook",), ("pairs",)),
    "torchtune": (torchtune, ("torchtune",), ("pairs",)),
    "llamafactory": (llamafactory, ("llama-factory", "llama-factory-alpaca"),
                     ("pairs", "fine-tuning")),
    "ms_swift": (ms_swift, ("ms-swift",), ("pairs", "fine-tuning")),
}  # fmt: skip
ROWS = {"pairs": PAIRS, "rendered": RENDERED, "fine-tuning": FINE_TUNING}


def compare(reader: Reader, target: str, kind: str, folder: Path, known: Any) -> list[str]:
    """What the loader does not give as it was."""
    options, rows = NONE if kind == "rendered" else (), ROWS[kind]
    place = folder / f"{target} {kind}"
    place.mkdir()
    left_out = {
        name: why
        for at, (name, record) in enumerate(rows.items())
        if (why := convert([record], target, place / str(at), *options)) is not None
    }
    taken = {name: record for name, record in rows.items() if name not in left_out}
    convert([*rows.values()], target, place / "all", *options)
    came = list(reader(place / "all", known, kind))
    wrong = [] if len(came) == len(taken) else [f"{len(came)} rows of {len(taken)}"]
    for (name, record), got in zip(taken.items(), came, strict=False):
        wanted = expected(known, record)
        if kind == "fine-tuning":
            # Where the answer begins is not said by all: the whole is compared.
            whole = ["".join(map(_named_call, each)) for each in (wanted, got)]
            same = whole[0] == whole[1]
        else:
            same = [*map(_named_call, wanted)] == [*map(_named_call, got)]
        if not same:
            wrong.append(f"{name}:\n    {wanted}\n    {got}")
    named = ", ".join(sorted({re.sub(r".*\(1 (\w+)\).*", r"\1", why) for why in left_out.values()}))
    print(f"{target}: {len(came)} of {len(rows)} rows of {kind} read as they were"
          + (f"; convert leaves out, by name: {named}" if named else ""))  # fmt: skip
    return wrong


def main() -> None:
    """Compare for each target and kind; exit with 1 where something came out otherwise."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    reader, names, kinds = READERS[name]
    known, wrong = tokenizer(), 0
    assert {*names} <= targets().keys()
    for target in names:
        for kind in kinds:
            differ = compare(reader, target, kind, folder, known)
            wrong += len(differ)
            for each in differ:
                print(f"  {kind}: {each}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    main()
