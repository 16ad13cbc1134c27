"""Pretrain the tiny bases of the embedded world, so that a demo needs no download.

A base reads good answers and bad ones: like any pretrained model it can do both, and which one it
does is for the method to teach. It never reads the task pool's prompts.

All of it has to happen within two minutes on two cores. What buys that: shallow and wide models
(looking up the topic takes two layers and comes later with more), wide initial weights, and several
answers behind each prompt, which is then read once.
"""

import hashlib
import json
import math
import os
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from macpo_data.models.logprobs import attention, pack
from macpo_data.models.worker import Report
from macpo_data.world.bases import VERSION, BaseSpec, base_path, base_spec, is_ready
from macpo_data.world.grammar import asks, bad, examples, good, shuffled, third

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
VOCABULARY = 1200
PROMPT_WEIGHT = 0.2
"""A prompt token's share in the loss: prompts teach the words, answers teach the behavior."""
ANSWERS = (good, good, bad)
"""What a base reads to each prompt. More good than bad: only good answers tie facts to topics."""
WARMUP = 0.05


class Document(NamedTuple):
    """Token ids of a prompt and of several answers to it."""

    prompt: list[int]
    answers: list[list[int]]

    @property
    def tokens(self) -> int:
        """Tokens in all."""
        return len(self.prompt) + sum(map(len, self.answers))

    @property
    def weights(self) -> list[float]:
        """Shares in the loss: of the prompt's tokens but the first, then of all answers' tokens."""
        prompt = len(self.prompt)
        return [PROMPT_WEIGHT] * (prompt - 1) + [1.0] * (self.tokens - prompt)


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Train the byte-level tokenizer that all bases share; it encodes any Unicode text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (
        text
        for example in examples("pretrain")
        for message in example.prompt
        for text in (message["role"], message["content"], example.chosen, example.rejected)
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def pretrain(report: Report, name: str) -> Path:
    """Pretrain one base, unless it is ready, and return its folder.

    `report` gets the number of prompts read so far and in all. Another process that trains the
    same base is waited for.

    Raises:
        KeyError: no such base.
    """
    target = base_path(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not is_ready(name):
            torch.set_num_threads(1)
            partial = target.with_name(f"{target.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            _write_base(name, partial, report)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(partial, target)
    return target


def _write_base(name: str, folder: Path, report: Report) -> None:
    started = time.monotonic()
    spec = base_spec(name)
    tokenizer = train_tokenizer()
    torch.manual_seed(spec.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=spec.width,
            intermediate_size=spec.mlp,
            num_hidden_layers=spec.layers,
            num_attention_heads=spec.heads,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            # The usual 0.02 leaves attention so flat at these widths that looking up the topic is
            # learned several times later.
            initializer_range=spec.width**-0.5,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    loss = _fit(model, spec, _documents(tokenizer, spec), report)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    manifest = {
        "base": name,
        "spec": asdict(spec),
        "world_version": VERSION,
        "parameters": model.num_parameters(),
        "final_loss": round(loss, 4),
        "seconds": round(time.monotonic() - started, 1),
        "versions": {p: version(p) for p in ("torch", "transformers", "tokenizers")},
        "files": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.iterdir())
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def _documents(tokenizer: PreTrainedTokenizerFast, spec: BaseSpec) -> list[Document]:
    """The prompts a base reads, in reading order, each with several answers."""
    rng = random.Random(f"macpo pretraining {spec.seed}")
    reading = (
        (prompt, ask)
        for lap in count()
        for prompt, ask in asks("pretrain", 1000 * spec.seed + lap)
        if third(ask.topic) != spec.skips
    )
    documents = []
    for prompt, ask in islice(reading, spec.prompts):
        text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        is_shuffled = third(ask.topic) == spec.shuffles
        read = (shuffled(ask, rng) if is_shuffled else ask for _ in ANSWERS)
        answers = [draw(each, rng) for draw, each in zip(ANSWERS, read, strict=True)]
        documents.append(
            Document(
                tokenizer(text)["input_ids"],
                [tokenizer(f"{answer}{END}\n")["input_ids"] for answer in answers],
            )
        )
    return documents


def _fit(
    model: LlamaForCausalLM,
    spec: BaseSpec,
    documents: list[Document],
    report: Report,
) -> float:
    """Train in place with AdamW and a cosine schedule; return the mean loss of the last steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.lr, betas=(0.9, 0.95), fused=True)
    steps = math.ceil(len(documents) / spec.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps))
    model.train()
    losses: list[float] = []
    done = 0
    for batch in _batches(documents, spec):
        loss = _loss(model, batch)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        done += len(batch)
        report(done, len(documents), "prompts")
    return sum(losses[-50:]) / len(losses[-50:])


def _loss(model: LlamaForCausalLM, batch: list[Document]) -> torch.Tensor:
    """Mean over the batch's tokens, each prompt read once with its answers behind it."""
    prompts, answers = [document.prompt for document in batch], [d.answers for d in batch]
    packed = pack(prompts, answers, model.config.pad_token_id, predict_prompts=True)
    logits = model(
        packed.ids,
        attention_mask=attention(model, packed.parts),
        position_ids=packed.positions,
        use_cache=False,
    ).logits
    each = cross_entropy(logits.flatten(0, 1)[packed.sources], packed.targets, reduction="none")
    weights = torch.tensor([weight for document in batch for weight in document.weights])
    return (each * weights).sum() / weights.sum()


def _rate(progress: float) -> float:
    if progress < WARMUP:
        return progress / WARMUP + 1e-3
    return 0.05 + 0.95 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP))) / 2


def _batches(documents: list[Document], spec: BaseSpec) -> Iterator[list[Document]]:
    """Batches of similar lengths, to pad little: sorted within windows, shuffled among them."""
    rng = random.Random(f"macpo batches {spec.seed}")
    window = 32 * spec.batch
    for start in range(0, len(documents), window):
        near = sorted(documents[start : start + window], key=lambda document: document.tokens)
        batches = [near[i : i + spec.batch] for i in range(0, len(near), spec.batch)]
        rng.shuffle(batches)
        yield from batches
