"""What any model answers: a base, an adapter on one, or a whole checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from macpo_data.engines.protocol import Completion, Request, Voice
from macpo_data.errors import ModelError
from macpo_data.loading.load import load_settings
from macpo_data.models import fits
from macpo_data.models.base import Base
from macpo_data.models.weights import ADAPTER_FILES
from macpo_data.models.worker import Progress, Report, Worker
from macpo_data.outside import OutsideError, parse_object, read_bytes
from macpo_data.recipe.agents import Agent
from macpo_data.recipe.engine import Engine
from macpo_data.recipe.generation import Sampling
from macpo_data.store.manifests import MANIFEST
from macpo_run.standalone import pin


def ask(
    model: str,
    questions: Sequence[str],
    tokens: int,
    sets: list[str] | None,
    progress: Progress,
) -> list[Completion]:
    """The greedy answers of a model to some questions, in their order.

    Args:
        model: an adapter's folder, whose base is found by its configuration; the folder of a
            model; or a base as a recipe names it.
        questions: each a conversation of one turn.
        tokens: of an answer, at most.
        sets: settings as `a.b=c`: chat_template, trust_remote_code, engine.
        progress: shows how far it is.

    Raises:
        MacpoError: there is no such model, or it cannot be loaded.
    """
    folder = Path(model).expanduser()
    adapter = folder if (folder / ADAPTER_FILES[0]).is_file() else None
    base, template = (_base_of(adapter), _template_of(adapter)) if adapter else (model, [])
    settings = load_settings([*template, *(sets or [])])
    agent = Agent(
        role="student",
        base=base,
        chat_template=settings.chat_template,
        trust_remote_code=settings.trust_remote_code,
    )
    loaded = pin(agent, settings, progress)
    if adapter:
        fits.check_adapter(adapter, loaded, settings.another_base)
    voice = Voice(str(adapter.resolve()) if adapter else None, agent.chat_template, model)
    sampling = Sampling(temperature=0, max_new_tokens=tokens)
    requests = [
        Request(voice, [{"role": "user", "content": question}], sampling, 0, model)
        for question in questions
    ]
    name = "fake" if settings.engine.name == "fake" else "transformers"
    engine = settings.engine.model_copy(update={"name": name})
    with progress(f"asking {model}") as report, Worker(loaded.name) as worker:
        answers: dict[int, Completion] = worker.call(
            "macpo_run.asking:answer", engine, loaded, requests, report=report
        )
    return [answers[i] for i in range(len(requests))]


def answer(
    report: Report, settings: Engine, base: Base, requests: Sequence[Request]
) -> dict[int, Completion]:
    """Answer in the process of the model."""
    from macpo_data.engines.choose import open_engine

    answers = {}
    for i, completion in open_engine(settings, base).generate(requests):
        answers[i] = completion
        report(len(answers), len(requests), "answers")
    return answers


def _base_of(adapter: Path) -> str:
    """The base that an adapter names.

    Raises:
        ModelError: it names none.
    """
    try:
        config = parse_object(read_bytes(adapter / ADAPTER_FILES[0]))
    except OutsideError as error:
        raise ModelError(f"no adapter in {adapter}: {error}") from None
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(f"adapter {adapter} does not say of which base it is")
    return base


def _template_of(adapter: Path) -> list[str]:
    """The chat template that it was trained with, as a setting, where its manifest says so."""
    try:
        settings = parse_object(read_bytes(adapter / MANIFEST)).get("settings")
    except (OSError, OutsideError):
        return []
    template = settings.get("chat_template") if isinstance(settings, dict) else None
    return [f"chat_template={template}"] if isinstance(template, str) else []
