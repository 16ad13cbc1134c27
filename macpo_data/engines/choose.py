"""Which inference engine a base model uses, and how that engine is opened."""

from __future__ import annotations

from importlib.util import find_spec

from macpo_data.engines.protocol import Engine
from macpo_data.errors import ModelError, of_run
from macpo_data.models.base import ENDPOINTS, Base, gpus
from macpo_data.recipe.engine import Engine as Settings


class NoEngine(ModelError):
    """The engine that a recipe wants is not here."""

    def __init__(self, problem: str, mend: str) -> None:
        """`problem` is what is missing; `mend` is for whoever has no doctor."""
        super().__init__(f"{problem}: {mend}")
        self.problem = problem

    def __reduce__(self) -> tuple[type[ModelError], tuple[str]]:
        """It leaves its process as one line."""
        return ModelError, (str(self),)


def pick(settings: Settings, scorer: str | None = None) -> Settings:
    """The settings with the name of the engine that will write, or with a scorer, score.

    Raises:
        NoEngine: it is not installed.
    """
    name, has_vllm = settings.name, find_spec("vllm") is not None
    if name == "auto":
        name = "vllm" if has_vllm and gpus() else "transformers"
    if scorer and name != "fake":
        name = "vllm" if scorer == "vllm" else "transformers"
    if name == "ray" and find_spec("ray") is None:
        raise NoEngine("Ray is not installed", "pip install 'ray[data]', or set engine.name=vllm")
    if name in ("vllm", "ray") and not has_vllm:
        raise NoEngine(
            "vLLM is not installed",
            f"`{of_run('doctor')}` says which version fits; or set engine.name=transformers and "
            "score.engine=forward",
        )
    if settings.quantization and name == "transformers" and scorer is None:
        raise NoEngine(
            f"engine.quantization={settings.quantization} needs vLLM",
            "set engine.name=vllm, or leave it out",
        )
    return settings.model_copy(update={"name": name})


_open: dict[tuple[str, Base], Engine] = {}


def open_engine(settings: Settings, base: Base) -> Engine:
    """The engine of a base, loaded once per process."""
    key = (settings.name, base)
    if key not in _open:
        if settings.name == "fake":
            from macpo_data.engines.fake import FakeEngine

            _open[key] = FakeEngine(base)
        elif base == ENDPOINTS:
            from macpo_data.engines.openai import OpenAIEngine

            _open[key] = OpenAIEngine()
        elif settings.name == "vllm":
            from macpo_data.engines.vllm import VLLMEngine

            _open[key] = VLLMEngine(base, settings)
        elif settings.name == "ray":
            from macpo_data.engines.ray import RayEngine

            _open[key] = RayEngine(base, settings)
        else:
            from macpo_data.engines.transformers import TransformersEngine

            _open[key] = TransformersEngine(base, settings)
    return _open[key]
