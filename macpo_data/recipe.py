"""The recipe's sections, as `loading` reads them from a YAML.

A field marked KNOB changes how fast or where a thing is made, not what it is; every other field is
identity and enters the fingerprints of the steps that read it. One marked LATER does so where it
is not at its default, so that results from before it existed keep their names.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    field_validator,
    model_validator,
)

from macpo_data import prompts
from macpo_data.errors import MacpoError

KNOB, LATER = "knob", "later"
# Names become paths and dataset config names, so nothing but plain characters.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]  # strict: yes is no number
TRAINED = "trained"  # names the reward model that `macpo train --reward` makes
NAMED_TEMPLATES = ("tokenizer", "vicuna", "alpaca", "chatml")


def digest(value: Any) -> str:
    """Name a JSON value: the first 8 hex digits of the sha256 of its canonical form."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def read_template(path: str) -> str:
    """Read a chat template that a recipe names by its file.

    Raises:
        MacpoError: it cannot be read.
    """
    try:
        return Path(path).expanduser().read_text("utf-8")
    except (OSError, ValueError) as error:
        raise MacpoError(
            f"cannot read chat_template {path}: {error}; "
            f"use one of {', '.join(NAMED_TEMPLATES)} or the path of a Jinja file"
        ) from None


class Section(BaseModel):
    """A part of the recipe: frozen, and a key it does not know is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def identity(self) -> dict[str, Any]:
        """The fields that decide a result, without the knobs, as JSON values."""
        values = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            unset = LATER in field.metadata and value == field.default
            if KNOB in field.metadata or unset:
                del values[name]
            elif isinstance(value, Section):
                values[name] = value.identity()
            elif isinstance(value, dict):
                values[name] = {
                    k: v.identity() if isinstance(v, Section) else v for k, v in value.items()
                }
        return values


class Columns(Section):
    """Which columns of a dataset hold what."""

    prompt: str = "prompt"  # a string or a message list
    chosen: str | None = "chosen"  # a string, or a message list whose last turn is the answer
    rejected: str | None = "rejected"


class More(Section):
    """Rows of a second dataset, for the same part."""

    source: Literal["ultrafeedback", "ultrachat", "pairs"]
    path: str  # Hub id, or a local file
    subset: str | None = None
    revision: str = "main"
    split: str | None = None
    count: Count  # rows to draw


class PartSpec(Section):
    """Where one of the three parts of the data comes from."""

    path: str | list[str] | None = None  # in place of data.path, for this part
    split: str | None = None  # a split of a Hub dataset
    count: Count | None = None  # rows to draw; null takes all
    more: Annotated[More | None, LATER] = None  # a second dataset, whose rows come after these


class Probe(Section):
    """Pairs of D1 that are kept out of every training and every test, and watch over a run."""

    # Of D1's rows; null: 50, or a fifth of D1 where that is less. 0: no probe.
    count: Annotated[int, Field(ge=0, strict=True)] | None = None

    def size(self, rows: int) -> int:
        """How many of so many rows of D1 it takes."""
        return min(50, rows // 5) if self.count is None else self.count


class DataBase(Section):
    """What all sources share."""

    d1: PartSpec = PartSpec()  # initialises the teachers: human answers are used
    d2: PartSpec = PartSpec()  # weak-to-strong half: only its prompts, but for eval.ceiling
    test: PartSpec = PartSpec()  # held out for evaluation
    probe: Probe = Probe()  # part of D1 that nothing learns from and no test uses
    limit: Count | None = None  # at most this many rows of each part, `more` included
    max_prompt_chars: Count | None = None  # longer prompts are put aside
    noise: Share = 0.0  # share of D1 pairs whose sides are swapped, drawn for each teacher anew
    # Share of the student's weak labels whose sides are swapped, in whatever step reads them.
    label_noise: Annotated[Share, LATER] = 0.0
    overlap: Annotated[bool, LATER] = False  # d2 may be drawn from the prompts of d1


class WorldData(DataBase):
    """The embedded world: generated prompts with a gold judge."""

    source: Literal["world"]


class FileData(DataBase):
    """A dataset on the Hub, or local files."""

    path: str | list[str] | None = None  # Hub id, or local parquet / JSONL (.gz) file(s)
    subset: str | None = None  # a folder of the Hub dataset, such as helpful-base
    revision: str = "main"  # of the Hub dataset; pinned in lock.json when first read

    @model_validator(mode="after")
    def _has_path(self) -> FileData:
        missing = [
            p for p in ("d1", "d2", "test") if self.path is None and getattr(self, p).path is None
        ]
        if missing:
            raise ValueError(f"no path for {', '.join(missing)}: set data.path or data.<part>.path")
        return self


class HHData(FileData):
    """Anthropic HH-RLHF: its raw Human/Assistant text, or parquet with message lists."""

    source: Literal["hh_rlhf"]


class PKUData(FileData):
    """PKU-SafeRLHF: two responses, one better and one safer."""

    source: Literal["pku_saferlhf"]
    preference: Literal["better", "safer"] = "better"


class UltraFeedbackData(FileData):
    """UltraFeedback with its best and a worse answer, as in ultrafeedback_binarized."""

    source: Literal["ultrafeedback"]
    path: str | list[str] | None = "HuggingFaceH4/ultrafeedback_binarized"


class UltraChatData(FileData):
    """UltraChat: whole conversations, of which the last answer is taken off. No rejected side."""

    source: Literal["ultrachat"]
    path: str | list[str] | None = "HuggingFaceH4/ultrachat_200k"


class PairsData(FileData):
    """Any preference dataset."""

    source: Literal["pairs"]
    columns: Columns = Columns()


Data = Annotated[
    WorldData | HHData | PKUData | UltraFeedbackData | UltraChatData | PairsData,
    Field(discriminator="source"),
]


_SECRET = re.compile(r"api.?key|authoriz|secret|passw|credential|(access|auth|bearer).?token")


def _has_port(url: str) -> bool:
    """Whether a URL's port can be one."""
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False


