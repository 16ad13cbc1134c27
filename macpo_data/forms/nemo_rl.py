"""NeMo-RL: its BinaryPreferenceDataset, which takes a prompt, and both sides as text."""

from __future__ import annotations

from macpo_data.forms.shape import Shape
from macpo_data.forms.trainer import PLAIN, RENDERED_AGAIN, Answer, Form, Trainer, Use
from macpo_data.sources.ingest import detect
from macpo_data.sources.ingest.canonical import text

SIDES_AS_TEXT = Form(
    record=lambda row: {
        "prompt": row.prompt,
        "chosen": text(row.chosen),
        "rejected": text(row.rejected),
    }
)


def _reads(shape: Shape) -> Answer:
    if lost := shape.loses():
        return False, lost
    if shape.rendered:
        return False, RENDERED_AGAIN
    if shape.form is detect.Form.RANKED:
        return True, "PreferenceDataset"
    names = (f"{side}_text" for side in (shape.columns.chosen, shape.columns.rejected))
    texts = [name for name in names if name in shape.kinds]
    if shape.apart and len(texts) == 2:
        return True, f"chosen_key: {texts[0]}, rejected_key: {texts[1]}"
    if shape.apart and shape.alone and shape.sides == "text":
        key = "" if shape.columns.prompt == "prompt" else f", prompt_key: {shape.columns.prompt}"
        return True, f"BinaryPreferenceDataset{key}{shape.keys('', '_key')}"
    return False, "wants all of the prompt in one column, and both sides as text"


TRAINER = Trainer(
    "nemo-rl",
    "NeMo-RL",
    Use(
        PLAIN,
        """\
data:
  dataset_name: BinaryPreferenceDataset
{% if config %}
  data_path: {{ place }}
  subset: {{ config }}
  split: train
  prompt_key: prompt
  chosen_key: chosen_text
  rejected_key: rejected_text
{%- else %}
  data_path: {{ file }}
  prompt_key: prompt
  chosen_key: chosen
  rejected_key: rejected
{%- endif %}""",
        _reads,
        converted=SIDES_AS_TEXT,
    ),
)
