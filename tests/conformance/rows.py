"""Rows of every kind that `macpo convert` may write, by name, in the plain form."""

from __future__ import annotations

from conformance.cases import TURNS, answer, user
from macpo_data.sources.ingest.json_text import Record

WRENS = {"chosen": [answer("A wren.")], "rejected": [answer("No idea.")]}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "How warm it is — 'now'.",
     "parameters": {"type": "object", "properties": {"town": {"type": "string"}}}}},
    {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}},
]  # fmt: skip


def call(name: str, at: str, **arguments: object) -> Record:
    function = {"name": name, "arguments": arguments}
    return {"type": "function", "id": at, "function": function}


def result(text: str, at: str) -> Record:
    return {"role": "tool", "content": text, "tool_call_id": at}


WARM = user("Is it warm in Ulm?")
ASKED = answer("", tool_calls=[call("weather", "c1", town="Ulm")])
TOLD = result('{"degrees": 12, "wind": null}', "c1")
ODD = "tab\there\r\nline\n\n\n    four  \u00a0 and \u200bnone\u2028next\u0085end"
SAID = {"chosen": [answer("It is.")], "rejected": [answer("No.")]}
PAIRS: dict[str, Record] = {
    "plain": {"prompt": [user("Name a bird.")], **WRENS},
    "system": {"prompt": [{"role": "system", "content": "Be kind."}, user("Hello.")], **WRENS},
    "history": {"prompt": TURNS, **WRENS},
    "unicode": {
        "prompt": [user("e\u0301 \u05d0\u05d1 \U0001d54f \U0001f468\u200d\U0001f469 \\u0041 ￿")],
        "chosen": [answer("naïve «yes»")], "rejected": [answer("naive «yes»")],
    },
    "white space": {"prompt": [user(ODD)], "chosen": [answer(f"a{ODD}")],
                    "rejected": [answer(f"b{ODD}")]},
    "text that looks like JSON": {"prompt": [user('{"a": [1]}')], "chosen": [answer("[]")],
                                  "rejected": [answer("null")]},
    "text that looks like markup": {"prompt": [user("{{ x }} {% y %} <image> <b>")],
                                    "chosen": [answer("<video> {{content}}")],
                                    "rejected": [answer("<audio> $x")]},
    "one letter": {"prompt": [user("a or e?")], "chosen": [answer("a")],
                   "rejected": [answer("e")]},
    "a side in the other": {"prompt": [user("Count.")], "chosen": [answer("1 2 3")],
                            "rejected": [answer("1 2")]},
    "offered": {"prompt": [WARM], **SAID, "tools": TOOLS},
    "other tools": {"prompt": [WARM], **SAID, "tools": TOOLS[1:]},
    "a call": {"prompt": [WARM], "chosen": [ASKED], "rejected": [answer("No.")], "tools": TOOLS},
    "other arguments": {
        "prompt": [WARM], "tools": TOOLS, "rejected": [answer("", tool_calls=[call("clock", "c")])],
        "chosen": [answer("", tool_calls=[call("clock", "c", zone=[1, {"é": None}], dst=False)])],
    },
    "two calls": {
        "prompt": [WARM], "tools": TOOLS, "rejected": [ASKED],
        "chosen": [answer("", tool_calls=[*ASKED["tool_calls"], call("clock", "c2")])],
    },
    "words and a call": {"prompt": [WARM], "chosen": [{**ASKED, "content": "Let me look."}],
                         "rejected": [answer("No.")], "tools": TOOLS},
    "a result": {"prompt": [WARM, ASKED, TOLD], **SAID, "tools": TOOLS},
    "a result, and on": {"prompt": [WARM, ASKED, TOLD, answer("12."), user("Warm?")], **SAID,
                         "tools": TOOLS},
    "two results": {
        "prompt": [WARM, answer("", tool_calls=[*ASKED["tool_calls"], call("clock", "c2")]),
                   TOLD, result("noon", "c2")], **SAID, "tools": TOOLS,
    },
    "a call, its result, an answer": {"prompt": [WARM], "chosen": [ASKED, TOLD, answer("It is.")],
                                      "rejected": [answer("No.")], "tools": TOOLS},
    "thoughts": {"prompt": [user("Name a bird.")],
                 "chosen": [answer("A wren.", reasoning_content="It is small.")],
                 "rejected": [answer("No idea.", reasoning_content="Hard.")]},
    "several messages": {"prompt": [user("Plan a trip.")],
                         "chosen": [answer("To the sea?"), user("Yes."), answer("Swim.")],
                         "rejected": [answer("To the hills?"), user("No."), answer("Stay.")]},
    "developer": {"prompt": [{"role": "developer", "content": "Be kind."}, user("Hello.")],
                  **WRENS},
}  # fmt: skip
FINE_TUNING = {
    name: {"prompt": row["prompt"], "completion": row["chosen"],
           **({"tools": row["tools"]} if "tools" in row else {})}
    for name, row in PAIRS.items()
}  # fmt: skip
MARKED = "<|im_start|>user\nName a bird.<|im_end|>\n<|im_start|>assistant\n"
RENDERED: dict[str, Record] = {
    "marks": {"prompt": MARKED, "chosen": "A wren.<|im_end|>", "rejected": "No idea.<|im_end|>"},
    "white space at the ends": {"prompt": f" {MARKED}", "chosen": " A wren.<|im_end|>\n",
                                "rejected": "\nNo idea.<|im_end|> "},
}  # fmt: skip
