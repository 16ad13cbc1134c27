"""alignment-handbook: a YAML file with a mixture of datasets."""

from __future__ import annotations

from macpo_data.forms.shape import Shape
from macpo_data.forms.trainer import ANY_ROLE, FULL, RENDERED_AGAIN, TEMPLATED, Answer, Trainer, Use
from macpo_data.sources.ingest.canonical import Reason


def _reads(shape: Shape) -> Answer:
    if lost := shape.loses(*TEMPLATED, *([Reason.SEVERAL_MESSAGES] if shape.explicit else [])):
        return False, lost
    if shape.rendered:
        return False, RENDERED_AGAIN
    if shape.full:
        return True, "columns: [chosen, rejected]"
    if shape.usual and shape.explicit and shape.sides == "messages":
        return True, "columns: [prompt, chosen, rejected]"
    return False, "wants messages: whole conversations, or prompt, chosen and rejected"


TRAINER = Trainer(
    "alignment-handbook",
    "alignment-handbook",
    Use(
        FULL,
        """\
dataset_mixture:
  datasets:
    - id: {{ place }}
{% if config %}
      config: {{ config }}
{% endif %}
      split: train
      columns: [chosen, rejected]""",
        _reads,
        takes=TEMPLATED,
        keys=None,
        roles=ANY_ROLE,
    ),
)
