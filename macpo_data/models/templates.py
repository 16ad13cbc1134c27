"""Chat templates by their names: our own, a tokenizer's, one of several that it has, or a file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from macpo_data.errors import ModelError
from macpo_data.models.chat import Chat
from macpo_data.recipe.agents import NAMED_TEMPLATES, OF_TOKENIZER, RENDERED, read_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SYSTEM = "{% if messages[0].role == 'system' %}{{ messages[0].content + %s }}{% endif %}"
TEMPLATES = {
    "vicuna": _SYSTEM.replace("%s", "' '") + "{% for m in messages %}"
    "{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
    "{% elif m.role == 'assistant' %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    "alpaca": _SYSTEM.replace("%s", "'\n\n'") + "{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '### Instruction:\n' + m.content + '\n\n### Response:\n' }}"
    "{% elif m.role == 'assistant' %}{{ m.content + eos_token + '\n\n' }}{% endif %}"
    "{% endfor %}",
    "chatml": "{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
}


def _as_released(system: str, before: str, after: str, between: str) -> str:
    """A template as LLaMA-Factory 0.5.3, which MACPO's authors used, writes it.

    Where a conversation has no system turn the template's own sentence stands, and nothing stands
    between that and the first turn.
    """
    sentence, lead, end, gap = map(json.dumps, (system, before, after, between))
    return (
        "{% if messages[0].role == 'system' %}{{ messages[0].content }}"
        f"{{% else %}}{{{{ {sentence} }}}}{{% endif %}}{{% for m in messages %}}"
        f"{{% if m.role == 'user' %}}{{{{ {lead} + m.content + {end} }}}}"
        "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}"
        f"{{% if not loop.last %}}{{{{ {gap} }}}}{{% endif %}}{{% endif %}}{{% endfor %}}"
    )


TEMPLATES |= {
    "vicuna-release": _as_released(
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions.",
        "USER: ",
        " ASSISTANT:",
        "",
    ),
    "alpaca-release": _as_released(
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.",
        "### Instruction:\n",
        "\n\n### Response:\n",
        "\n\n",
    ),
}
_AS_IT_IS = "{% for m in messages %}{{ m.content }}{% endfor %}"


def make_chat(tokenizer: PreTrainedTokenizerBase, chat_template: str, base: str) -> Chat:
    """Give a tokenizer the template that a recipe asks for.

    Args:
        tokenizer: of the base.
        chat_template: `tokenizer` (its own), `tokenizer:NAME` (one of several), `vicuna`, `alpaca`,
            `vicuna-release`, `alpaca-release`, `chatml`, a Jinja file, or `none` for text that is
            rendered already.
        base: as people call it, for errors.

    Raises:
        ModelError: the tokenizer has no template of its own, or lacks the template's tokens.
    """
    if chat_template == "tokenizer" or chat_template.startswith(OF_TOKENIZER):
        template = _own(tokenizer, chat_template.removeprefix(OF_TOKENIZER), base)
        return Chat(tokenizer, template, f"the chat template of {base}")
    if chat_template == "chatml" and "<|im_end|>" not in tokenizer.get_vocab():
        raise ModelError(
            f"the tokenizer of {base} has no <|im_end|> token, which chat_template chatml needs; "
            "use vicuna or alpaca"
        )
    if chat_template == RENDERED:
        return Chat(tokenizer, _AS_IT_IS, "rendered text", is_rendered=True)
    template = TEMPLATES.get(chat_template) or read_template(chat_template)
    return Chat(tokenizer, template, f"chat template {chat_template}")


def _own(tokenizer: PreTrainedTokenizerBase, name: str, base: str) -> str:
    """The template that a tokenizer brings, or of several that of a name; `default` of none.

    Raises:
        ModelError: it brings none, or none of this name.
    """
    own = tokenizer.chat_template
    if own is None:
        raise ModelError(
            f"the tokenizer of {base} has no chat template of its own; set agents.X.chat_template "
            f"to one of {', '.join(NAMED_TEMPLATES[1:])} or a Jinja file"
        )
    by_name = own if isinstance(own, dict) else {"default": own}
    wanted = "default" if name == "tokenizer" else name
    if wanted in by_name:
        return str(by_name[wanted])
    names = ", ".join(f"{OF_TOKENIZER}{each}" for each in by_name)
    raise ModelError(
        f"the tokenizer of {base} has no chat template {wanted}; set agents.X.chat_template to "
        f"{names}, or to a Jinja file"
    )
