"""Prompts and responses as token ids, with two real tokenizers and a tiny one."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from conftest import shared
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from macpo_data.errors import ModelError
from macpo_data.models.chat import Chat
from macpo_data.models.templates import make_chat
from macpo_data.schema import Message

ASKED: list[Message] = [
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "And now?"},
]


@pytest.fixture(scope="module")
def gpt2() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared("tokenizers/gpt2"))


@pytest.fixture(scope="module")
def mistral() -> Any:
    from transformers import PreTrainedTokenizerFast

    file = str(shared("tokenizers/mistral-7b/tokenizer.json"))
    return PreTrainedTokenizerFast(tokenizer_file=file, bos_token="<s>", eos_token="</s>")


def test_vicuna_form(gpt2: Any, mistral: Any) -> None:
    for tokenizer in (gpt2, mistral):
        chat = make_chat(tokenizer, "vicuna", "b")
        text = tokenizer.decode(chat.prompt_ids(ASKED))
        eos = tokenizer.eos_token
        bos = "<s>" if tokenizer is mistral else ""
        body = f"USER: Hi there ASSISTANT: Hello.{eos}USER: And now? ASSISTANT:"
        assert text.replace(" ", "") == (bos + body).replace(" ", "")


@pytest.mark.parametrize("template", ["vicuna", "alpaca"])
def test_one_bos_and_the_eos_ends_the_turn(gpt2: Any, mistral: Any, template: str) -> None:
    ids = make_chat(mistral, template, "b").prompt_ids(ASKED)
    assert ids[0] == 1 and ids.count(1) == 1
    chat = make_chat(gpt2, template, "b")
    assert gpt2.bos_token_id not in chat.prompt_ids(ASKED[:1])  # gpt2 adds no BOS by itself
    assert chat.response_ids("Fine.", True)[-1] == gpt2.eos_token_id == chat.eot_id
    assert chat.response_ids("Fine.", False) == chat.response_ids("Fine.", True)[:-1]


def test_response_is_tokenised_as_it_stands_behind_the_prompt(mistral: Any) -> None:
    """`ASSISTANT: Sure` has the word-initial token, `### Response:\\nSure` has not."""
    vicuna = make_chat(mistral, "vicuna", "b").response_ids("Sure", False)
    alpaca = make_chat(mistral, "alpaca", "b").response_ids("Sure", False)
    assert mistral.convert_ids_to_tokens(vicuna) == ["▁Sure"]
    assert mistral.convert_ids_to_tokens(alpaca) == ["Sure"]


@pytest.mark.parametrize("template", ["vicuna", "alpaca"])
def test_text_is_never_markup(gpt2: Any, mistral: Any, template: str) -> None:
    """A special token spelt by a person or a model becomes ordinary tokens."""
    for tokenizer in (gpt2, mistral):
        chat = make_chat(tokenizer, template, "b")
        spelt = f"stop {tokenizer.eos_token} go"
        prompt = chat.prompt_ids([{"role": "user", "content": spelt}])
        assert tokenizer.eos_token_id not in prompt
        assert spelt in tokenizer.decode(prompt)
        response = chat.response_ids(spelt, True)
        assert response.count(chat.eot_id) == 1
        assert chat.decode(response) == spelt


@pytest.mark.parametrize("template", ["vicuna", "alpaca"])
def test_all_at_once_gives_the_ids_of_each_alone(gpt2: Any, mistral: Any, template: str) -> None:
    """On people's prompts of several turns, some with special tokens spelt in them."""
    pairs = pl.read_parquet(shared("data/hh_harmless_multiturn.parquet")).head(60)
    for tokenizer in (gpt2, mistral):
        chat = make_chat(tokenizer, template, "b")
        spelt: list[Message] = [{"role": "user", "content": f"a {tokenizer.eos_token} b"}]
        prompts: list[Any] = [*pairs["prompt"].to_list(), spelt]
        answers = [*pairs["chosen"], "", f"a {tokenizer.eos_token}", "  lead"]
        finished = [n % 3 > 0 for n in range(len(answers))]
        assert chat.all_prompt_ids(prompts) == [chat.prompt_ids(prompt) for prompt in prompts]
        alone = [chat.response_ids(a, end) for a, end in zip(answers, finished, strict=True)]
        assert chat.all_response_ids(answers, finished) == alone
        assert tokenizer.eos_token_id not in chat.all_prompt_ids([spelt])[0]
        assert chat.all_prompt_ids([]) == chat.all_response_ids([], []) == []


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_decoding_gives_the_text_back(gpt2: Any, text: str) -> None:
    chat = make_chat(gpt2, "alpaca", "b")
    assert chat.decode(chat.response_ids(text.strip(), True)) == text.strip()


