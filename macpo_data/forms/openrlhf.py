"""OpenRLHF: it names no configuration, and so reads the default one."""

from __future__ import annotations

from macpo_data.forms.shape import Shape
from macpo_data.forms.trainer import (
    ANY_ROLE,
    COMMAND,
    PAIR_OF_TEXTS,
    PLAIN,
    RENDERED_AGAIN,
    SEVERAL,
    TEMPLATED,
    Answer,
    AsText,
    Trainer,
    Use,
)
from macpo_data.sources.ingest.canonical import Reason

_DEFAULT = "the default configuration only"


def _reads(shape: Shape) -> Answer:
    """A side that is a whole conversation ends in one message: what is before it is the prompt."""
    if lost := shape.loses(*TEMPLATED, *([Reason.SEVERAL_MESSAGES] if shape.explicit else [])):
        return False, lost
    own = "" if shape.columns.prompt in (None, "prompt") else shape.columns.prompt
    key = f", --data.prompt_key {own}" if own else ""
    named = key + shape.keys("--data.", "_key", " ")
    if shape.texts:
        how = "" if shape.rendered else " and --data.input_template"
        return True, f"without --data.apply_chat_template{how}{named}; {_DEFAULT}"
    if shape.rendered:
        return False, RENDERED_AGAIN
    if shape.sides == "messages" and (shape.explicit or shape.full):
        key = (
            named
            if shape.explicit
            else f", no --data.prompt_key{shape.keys('--data.', '_key', ' ')}"
        )
        return True, f"--data.apply_chat_template{key}; {_DEFAULT}"
    return False, "wants texts, or lists of messages, the prompt apart or inside both sides"


_KEYS = "--data.prompt_key prompt --data.chosen_key chosen --data.rejected_key rejected"
TRAINER = Trainer(
    "openrlhf",
    "OpenRLHF (reads the default configuration)",
    Use(
        PLAIN,
        f"--data.dataset {{{{ place }}}} --data.apply_chat_template {_KEYS}",
        _reads,
        takes=TEMPLATED | SEVERAL,
        keys=None,
        roles=ANY_ROLE,
        as_text=AsText(PAIR_OF_TEXTS, f"--data.dataset {{{{ place }}}} {_KEYS}"),
        snippet_file=COMMAND,
    ),
)