def _keys(value: Any) -> Iterator[str]:
    """All names in a JSON value, in lower case."""
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield name.lower()
        yield from _keys(inner)
    for inner in value if isinstance(value, list) else ():
        yield from _keys(inner)


class Endpoint(Section):
    """A model behind an OpenAI-compatible server. Which server answers is no identity."""

    base_url: Annotated[str, Field(min_length=1), KNOB]  # such as http://localhost:8000/v1
    model: Annotated[str, Field(min_length=1)]  # as the server calls it
    api_key_env: Annotated[str | None, KNOB] = None  # environment variable that holds the key
    concurrency: Annotated[Count, KNOB] = 32  # requests under way at once
    timeout: Annotated[Positive, KNOB] = 120.0  # seconds for one request
    retries: Annotated[Annotated[int, Field(ge=0)], KNOB] = 6  # of a request, with growing pauses
    max_failed: Annotated[Share, KNOB] = 0.02  # stop where a larger share fails for good
    price_in: Annotated[Annotated[float, Field(ge=0)] | None, KNOB] = None  # per million tokens
    price_out: Annotated[Annotated[float, Field(ge=0)] | None, KNOB] = None  # per million tokens
    # local: what is trained on the base speaks here. load: vLLM's server loads it from our folder.
    adapters: Annotated[Literal["local", "load"], KNOB] = "local"
    # Laid over each request's body, such as top_k: null for a server that refuses it.
    extra: dict[str, JsonValue] = {}

    @model_validator(mode="after")
    def _holds_no_key(self) -> Endpoint:
        problems = []
        if not (re.fullmatch(r"https?://[^\s@?#]+", self.base_url) and _has_port(self.base_url)):
            problems.append("base_url: write http(s)://host/path without a key, see api_key_env")
        problems += [
            f"extra: {name} looks like a secret, and what stands here is published; see api_key_env"
            for name in _keys(self.extra)
            if _SECRET.search(name)
        ]
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
    base: str = ""  # Hub id, local folder, or world:NAME; an endpoint needs none
    endpoint: Annotated[Endpoint | None, LATER] = None  # a server that speaks for it
    revision: str = "main"  # of the base on the Hub; pinned in lock.json when first read
    chat_template: str = "tokenizer"  # tokenizer | vicuna | alpaca | chatml | a Jinja file
    lr_scale: Annotated[Positive, KNOB] = 1.0  # multiplies its learning rates; train steps read it
    # Of a teacher: the share of its D1 pairs that are swapped, in place of data.noise. The dataset
    # of its round 0 reads it.
    noise: Annotated[Share | None, KNOB] = None
    trust_remote_code: Annotated[bool, KNOB] = False  # runs code that the base's repository brings

    @model_validator(mode="after")
    def _speaks(self) -> Agent:
        if not self.base and self.endpoint is None:
            raise ValueError("a base is missing, or an endpoint that speaks for it")
        return self

    def identity(self) -> dict[str, Any]:
        """A template in a file counts by its content, not by its path."""
        values = super().identity()
        if self.chat_template not in NAMED_TEMPLATES:
            values["chat_template"] = digest(read_template(self.chat_template))
        return values