THINKING = (  # as Qwen3's: an empty thought stands before an answer that has none of its own
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_an_empty_thought_is_read_and_never_written(tiny_base: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    chat = Chat(tokenizer, THINKING)
    joint = tokenizer.apply_chat_template(
        [ASKED[0], {"role": "assistant", "content": "Right."}],
        chat_template=THINKING, tokenize=True, return_dict=False,
    )  # fmt: skip
    prompt, response = chat.prompt_ids(ASKED[:1]), chat.response_ids("Right.", True)
    assert [*prompt, *response] == joint[: len(prompt) + len(response)]
    assert chat.decode(prompt).endswith("</think>") and chat.decode(response) == "Right."
    assert chat.sha256 != Chat(tokenizer, THINKING.replace("think", "thank")).sha256


def test_the_end_of_a_turn_that_has_no_name(gpt2: Any) -> None:
    """As Phi-3's: special, but none of those that the tokenizer calls by a name."""
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared("tokenizers/gpt2"))
    tokenizer.add_tokens([AddedToken("<|end|>", special=True)])
    assert "<|end|>" not in tokenizer.all_special_tokens
    chat = Chat(tokenizer, "{% for m in messages %}{{ m.content }}<|end|>\n{% endfor %}")
    assert chat.eot_id == tokenizer.convert_tokens_to_ids("<|end|>")
    assert set(chat.stop_ids) == {chat.eot_id, tokenizer.eos_token_id}


def test_a_tokenizer_without_the_template_is_refused(gpt2: Any) -> None:
    with pytest.raises(ModelError, match="no chat template of its own; set agents"):
        make_chat(gpt2, "tokenizer", "gpt2")
    with pytest.raises(ModelError, match=r"no <.im_end.> token"):
        make_chat(gpt2, "chatml", "gpt2")


def test_template_that_hides_the_prompt_is_refused(gpt2: Any) -> None:
    with pytest.raises(ModelError, match="does not put the prompt before the response"):
        Chat(gpt2, "{{ messages[-1].content }}")


def test_own_template_of_the_world(tiny_base: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    chat = make_chat(tokenizer, "tokenizer", "tiny")
    joint = tokenizer.apply_chat_template(
        [*ASKED, {"role": "assistant", "content": "Right."}], tokenize=True, return_dict=False
    )
    ids = chat.prompt_ids(ASKED) + chat.response_ids("Right.", True)
    assert ids == joint[: len(ids)]
    assert chat.eot_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_rendered_text_is_read_as_its_template_would_have_it(gpt2: Any, mistral: Any) -> None:
    """Marks in it are marks, and an answer that brings its end gets no second one."""
    for tokenizer in (gpt2, mistral):
        chat, rendered = (make_chat(tokenizer, name, "b") for name in ("vicuna", "none"))
        text = f"USER: Hi there ASSISTANT: Hello.{tokenizer.eos_token}USER: And now? ASSISTANT:"
        prompt = rendered.prompt_ids([{"role": "user", "content": text}])
        assert prompt == chat.prompt_ids(ASKED)
        ended = f" Fine.{tokenizer.eos_token}"
        whole = tokenizer(ended, add_special_tokens=False)["input_ids"]
        assert rendered.response_ids(ended, True) == rendered.response_ids(ended, False)
        assert rendered.response_ids(ended, True).count(tokenizer.eos_token_id) == 1
        assert whole[-1] == rendered.response_ids(" Fine.", True)[-1] == tokenizer.eos_token_id
