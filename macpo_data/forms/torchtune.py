"""torchtune: its preference dataset, in a YAML file."""

from __future__ import annotations

from macpo_data.forms.trainer import FULL, Trainer, Use, reads_full

TRAINER = Trainer(
    "torchtune",
    "torchtune",
    Use(
        FULL,
        """\
dataset:
  _component_: torchtune.datasets.preference_dataset
  source: {{ place }}
  name: {{ config }}
  column_map: {chosen: chosen, rejected: rejected}
  split: train""",
        reads_full,
    ),
)