class Sampling(Section):
    """How policies write."""

    temperature: Annotated[float, Field(ge=0.0)] = 0.95  # 0 is greedy
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.7
    top_k: Annotated[int, Field(ge=0)] = 50  # 0 keeps all tokens
    max_new_tokens: Count = 512
    n: Count = 1  # answers per positive policy and prompt


class Select(Section):
    """Which candidates become chosen responses."""

    # Who is best.
    by: Annotated[Literal["perplexity", "judge", "reward", "random"], LATER] = "perplexity"
    # Where perplexity selects: whose. peers: of the teachers who did not write the answer, the mean
    # of their log perplexities.
    under: Annotated[Literal["learner", "peers"], LATER] = "learner"
    # Which of these perplexities is best.
    order: Annotated[Literal["lowest", "highest", "middle", "random"], LATER] = "lowest"
    keep: Count = 1  # pairs per prompt, the best first
    # Share kept of all of these, the best.
    pool: Annotated[Share | None, Field(gt=0.0), LATER] = None
    # Where perplexity selects: answers that the learner finds more perplexing are never chosen.
    max_perplexity: Positive | None = None
    on_filter: Literal["drop", "count"] = "drop"  # count: note what a filter caught, keep it
    min_chars: Annotated[int, Field(ge=0)] = 1
    max_chars: Count | None = None
    truncated: bool = True  # catch responses that the token limit cut
    max_repetition: Share | None = 0.5  # share of 3-word runs that occurred before in the response
    same_as_rejected: bool = True  # catch a chosen response equal to the rejected one
    # Files or Hub ids; prompts that occur in them are dropped.
    test_sets: Annotated[list[str], LATER] = []
    ngram: Annotated[int, Field(ge=2)] = 8  # words in a run, for prompts that overlap a test set
    ngram_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5  # of a test prompt's runs, to drop
    # Drop those as alike.
    near_duplicates: Annotated[float | None, Field(gt=0.0, le=1.0), LATER] = None

    @property
    def excludes(self) -> bool:
        """Whether prompts are dropped, and not only candidates."""
        return bool(self.test_sets) or self.near_duplicates is not None

    def identity(self) -> dict[str, Any]:
        """How test sets are read counts where there are any."""
        values = super().identity()
        if not self.test_sets:
            del values["ngram"], values["ngram_share"]
        return values


class SFT(Section):
    """Supervised fine-tuning: cross-entropy over response tokens."""

    epochs: Positive = 3.0
    learning_rate: Positive = 5e-5
    batch_size: Count = 32  # sequences per optimiser step
    packing: Annotated[bool, KNOB] = False  # lay several end to end in place of padding


class Confidence(Section):
    """Fine-tuning that trusts the student's own predictions beside its weak labels."""

    weight: Share = 0.5  # of the student's own predictions, once it is there
    ramp: Share = 0.2  # share of the steps in which it rises from 0


class Spin(Section):
    """What only method spin reads."""

    # Each round also learns the pairs of the round before, as the paper's own code does.
    earlier_pairs: bool = False


class Delta(Section):
    """What only method delta reads: the two teachers who write its pairs."""

    chosen: str  # the better one
    rejected: str


class Negative(SFT):
    """Fine-tuning on rejected responses, which goes on from the positive policy."""

    epochs: Positive = 1.0


