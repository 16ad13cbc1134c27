"""The forms that people bring: a row of each."""

from __future__ import annotations

import json
from typing import Any

from macpo_data.sources.ingest.json_text import Record


def user(text: str) -> Record:
    return {"role": "user", "content": text}


def answer(text: str, **more: Any) -> Record:
    return {"role": "assistant", "content": text, **more}


def spoken(who: str, text: str) -> Record:
    return {"from": who, "value": text}


CALL = [{"type": "function", "function": {"name": "weather", "arguments": {"town": "Ulm"}}}]
PART = [{"type": "text", "text": "A wren."}]
SIDES = {"chosen": "A wren.", "rejected": "No idea."}
ANSWERS = {side: [answer(text)] for side, text in SIDES.items()}
TURNS = [user("Hello."), answer("Hi."), user("Name a bird.")]
MARKED = "<|im_start|>user\nName a bird.<|im_end|>\n<|im_start|>assistant\n"
CASES: dict[str, Record] = {
    "text": {"prompt": "Name a bird.", **SIDES},
    "other names": {"question": "Name a bird.", **SIDES},
    "conversations of other names": {
        "better": [user("Name a bird."), answer("A robin.")],
        "worse": [user("Name a bird."), answer("A plum.")],
    },
    "all names other": {"question": "Name a bird.", "better": "A robin.", "worse": "A plum."},
    "explicit": {"prompt": [user("Name a bird.")], **ANSWERS},
    "several turns": {"prompt": TURNS, **ANSWERS},
    "full": {side: [*TURNS, *said_] for side, said_ in ANSWERS.items()},
    "full, and the prompt": {
        "prompt": [user("Name a bird.")],
        **{side: [user("Name a bird."), *said_] for side, said_ in ANSWERS.items()},
    },
    "full, and its prompt as text": {
        "prompt": "Name a bird.",
        **{side: [user("Name a bird."), *said_] for side, said_ in ANSWERS.items()},
    },
    "one message each": {
        "prompt": [user("Name a bird.")], **{s: a[0] for s, a in ANSWERS.items()}
    },
    "sharegpt": {
        "conversations": [spoken("human", "Name a bird.")],
        **{side: spoken("gpt", text) for side, text in SIDES.items()},
    },
    "sharegpt, sides as lists": {
        "conversations": [spoken("human", "Name a bird.")],
        **{side: [spoken("gpt", text)] for side, text in SIDES.items()},
    },
    "alpaca": {"instruction": "Name a bird.", "input": "A small one.", **SIDES},
    "alpaca with history": {
        "instruction": "Name a bird.", "input": "", "history": [["Hello.", "Hi."]], **SIDES
    },
    "a system column": {"system": "Be kind.", "prompt": "Name a bird.", **SIDES},
    "a system column, messages": {
        "system": "Be kind.", "prompt": [user("Name a bird.")], **ANSWERS
    },
    "the prompt's system turn not in the sides": {
        "prompt": [{"role": "system", "content": "Be kind."}, user("Name a bird.")],
        **{side: [user("Name a bird."), *said_] for side, said_ in ANSWERS.items()},
    },
    "ms-swift": {"query": "Name a bird.", "response": SIDES["chosen"],
                 "rejected_response": SIDES["rejected"]},
    "told twice": {"messages": [*TURNS, answer("A wren.")], "rejected_response": "No idea."},
    "openai": {"input": {"messages": TURNS}, "preferred_output": ANSWERS["chosen"],
               "non_preferred_output": ANSWERS["rejected"]},
    "hh": {s: f"\n\nHuman: Name a bird.\n\nAssistant: {a}" for s, a in SIDES.items()},
    "rendered": {"prompt": MARKED, **{s: f"{a}<|im_end|>" for s, a in SIDES.items()}},
    "spelt": {"prompt": json.dumps([user("Name a bird.")]),
              **{side: json.dumps(said_) for side, said_ in ANSWERS.items()}},
    "parts": {"prompt": [{"role": "user", "content": PART}], "chosen": [answer("Yes.")],
              "rejected": [answer("No.")]},
    "thought": {"prompt": [user("Name a bird.")],
                "chosen": [answer("A wren.", reasoning_content="It is small.")],
                "rejected": [answer("No idea.", reasoning_content="Too hard.")]},
    "call": {"prompt": [user("Is it warm?")], "chosen": [answer("", tool_calls=CALL)],
             "rejected": [answer("No.", tool_calls=None)]},
    "tools": {"prompt": [user("Is it warm?")],
              "chosen": [answer("", tool_calls=CALL), {"role": "tool", "content": "12"},
                         answer("It is.")],
              "rejected": [answer("No.")], "tools": json.dumps([{"name": "weather"}])},
    "turns": {"prompt": [user("Plan a trip.")],
              "chosen": [answer("To the sea?"), user("Yes."), answer("Take a towel.")],
              "rejected": [answer("To the hills?"), user("No."), answer("Then stay.")]},
    "ranked": {"context": [user("Name a bird.")], "completions": [
        {"rank": 0, "completion": ANSWERS["chosen"]},
        {"rank": 1, "completion": ANSWERS["rejected"]}]},
}  # fmt: skip
