"""torchtune: its preference dataset, in a YAML file."""

from __future__ import annotations

from macpo_data.forms.shape import Shape
from macpo_data.forms.trainer import FULL, RENDERED_AGAIN, WANTS_FULL, Answer, Trainer, Use


def _reads(shape: Shape) -> Answer:
    if lost := shape.loses():  # it takes role and content of a message
        return False, lost
    if shape.rendered:
        return False, RENDERED_AGAIN
    if shape.full:
        return True, "preference_dataset"
    if shape.texts:
        columns = shape.columns
        names = f"prompt: {columns.prompt}, chosen: {columns.chosen}, rejected: {columns.rejected}"
        return True, f"stack_exchange_paired_dataset, column_map: {{{names}}}"
    return False, f"{WANTS_FULL}; or all three as text"


TRAINER = Trainer(
    "torchtune",
    "torchtune",
    Use(
        FULL,
        """\
dataset:
  _component_: torchtune.datasets.preference_dataset
  source: {{ place }}
{% if config %}
  name: {{ config }}
{% endif %}
  column_map: {chosen: chosen, rejected: rejected}
  split: train""",
        _reads,
    ),
)
