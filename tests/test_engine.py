"""The transformers engine and its scores, on a tiny real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from macpo_data.engines.protocol import Request, ScoreRequest, Voice, completion
from macpo_data.engines.transformers import TransformersEngine
from macpo_data.errors import ModelError
from macpo_data.models.base import Base, load_chat, load_model
from macpo_data.models.logprobs import response_logprobs
from macpo_data.recipe.engine import Engine
from macpo_data.recipe.generation import Sampling
from macpo_data.schema import Message

SAMPLING = Sampling(max_new_tokens=8, top_p=0.9)


def asked(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return Base(str(tiny_base), None)


@pytest.fixture(scope="module")
def adapter(base: Base, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LoRA adapter with random weights on both sides, so that it changes the output."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model: Any = get_peft_model(load_model(base), config)
    path = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(path)
    return str(path)


def voices(adapter: str) -> tuple[Voice, Voice]:
    return Voice(None, "tokenizer", "base"), Voice(adapter, "tokenizer", "lora")


def test_score_equals_a_plain_forward(base: Base, adapter: str) -> None:
    """Padded batches with the logits that count against one full forward per response."""
    from peft import PeftModel

    engine = TransformersEngine(base, Engine(batch_size=3))
    texts = ["Knots hold.", "A much longer answer about lures and lines, my friend.", "No."]
    questions = ["What?", "How do I begin with fishing, and what do I need for it?", "Why so?"]
    plain = voices(adapter)[0]
    requests = [
        ScoreRequest(voice, asked(q), t, finished, f"{voice.fingerprint}{finished}")
        for voice in voices(adapter)
        for finished in (True, False)
        for q, t in zip(questions, texts, strict=True)
    ]
    got = dict(engine.score(requests))
    chat = load_chat(base, "tokenizer")
    bare: Any = load_model(base).eval()
    tuned: Any = PeftModel.from_pretrained(load_model(base), adapter).eval()
    for i, request in enumerate(requests):
        prompt = chat.prompt_ids(request.prompt)
        response = chat.response_ids(request.response, request.finished)
        model = bare if request.voice == plain else tuned
        with torch.no_grad():
            ids = torch.tensor([prompt + response], device=model.device)
            logits = model(ids).logits[0, len(prompt) - 1 : -1]
        each = logits.log_softmax(-1)[range(len(response)), response].double()
        score = got[i]
        assert score is not None
        eot = each[-1].item() if request.finished else 0.0
        assert score.eot_logprob == pytest.approx(eot, abs=1e-4)
        assert score.sum_logprob == pytest.approx(each.sum().item() - eot, abs=1e-4)
        assert score.num_tokens == len(response) - request.finished


def test_adapters_are_switched_on_one_base(base: Base, adapter: str) -> None:
    """base, adapter, base again: the first and third agree, the second does not."""
    engine = TransformersEngine(base, Engine())
    plain, tuned = voices(adapter)
    requests = [
        Request(voice, asked("Tell me."), SAMPLING, 7, str(n))
        for n, voice in enumerate((plain, tuned, plain, tuned))
    ]
    got = dict(engine.generate(requests))
    assert got[0] == got[2] and got[1] == got[3] and got[0] != got[1]


def test_a_group_gives_the_same_text_whatever_else_is_asked(base: Base) -> None:
    engine = TransformersEngine(base, Engine(batch_size=2))
    voice = Voice(None, "tokenizer", "base")

    def group(name: str) -> list[Request]:
        return [Request(voice, asked(f"{name} {n}"), SAMPLING, n, name) for n in range(3)]

    alone = dict(engine.generate(group("a")))
    together = dict(engine.generate([*group("b"), *group("a")]))
    assert [alone[n] for n in range(3)] == [together[n + 3] for n in range(3)]


def test_seed_decides(base: Base) -> None:
    engine = TransformersEngine(base, Engine())
    voice = Voice(None, "tokenizer", "base")
    texts = [
        next(engine.generate([Request(voice, asked("Go."), SAMPLING, seed, "a")]))[1].text
        for seed in (1, 2, 1)
    ]
    assert texts[0] == texts[2] != texts[1]


def test_a_prompt_that_is_too_long_is_a_row_and_no_abort(base: Base) -> None:
    engine = TransformersEngine(base, Engine())
    voice = Voice(None, "tokenizer", "base")
    requests = [
        Request(voice, asked("word " * 400), SAMPLING, 1, "a"),
        Request(voice, asked("short"), SAMPLING, 1, "a"),
    ]
    got = dict(engine.generate(requests))
    assert got[0].finish_reason == "prompt_too_long" and got[0].text is None
    assert got[1].text is not None
    scores = dict(engine.score([ScoreRequest(voice, asked("word " * 400), "x", True, "a")]))
    assert scores == {0: None}


def test_finish_reason_is_kept(base: Base) -> None:
    """A model that only ever says end-of-turn stops; one that never does is cut."""
    engine = TransformersEngine(base, Engine())
    chat = engine._chat(Voice(None, "tokenizer", "base"))
    word = chat.response_ids("word", False)
    assert completion(chat, [*word, chat.eot_id, chat.pad_id]).finish_reason == "stop"
    cut = completion(chat, word * 3)
    assert cut.finish_reason == "length" and cut.num_tokens == 3 * len(word)


def test_gradients_reach_the_response_only(base: Base) -> None:
    """The mask is right-aligned, and the log-probability outside it is zero."""
    model: Any = load_model(base)
    logprobs, mask = response_logprobs(model, [[1, 2, 3], [4]], [[5], [6, 7, 8]], 0)
    assert mask.tolist() == [[False, False, True], [True, True, True]]
    assert logprobs[0, :2].tolist() == [0.0, 0.0] and (logprobs[mask] < 0).all()


def test_a_base_that_is_not_there() -> None:
    with pytest.raises(ModelError, match="cannot load base nobody/nothing"):
        load_model(Base("nobody/nothing", None))


def asking(base: Base, answers: int) -> list[ScoreRequest]:
    voice = Voice(None, "tokenizer", "base")
    texts = ["Knots hold.", "No.", "A longer answer about lures and lines.", "", "Why? " * 9]
    questions = ["What?", "How do I begin with fishing, and what do I need for it?", "Why so?"]
    return [
        ScoreRequest(voice, asked(q), text, finished, group)
        for group in ("a", "b")
        for q in questions
        for n, text in enumerate(texts[:answers])
        for finished in [n != 1]
    ]


@pytest.mark.parametrize("answers", [1, 3, 5])
def test_shared_scores_equal_plain_ones(base: Base, answers: int) -> None:
    """Also where a prompt has more responses than a batch holds."""
    requests = asking(base, answers)
    shared, plain = (
        TransformersEngine(base, Engine(batch_size=4, shared_prompt=on)) for on in (True, False)
    )
    got, want = dict(shared.score(requests)), dict(plain.score(requests))
    assert got.keys() == want.keys() == set(range(len(requests)))
    assert shared.facts()["scoring"] == "shared prompts"
    assert plain.facts()["scoring"] == "one sequence per response: engine.shared_prompt is off"
    for i, score in got.items():
        other = want[i]
        assert score and other and score.num_tokens == other.num_tokens
        assert score.sum_logprob == pytest.approx(other.sum_logprob, abs=1e-4)
        assert score.eot_logprob == pytest.approx(other.eot_logprob, abs=1e-4)


def test_a_group_gives_the_same_scores_whatever_else_is_asked(base: Base) -> None:
    """Bit for bit, so that a resumed run writes what an uninterrupted one writes."""
    engine = TransformersEngine(base, Engine(batch_size=4))
    requests = asking(base, 4)
    alone = dict(engine.score([r for r in requests if r.group == "b"]))
    together = dict(engine.score(requests))
    half = len(requests) // 2
    assert [alone[n] for n in range(half)] == [together[half + n] for n in range(half)]


def test_scores_say_what_they_depend_on(base: Base, adapter: str) -> None:
    engine = TransformersEngine(base, Engine())
    plain, tuned = (engine.scored_under(voice) for voice in voices(adapter))
    assert plain | {"adapter_sha256": tuned["adapter_sha256"]} == tuned != plain
    assert plain["dtype"] == "float32" and plain["base"] == base.id
