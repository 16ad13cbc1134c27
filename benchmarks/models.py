"""What the benchmarks of scoring and training share: a random model, and real dialogues."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
DATA = SHARED / "data"
FILES = ("hh_helpful_multiturn.parquet", "hh_harmless_multiturn.parquet")
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Of a random Qwen2 with tied embeddings: as Qwen2.5 of that size has it, or SmolLM2."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int = 151_936


SHAPES = {
    "135m": Shape(576, 30, heads=9, kv_heads=3, mlp=1536, vocabulary=49_152),
    "0.5b": Shape(896, 24, heads=14, kv_heads=2, mlp=4864),
    "3b": Shape(2048, 36, heads=16, kv_heads=2, mlp=11008),
}
SIZES = ("tiny", *SHAPES)


def dialogues(count: int, chars: int = 1800) -> pl.DataFrame:
    """Real HH-RLHF pairs of several turns, evenly drawn from the two halves."""
    frames = []
    for name in FILES:
        frame = pl.read_parquet(DATA / name).select("prompt", "chosen", "rejected")
        size = pl.col("prompt").list.eval(pl.element().struct.field("content").str.len_bytes())
        answers = pl.col("chosen").str.len_bytes() + pl.col("rejected").str.len_bytes()
        frame = frame.filter((size.list.sum() + answers <= chars) & (answers > 100))
        frame = frame.filter((pl.col("chosen") != "") & (pl.col("rejected") != ""))
        frames.append(frame.sample(count - count // 2, seed=0))
    return pl.concat(frames).head(count)


def tokenizer(vocabulary: int = 4096, texts: list[str] | None = None) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer trained on the texts, or on the dialogues themselves."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    specials = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts or dialogues(2000)["chosen"].to_list(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|pad|>", model_max_length=4096
    )
    fast.chat_template = TEMPLATE
    return fast


def llama(vocabulary: int, width: int = 256, layers: int = 6) -> Any:
    """A random Llama; 5 M parameters in its layers as it stands."""
    import torch

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=width * 8 // 3,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            num_key_value_heads=width // 64,
            max_position_embeddings=4096,
            pad_token_id=0,
            eos_token_id=2,
            bos_token_id=None,
        )
    )


def qwen(shape: Shape, dtype: str) -> Any:
    """A random Qwen2, made on the GPU if there is one."""
    import torch

    from macpo_data.models.base import device

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=None,
    )
    usual = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with device():
            return Qwen2ForCausalLM(config)
    finally:
        torch.set_default_dtype(usual)


def real_tokenizer() -> PreTrainedTokenizerFast:
    """Mistral's tokenizer, with ChatML's marks: real text in the number of tokens it really has."""
    fast = PreTrainedTokenizerFast(
        tokenizer_file=str(SHARED / "tokenizers" / "mistral-7b" / "tokenizer.json"),
        eos_token="<|im_end|>",
        pad_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=8192,
    )
    fast.chat_template = TEMPLATE
    return fast


def save_base(folder: Path, size: str = "tiny", dtype: str = "float32") -> Path:
    """A base as people have one: a folder with model and tokenizer."""
    if size == "tiny":
        fast = tokenizer()
        model = llama(len(fast))
    else:
        fast, model = real_tokenizer(), qwen(SHAPES[size], dtype)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which model a benchmark measures: `tiny` in float32 for two cores, others for a GPU."""
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")


def model_words(size: str, dtype: str) -> str:
    """What a row says of the model."""
    return "" if size == "tiny" else f", {size} in {dtype}"


def model_flags(size: str, dtype: str) -> str:
    """The options again, for the command in a row."""
    return "" if size == "tiny" else f" --size {size} --dtype {dtype}"


def flops(config: Any, lengths: list[int], heads: int) -> float:
    """Multiplications of a forward pass over rows of these lengths, `heads` tokens being scored.

    Attention is counted as it is computed with a mask: every token of a row with every other.
    """
    width, mlp, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    shared = config.num_key_value_heads / config.num_attention_heads
    per_token = layers * ((2 + 2 * shared) * width * width + 3 * width * mlp)
    attention = layers * 2 * width * sum(n * n for n in lengths)
    return float(per_token * sum(lengths) + attention + heads * width * config.vocab_size)