class DPO(Section):
    """Direct preference optimisation with an SFT term on the chosen response."""

    epochs: Positive = 1.0
    learning_rate: Positive = 1e-5
    batch_size: Count = 16  # pairs per optimiser step
    beta: Positive = 0.1
    gamma: Annotated[float, Field(ge=0.0)] = 0.2  # weight of the SFT term
    sft_normalization: Literal["response", "token"] = "response"
    # Of the preferences: sigmoid is DPO's own; none: the SFT term alone.
    loss: Literal["sigmoid", "hinge", "ipo", "none"] = "sigmoid"
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = (
        0.0  # share of pairs taken as swapped
    )
    # What the policy is held to: the bare base, the policy at the start of the round, or the
    # agent's positive policy of round 0 in every round.
    reference: Literal["base", "previous", "initial"] = "base"

    @field_validator("loss", mode="before")
    @classmethod
    def _is_ours(cls, value: Any) -> Any:
        names = get_args(cls.model_fields["loss"].annotation)
        if value not in names:
            raise ValueError(
                f"{value!r} is none of {', '.join(names)}; with other losses the published pairs "
                "train with trl: see the card"
            )
        return value


class Lora(Section):
    """The adapter's shape."""

    r: Count = 8
    alpha: Count = 16
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    targets: Annotated[list[str], Field(min_length=1)] = ["q_proj", "v_proj"]
    rslora: bool = False  # scale by alpha / sqrt(r), which keeps large ranks learning


class RewardModel(Section):
    """A sequence classifier that scores an answer. A recipe may give just its name."""

    model: Annotated[str, Field(min_length=1)]  # Hub id, folder, or trained: the run's own
    revision: str = "main"  # on the Hub; pinned in lock.json when first read
    chat_template: str = "tokenizer"  # as for agents
    # Of several outputs: which one, or a weight for each.
    head: Annotated[int, Field(strict=True)] | list[float] | None = None

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @property
    def agent(self) -> Agent:
        """What its weights are, in the form in which bases are pinned and loaded."""
        return Agent(
            role="judge", base=self.model, revision=self.revision, chat_template=self.chat_template
        )


class JudgePrompts(Section):
    """What a judge is asked: names of the package's own prompts, or files."""

    verdict: str = "verdict"  # kind llm: query and both answers
    criteria: str = "criteria"  # kind mixture: which criteria matter for this pair
    critique: str = "critique"  # a proposer's turn
    weigh: str = "weigh"  # the verdict on query, answers, criteria and reviews
    points: str = "points"  # kind points: query and one answer

    def identity(self) -> dict[str, Any]:
        """A prompt counts by its text."""
        return {name: digest(prompts.read(path)) for name, path in super().identity().items()}


class Judge(Section):
    """Who compares two answers, and how its verdicts become a ranking."""

    # gold: the embedded world's own, in code. likelihood: how probable the agent finds an answer.
    # points: the agent gives each answer by itself 0 to 5.
    kind: Literal["gold", "llm", "mixture", "reward", "likelihood", "points"]
    reward: RewardModel | None = None  # kind reward: a classifier, whose higher score wins
    agent: str | None = None  # who gives the verdict, and chooses the criteria of a mixture
    proposers: list[str] = []  # kind mixture: who write critiques
    criteria: Annotated[int, Field(ge=0, le=8)] = 3  # of eight, chosen for each pair; 0: all
    prompts: JudgePrompts = JudgePrompts()
    # Kind points: n draws of each, of which the mean counts.
    sampling: Sampling = Sampling(temperature=0, top_p=1, top_k=0, max_new_tokens=1024)
    pairs: Literal["all", "swiss", "first_vs_rest"] = "all"  # which answers meet
    merge: Literal["each", "agree"] = "each"  # each verdict counts, or only what both orders say
    ties: Literal["random", "first"] = "random"  # between answers of one score
    max_position_bias: Annotated[float, Field(ge=0.5, le=1.0), KNOB] = 0.75  # stop beyond it

    @model_validator(mode="after")
    def _has_agents(self) -> Judge:
        if self.kind in ("llm", "mixture", "likelihood", "points") and not self.agent:
            raise ValueError(f"kind {self.kind} needs an agent that gives the verdict")
        if self.kind == "reward" and self.reward is None:
            raise ValueError("kind reward needs a reward model")
        if self.kind == "mixture" and not self.proposers:
            raise ValueError("kind mixture needs proposers")
        if self.kind == "points" and self.sampling.n > 1 and self.sampling.temperature == 0:
            raise ValueError("sampling.n above 1 needs a sampling.temperature above 0")
        return self

    def identity(self) -> dict[str, Any]:
        """The prompt of points, later than the others, is none of another kind."""
        values = super().identity()
        if self.kind != "points":
            del values["prompts"]["points"]
        return values


