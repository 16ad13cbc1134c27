"""An adapter folded into its base says the same as base and adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from macpo_data.errors import ModelError
from macpo_data.models.base import Base, load_model, load_tokenizer
from macpo_data.models.merge import merge
from macpo_data.models.templates import TEMPLATES


@pytest.mark.slow
def test_a_merged_model_says_the_same(tiny_base: Path, tmp_path: Path) -> None:
    """In bfloat16, which has 8 bits of precision: logits agree to a few hundredths."""
    from peft import LoraConfig, PeftModel, get_peft_model

    base = Base(str(tiny_base), None)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(load_model(base, "float32"), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(tmp_path / "adapter")

    facts = merge(lambda *_: None, base, tmp_path / "adapter", tmp_path / "out")
    assert facts == {"dtype": "bfloat16"}
    merged = load_model(Base(str(tmp_path / "out"), None), "float32")
    apart = PeftModel.from_pretrained(load_model(base, "float32"), str(tmp_path / "adapter"))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        one, two, bare = (m(ids).logits for m in (merged, apart, load_model(base, "float32")))
    assert (one - two).abs().max() < 0.05 < (two - bare).abs().max()

    merge(lambda *_: None, base, tmp_path / "adapter", tmp_path / "out", "vicuna")
    template = load_tokenizer(Base(str(tmp_path / "out"), None)).chat_template
    assert template == TEMPLATES["vicuna"] != load_tokenizer(base).chat_template

    (tmp_path / "adapter/adapter_config.json").write_text('{"fake": true}')
    with pytest.raises(ModelError, match=r"no adapter in .* names no base"):
        merge(lambda *_: None, base, tmp_path / "adapter", tmp_path / "again")
