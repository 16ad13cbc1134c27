"""What train.launcher names: accelerate's own file, as far as it is read here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from macpo_data.errors import ModelError
from macpo_data.outside import YAML_BYTES, parse_yaml, read_text


class AccelerateConfig(BaseModel):
    """What we read of accelerate's own file; the rest is for accelerate."""

    use_cpu: bool = False
    distributed_type: str | None = None
    num_processes: Annotated[int, Field(ge=1)] = 1


def read_launcher(config: str) -> AccelerateConfig:
    """The values of an accelerate config.

    Raises:
        ModelError: it is none.
    """
    try:
        return AccelerateConfig.model_validate(parse_yaml(read_text(Path(config), YAML_BYTES)))
    except (OSError, ValueError) as error:  # pydantic's own error is a ValueError
        raise ModelError(
            f"cannot read train.launcher {config} ({type(error).__name__}); "
            "`accelerate config --config_file FILE` writes one"
        ) from None