class RewardTraining(Section):
    """How `macpo train --reward` makes a reward model from D1's human pairs."""

    base: str | None = None  # Hub id, folder or world:NAME; null: the student's
    revision: str = "main"
    chat_template: str = "tokenizer"
    full: bool = False  # train all weights, not an adapter
    epochs: Positive = 1.0
    learning_rate: Positive = 1e-4
    batch_size: Count = 32  # pairs per optimiser step


class EvalSampling(Section):
    """How policies answer the prompts they are measured on: greedily, so that no draw counts."""

    temperature: Annotated[float, Field(ge=0.0)] = 0.0  # 0 is greedy
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0  # 0 keeps all tokens
    max_new_tokens: Count | None = None  # null: that of the recipe's sampling
    n: Count = 1  # answers per prompt, whose mean counts

    @model_validator(mode="after")
    def _differ(self) -> EvalSampling:
        if self.n > 1 and self.temperature == 0:
            raise ValueError("n: greedy answers are all the same; raise temperature, or set n=1")
        return self


class Eval(Section):
    """How `macpo eval` measures policies on the held-out prompts."""

    sampling: EvalSampling = EvalSampling()
    reward: RewardModel | None = None  # scores each answer by itself
    judge: Judge | None = None  # compares answers with the baseline's; null: that of the data
    against: str | None = None  # the baseline: a policy as student-positive-0, or chosen
    ceiling: bool = False  # train the student on the good answers of d2 too, to measure the gap


class Mixture(Section):
    """Layers of agents; each layer reads the answers of the one before, the last one aggregates."""

    layers: Annotated[list[Annotated[list[str], Field(min_length=1)]], Field(min_length=1)]
    # Where the answers of the layer before stand: system, after one that is there, or user, before
    # the first turn, for models that know no system message.
    insert: Literal["system", "user"] = "system"
    prompt: str = "aggregate"  # a name of the package's own, or a file
    # Whose answers are learned: those of the last layer, or of the first one the best by the judge,
    # one at random, or all.
    keep: Literal["aggregate", "best", "random", "all"] = "aggregate"
    turns: Literal["all", "last"] = "all"  # of a conversation: a row for each, or for the last
    sampling: Sampling = Sampling(temperature=0.7, top_p=1, top_k=0, max_new_tokens=2048)

    @model_validator(mode="after")
    def _ends_in_one(self) -> Mixture:
        if self.keep == "aggregate" and len(self.layers[-1]) != 1:
            raise ValueError("the last layer is one agent, the aggregator, to keep its answers")
        return self

    def identity(self) -> dict[str, Any]:
        """A prompt counts by its text."""
        return super().identity() | {"prompt": digest(prompts.read(self.prompt))}


class Framing(Section):
    """What leads one model to good and to bad answers: names of the package's texts, or files."""

    positive: str = "good"
    negative: str = "bad"
    insert: Literal["system", "user"] = "system"  # user: before the first turn

    def identity(self) -> dict[str, Any]:
        """A text counts by what it says."""
        sides = {side: getattr(self, side) for side in ("positive", "negative")}
        return super().identity() | {k: digest(prompts.read(v)) for k, v in sides.items()}


