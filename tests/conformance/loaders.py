"""Each trainer's own loader on a file, by each way that it documents, up to the trained text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from conformance.readers import TORCHTUNE, stand_in
from macpo_data.sources.ingest.canonical import Row
from macpo_data.sources.ingest.detect import Layout
from macpo_data.sources.ingest.json_text import Record

END = "<|end|>"
TEMPLATE = (
    "{% if tools %}[tools]{{ tools|tojson }}{% endif %}{% for m in messages %}<|{{ m.role }}|>"
    "{{ m.content or '' }}{% if m.reasoning_content %}[thought]{{ m.reasoning_content }}{% endif %}"
    "{% if m.tool_calls %}[call]{{ m.tool_calls|tojson }}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
Triple = tuple[str, str, str]  # prompt, chosen and rejected as they are trained on


@dataclass(frozen=True)
class Case:
    """A file that people bring."""

    records: list[Record]
    rows: list[Row]  # canonical
    layout: Layout
    path: Path  # the records as JSON lines


def tokenizer() -> Any:
    """A real one, with a template that writes all that a message holds."""
    from macpo_train.pretrain import train_tokenizer

    trained = train_tokenizer()
    trained.chat_template = TEMPLATE
    return trained


def _turns(row_like: list[tuple[str, str]]) -> str:
    """Turns of which role and content alone are left."""
    return "".join(f"<|{role}|>{content}{END}" for role, content in row_like)


def _as_triple(
    prompt: list[tuple[str, str]], chosen: list[tuple[str, str]], rejected: list[tuple[str, str]]
) -> Triple:
    opened = f"{_turns(prompt)}<|assistant|>"
    sides = [_turns(side).removeprefix("<|assistant|>") for side in (chosen, rejected)]
    return opened, sides[0], sides[1]


def _loaded(case: Case) -> Any:
    from datasets import load_dataset

    return load_dataset("json", data_files=str(case.path), split="train")


def trl(case: Case, known: Any) -> Iterator[Callable[[], list[Triple]]]:
    """What its DPOTrainer makes of a dataset before the first step."""
    from trl import DPOTrainer

    def prepared() -> list[Triple]:
        rows = _loaded(case)
        assert not {"image", "images"} & set(rows.column_names), "a text model refuses these"
        settings = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="")
        trainer: Any = SimpleNamespace(_tokenizer=known)
        ready = DPOTrainer._prepare_dataset(trainer, rows, known, settings, "train")
        return [
            (known.decode(row["prompt_ids"]),
             *(_without_eos(known, row, record, side) for side in ("chosen", "rejected")))
            for row, record in zip(ready, case.records, strict=True)
        ]  # fmt: skip

    yield prepared


def _without_eos(known: Any, row: Record, record: Record, side: str) -> str:
    """An answer without the end that TRL adds to text which has none."""
    text = str(known.decode(row[f"{side}_ids"]))
    own = str(record[side]).endswith(known.eos_token)
    return text if own else text.removesuffix(known.eos_token)


def openrlhf(case: Case, known: Any) -> Iterator[Callable[[], list[Triple]]]:
    """Its preprocessing: with a template or without, the prompt apart or inside."""
    from openrlhf.datasets.reward_dataset import preprocess_data

    names = case.layout.columns

    def way(template: Any, prompt: str | None) -> Callable[[], list[Triple]]:
        def read() -> list[Triple]:
            rows = [preprocess_data(row, None, prompt, names.chosen, names.rejected, template,
                                    is_dpo=True) for row in _loaded(case)]  # fmt: skip
            return [(row[0], row[1], row[2]) for row in rows]

        return read

    yield way(known.apply_chat_template, names.prompt)
    yield way(known.apply_chat_template, None)
    yield way(None, names.prompt)


def axolotl(case: Case, known: Any) -> Iterator[Callable[[], list[Triple]]]:
    """Its strategies for DPO that take the tokenizer's own template, or none."""
    from axolotl.prompt_strategies.dpo import chat_template, passthrough
    from axolotl.utils.dict import DictDefault

    names = case.layout.columns
    fields = {"field_messages": names.prompt, "field_chosen": names.chosen,
              "field_rejected": names.rejected, "chat_template": "tokenizer_default"}  # fmt: skip
    tags = {"message_property_mappings": {"role": "from", "content": "value"},
            "roles": {"user": ["human"], "assistant": ["gpt"], "system": ["system"]}}  # fmt: skip

    def way(strategy: Any, **more: Any) -> Callable[[], list[Triple]]:
        def read() -> list[Triple]:
            listed = {"chat_template": "tokenizer_default", "datasets": [{**fields, **more}]}
            transform, _ = strategy(DictDefault(listed))
            rows = [transform(row, tokenizer=known) for row in _loaded(case)]
            return [(row["prompt"], row["chosen"], row["rejected"]) for row in rows]

        return read

    yield way(chat_template.default)
    yield way(chat_template.default, **tags)
    yield way(chat_template.argilla_chat)
    yield lambda: [(r["prompt"], r["chosen"], r["rejected"]) for r in _passed(passthrough, case)]


