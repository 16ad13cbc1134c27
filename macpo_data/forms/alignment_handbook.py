"""alignment-handbook: a YAML file with a mixture of datasets."""

from __future__ import annotations

from macpo_data.forms.trainer import FULL, Trainer, Use, reads_full

TRAINER = Trainer(
    "alignment-handbook",
    "alignment-handbook",
    Use(
        FULL,
        """\
dataset_mixture:
  datasets:
    - id: {{ place }}
      config: {{ config }}
      split: train
      columns: [chosen, rejected]""",
        reads_full,
    ),
)