class Train(Section):
    """What all training shares."""

    max_length: Count = 1024  # tokens of prompt and response
    # Longer ones lose the response's end, or the prompt's beginning, or are left out.
    truncation: Literal["keep_start", "keep_end", "drop"] = "keep_start"
    max_truncated: Annotated[Share, KNOB] = 0.05  # refuse to train where more rows are too long
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Share = 0.0  # share of the steps
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    max_grad_norm: Positive = 1.0
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    quantization: Literal["none", "nf4"] = "none"  # of the base: QLoRA, on a GPU
    micro_batch_size: Annotated[Count | None, KNOB] = None  # null: the whole batch at once
    gradient_checkpointing: Annotated[bool, KNOB] = False
    shared_prompt: Annotated[bool, KNOB] = True  # read a prompt once for chosen and rejected
    # Between checkpoints; null: every 5 minutes, with several processes every 100.
    save_steps: Annotated[Count | None, KNOB] = None
    report_to: Annotated[Literal["none", "tensorboard", "trackio", "wandb"], KNOB] = "none"
    launcher: Annotated[str | None, KNOB] = None  # an accelerate config: train in its processes


class VLLM(Section):
    """How vLLM uses the hardware."""

    # Of the GPU's memory; null: vLLM's own choice, and 1 GiB for the cache on a CPU.
    memory: Annotated[float | None, Field(gt=0.0, le=1.0)] = None
    tensor_parallel: Count = 1  # GPUs that share each layer
    pipeline_parallel: Count = 1  # GPUs that share the layers out
    data_parallel: Count = 1  # copies side by side, with engine.name=ray
    max_model_len: Count | None = None  # tokens of prompt and response; null: what the base allows
    enforce_eager: bool | None = None  # compile nothing; null: on a CPU only


class Engine(Section):
    """What runs the models that write and score."""

    # auto: vllm where it is installed and there is a GPU, else transformers.
    name: Annotated[Literal["auto", "transformers", "vllm", "ray", "fake"], KNOB] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: as the base was saved
    quantization: Annotated[str | None, LATER] = None  # as vLLM names it, such as fp8
    adapters: Annotated[Literal["lora", "merge"], KNOB] = "lora"  # merge: vLLM serves a copy each
    vllm: Annotated[VLLM, KNOB] = VLLM()
    batch_size: Annotated[Count, KNOB] = 64  # sequences per forward pass
    shared_prompt: Annotated[bool, KNOB] = True  # score all responses to a prompt in one pass
    shard_size: Annotated[Count, KNOB] = 256  # prompts per file: what a kill may cost
    keep_loaded: Annotated[Count, KNOB] = 1  # base models in memory at once

    @model_validator(mode="after")
    def _can_copy(self) -> Engine:
        if self.vllm.data_parallel > 1 and self.name != "ray":
            raise ValueError("vllm.data_parallel above 1 needs engine.name=ray")
        if self.name == "ray" and self.adapters == "merge":
            raise ValueError("adapters=merge needs engine.name=vllm")
        if self.quantization and self.name == "transformers":
            raise ValueError("quantization needs engine.name=vllm or ray")
        return self

    def identity(self) -> dict[str, Any]:
        """Which real engine wrote is no identity, but a fake one is."""
        return super().identity() | {"fake": self.name == "fake"}


class Score(Section):
    """What computes how likely a policy finds a given response."""

    engine: Literal["forward", "vllm"] = "forward"  # vllm: its prompt_logprobs, a sample checked


