"""What the benchmarks of scoring and training share: a random model, and real dialogues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
FILES = ("hh_helpful_multiturn.parquet", "hh_harmless_multiturn.parquet")
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


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


def save_base(folder: Path, vocabulary: int = 4096) -> Path:
    """A base as people have one: a folder with model and tokenizer."""
    fast = tokenizer(vocabulary)
    llama(len(fast)).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def flops(config: Any, lengths: list[int], heads: int) -> float:
    """Multiplications of a forward pass over rows of these lengths, `heads` tokens being scored.

    Attention is counted as it is computed with a mask: every token of a row with every other.
    """
    width, mlp, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    per_token = layers * (4 * width * width + 3 * width * mlp)
    attention = layers * 2 * width * sum(n * n for n in lengths)
    return float(per_token * sum(lengths) + attention + heads * width * config.vocab_size)
