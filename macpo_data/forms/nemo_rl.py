"""NeMo-RL: its BinaryPreferenceDataset, which takes a prompt, and both sides as text."""

from __future__ import annotations

from macpo_data.forms.shape import Shape
from macpo_data.forms.trainer import PLAIN, Answer, Trainer, Use


def _reads(shape: Shape) -> Answer:
    names = (f"{side}_text" for side in (shape.columns.chosen, shape.columns.rejected))
    texts = [name for name in names if name in shape.kinds]
    reads = shape.apart and (shape.sides == "text" or len(texts) == 2)
    if len(texts) == 2:
        return reads, f"chosen_key: {texts[0]}, rejected_key: {texts[1]}"
    if shape.sides == "text" and shape.prompt != "missing":
        return reads, "BinaryPreferenceDataset"
    return False, "wants the prompt apart and both sides as text"


TRAINER = Trainer(
    "nemo-rl",
    "NeMo-RL",
    Use(
        PLAIN,
        """\
data:
  dataset_name: BinaryPreferenceDataset
  data_path: {{ place }}
  subset: {{ config }}
  split: train
  prompt_key: prompt
  chosen_key: chosen_text
  rejected_key: rejected_text""",
        _reads,
    ),
)