class Recipe(Section):
    """One experiment, from data to trained rounds."""

    run: Annotated[Name, KNOB]  # folder under runs/; variants of a sweep share one
    method: Literal[
        "macpo", "moaa", "weak_labels", "spin", "self_rewarding", "rlaif", "rlcd", "delta"
    ] = "macpo"
    seed: Seed = 0
    rounds: Annotated[Annotated[int, Field(ge=0)], KNOB] = 3  # the last round that `run` makes
    data: Data
    agents: dict[Name, Agent]
    labeller: str | None = None  # teacher who labels D2 for the student; null: the first
    schedule: Literal["alternating", "simultaneous"] = "alternating"
    positives: Literal["mutual", "own"] = "mutual"  # own: each agent's are its own answers
    # The negative twin of round 0 writes once, or anew in every round; or a twin is retrained from
    # the newest positive policy in every round, on the rejected answers of round 0.
    negatives: Literal["once", "every_round", "retrained"] = "once"
    # Who writes them: the negative twins; the bare base; the positive policies, framed to be bad;
    # or nobody: the words of the chosen answer shuffled, or the chosen answer of another prompt.
    negatives_by: Literal["fine_tuning", "base", "framing", "corruption", "mismatch"] = (
        "fine_tuning"
    )
    frozen_teachers: bool = False  # after round 0 the student alone learns
    # When `run` ends before the last round. converged: once the student's perplexity of what it
    # learns hardly falls. probe: once its perplexity of the probe's chosen answers is too high.
    stop: Annotated[Literal["rounds", "converged", "probe"], KNOB] = "rounds"
    stop_below: Annotated[Share, KNOB] = 0.01  # converged: less than this share, in one round
    # Times round 0's perplexity of the probe: rounds beyond are never the best one.
    stop_above: Annotated[float, Field(gt=1.0), KNOB] = 1.25
    framing: Framing = Framing()
    spin: Annotated[Spin, LATER] = Spin()
    delta: Annotated[Delta | None, LATER] = None
    sampling: Sampling = Sampling()
    select: Select = Select()
    sft: SFT = SFT()
    # Of the student's fine-tuning; null: cross-entropy.
    confidence: Annotated[Confidence | None, LATER] = None
    negative: Negative = Negative()
    dpo: DPO = DPO()
    lora: Lora = Lora()
    train: Train = Train()
    engine: Engine = Engine()
    score: Annotated[Score, KNOB] = Score()
    mixture: Annotated[Mixture | None, LATER] = None
    judge: Annotated[Judge | None, LATER] = None
    reward: Annotated[RewardTraining, KNOB] = RewardTraining()  # for evaluation alone
    eval: Annotated[Eval, KNOB] = Eval()

    @property
    def teachers(self) -> list[str]:
        """Names of the teachers, as written."""
        return [name for name, agent in self.agents.items() if agent.role == "teacher"]

    @property
    def students(self) -> list[str]:
        """Names of the students, as written."""
        return [name for name, agent in self.agents.items() if agent.role == "student"]

    def noise(self, agent: str) -> float:
        """The share of the human pairs that are swapped for an agent."""
        own = self.agents[agent].noise if agent in self.agents else None
        return self.data.noise if own is None else own

    @property
    def eval_sampling(self) -> Sampling:
        """How policies answer the prompts they are measured on, its limit filled in."""
        own = self.eval.sampling
        limit = own.max_new_tokens or self.sampling.max_new_tokens
        return Sampling(**own.model_dump() | {"max_new_tokens": limit})

    def read(self, path: str) -> Any:
        """The identity of what stands at a dotted path, such as `agents.student` or `dpo`."""
        value: Any = self
        for key in path.split("."):
            value = value[key] if isinstance(value, dict) else getattr(value, key)
        return value.identity() if isinstance(value, Section) else value


def text_files(values: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Where a recipe's values name a text in a file: (section, key)."""
    evaluation = values.get("eval") or {}
    judges = [judge for part in (values, evaluation) if (judge := part.get("judge"))]
    rewards = [part.get("reward") for part in (values, evaluation, *judges)]
    for speaker in [*values["agents"].values(), *rewards]:
        named = isinstance(speaker, dict) and speaker.get("chat_template", "tokenizer")
        if named and named not in NAMED_TEMPLATES:
            yield speaker, "chat_template"
    asked = [judge.get("prompts") or {} for judge in judges]
    texts = [(section, key) for section in asked for key in section]
    frames = values.get("framing") or {}
    texts += [(frames, side) for side in ("positive", "negative")]
    for section, key in [(values.get("mixture") or {}, "prompt"), *texts]:
        if key in section and not prompts.is_own(section[key]):
            yield section, key


class TrainSettings(Section):
    """How `macpo train --dataset` trains: what a recipe would say, and nothing about rounds."""

    objective: Literal["dpo", "sft"] = "dpo"  # sft: on the chosen answers alone
    seed: Seed = 0
    chat_template: str = "tokenizer"
    trust_remote_code: bool = False
    columns: Columns = Columns()
    dpo: DPO = DPO(reference="previous")
    sft: SFT = SFT()
    confidence: Confidence | None = None  # of sft
    lora: Lora = Lora()
    train: Train = Train()
    engine: Engine = Engine()