def _passed(strategy: Any, case: Case) -> list[Record]:
    transform = strategy.default({})
    return [transform(row) for row in _loaded(case)]


def alignment_handbook(case: Case, known: Any) -> Iterator[Callable[[], list[Triple]]]:
    """Its apply_chat_template for DPO, on the columns that its configuration keeps."""
    stand_in("alignment.decontaminate", "alignment.model_utils", "alignment.release")
    from alignment.data import apply_chat_template

    def way(*columns: str) -> Callable[[], list[Triple]]:
        def read() -> list[Triple]:
            rows = [
                apply_chat_template({name: row[name] for name in columns}, known, "dpo",
                                    auto_insert_empty_system_msg=False)
                for row in _loaded(case)
            ]  # fmt: skip
            # It renders a prompt without what opens the answer, and the answer with it.
            opening = "<|assistant|>"
            return [
                (row["text_prompt"] + opening, row["text_chosen"].removeprefix(opening),
                 row["text_rejected"].removeprefix(opening))
                for row in rows
            ]  # fmt: skip

        return read

    yield way("chosen", "rejected")
    yield way("prompt", "chosen", "rejected")


def torchtune(case: Case, known: Any) -> Iterator[Callable[[], list[Triple]]]:
    """Its two datasets of pairs, up to the messages that its tokenizers take."""
    stand_in(*TORCHTUNE)
    from torchtune.datasets import preference_dataset, stack_exchange_paired_dataset

    names = case.layout.columns
    sides = {"chosen": names.chosen, "rejected": names.rejected}

    def way(dataset: Any, columns: Mapping[str, str | None]) -> Callable[[], list[Triple]]:
        def read() -> list[Triple]:
            rows = dataset(None, source="json", data_files=str(case.path), column_map=columns)
            triples = []
            for row in rows._data:
                seen = rows._message_transform(row)
                turns = [[(m.role, m.text_content) for m in seen[side]] for side in sides]
                at = len(turns[0]) - 1
                assert turns[0][:at] == turns[1][:at], "the sides answer different prompts"
                triples.append(_as_triple(turns[0][:at], turns[0][at:], turns[1][at:]))
            return triples

        return read

    yield way(preference_dataset, sides)
    yield way(stack_exchange_paired_dataset, {"prompt": names.prompt, **sides})


def llamafactory(case: Case, known: Any) -> Iterator[Callable[[], list[Triple]]]:
    """Its parser, loader and converter, and what its pairwise processor drops."""
    stand_in("torchaudio")
    from llamafactory.data.loader import _load_single_dataset
    from llamafactory.data.parser import get_dataset_list

    layout = case.layout
    optional = {"system": layout.system, "tools": layout.tools}
    more = {k: name for k, name in optional.items() if name in layout.kinds}
    sides = {"chosen": layout.chosen, "rejected": layout.rejected}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user",
            "assistant_tag": "assistant", "system_tag": "system"}  # fmt: skip

    def way(**shape: Any) -> Callable[[], list[Triple]]:
        def read() -> list[Triple]:
            info = {"x": {"file_name": case.path.name, "ranking": True, **shape}}
            (attribute,) = get_dataset_list(["x"], info)
            data = SimpleNamespace(
                dataset_dir=str(case.path.parent), streaming=False, max_samples=None,
                preprocessing_num_workers=None, overwrite_cache=True, media_dir=None,
            )  # fmt: skip
            model = SimpleNamespace(cache_dir=None, hf_hub_token=None)
            training = SimpleNamespace(local_process_index=0, dataloader_num_workers=0)
            triples = []
            for row in _load_single_dataset(attribute, model, data, training):
                if len(row["_prompt"]) % 2 != 1 or len(row["_response"]) < 2:
                    continue  # as its PairwiseDatasetProcessor does
                system = [("system", row["_system"])] if row["_system"] else []
                prompt = [*system, *((m["role"], m["content"]) for m in row["_prompt"])]
                chosen, rejected = ([(m["role"], m["content"])] for m in row["_response"])
                p, c, r = _as_triple(prompt, chosen, rejected)
                tools = f"[tools]{json.dumps(json.loads(row['_tools']))}" if row["_tools"] else ""
                triples.append((tools + p, c, r))
            return triples

        return read

    inside = {"query": layout.input, "history": layout.history}
    inside = {k: name for k, name in inside.items() if name in layout.kinds}
    yield way(formatting="alpaca", columns={"prompt": layout.prompt, **inside, **sides, **more})
    messages = {"messages": layout.prompt, **sides, **more}
    yield way(formatting="sharegpt", columns=messages, tags=tags)
    yield way(formatting="sharegpt", columns=messages)


Ways = Callable[[Case, Any], Iterator[Callable[[], list[Triple]]]]
LOADERS: dict[str, tuple[str, Ways]] = {
    "trl": ("trl", trl),
    "llamafactory": ("llama-factory", llamafactory),
    "torchtune": ("torchtune", torchtune),
    "openrlhf": ("openrlhf", openrlhf),
    "axolotl": ("axolotl", axolotl),
    "alignment_handbook": ("alignment-handbook", alignment_handbook),
}
