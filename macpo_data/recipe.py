"""The recipe: the user's YAML, validated. All its mistakes are reported at once.

A field marked `Knob` changes how fast or where a thing is made, not what it is; every other field
is identity and enters the fingerprints of the steps that read it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from macpo_data import prompts
from macpo_data.errors import MacpoError, RecipeError

KNOB = "knob"
# Names become paths and dataset config names, so nothing but plain characters.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]  # strict: yes is no number
SMOOTHED = ("sigmoid", "robust", "exo_pair", "aot", "aot_unpaired")  # losses with label_smoothing
TRAINED = "trained"  # names the reward model that `macpo train --reward` makes
NAMED_TEMPLATES = ("tokenizer", "vicuna", "alpaca", "chatml")
# Names a person types after --recipe; a path or a name with a suffix is a file.
_SHIPPED = re.compile(r"^[a-z0-9_]+$")


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
            if KNOB in field.metadata:
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
    more: More | None = None  # a second dataset, whose rows come after these

    def identity(self) -> dict[str, Any]:
        """What is not there is no part of it, so that older results keep their names."""
        return {k: v for k, v in super().identity().items() if v is not None or k != "more"}


class DataBase(Section):
    """What all sources share."""

    d1: PartSpec = PartSpec()  # initialises the teachers: human answers are used
    d2: PartSpec = PartSpec()  # weak-to-strong half: only its prompts are used
    test: PartSpec = PartSpec()  # held out for evaluation
    limit: Count | None = None  # at most this many rows of each part, `more` included
    max_prompt_chars: Count | None = None  # longer prompts are put aside
    noise: Share = 0.0  # share of D1 pairs whose sides are swapped, drawn for each teacher anew
    label_noise: Share = 0.0  # share of the student's weak labels whose sides are swapped
    overlap: bool = False  # d2 may be drawn from the prompts of d1

    def identity(self) -> dict[str, Any]:
        """What is switched off is no part of it, so that older results keep their names."""
        off = ("label_noise", "overlap")
        return {k: v for k, v in super().identity().items() if v or k not in off}


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
    extra: dict[str, Any] = {}

    @model_validator(mode="after")
    def _holds_no_key(self) -> Endpoint:
        problems = []
        if not re.fullmatch(r"https?://[^\s@?#]+", self.base_url):
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
    base: str = ""  # Hub id, local folder, or world:NAME; an endpoint needs none
    endpoint: Endpoint | None = None  # a server that speaks for it
    revision: str = "main"  # of the base on the Hub; pinned in lock.json when first read
    chat_template: str = "tokenizer"  # tokenizer | vicuna | alpaca | chatml | a Jinja file
    lr_scale: Annotated[Positive, KNOB] = 1.0  # multiplies its learning rates; train steps read it
    trust_remote_code: Annotated[bool, KNOB] = False  # runs code that the base's repository brings

    @model_validator(mode="after")
    def _speaks(self) -> Agent:
        if not self.base and self.endpoint is None:
            raise ValueError("a base is missing, or an endpoint that speaks for it")
        return self

    def identity(self) -> dict[str, Any]:
        """A template in a file counts by its content, not by its path."""
        values = super().identity()
        if self.endpoint is None:  # no part of it, so that older results keep their names
            del values["endpoint"]
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

    by: Literal["perplexity", "judge", "reward", "random"] = "perplexity"  # who is best
    # Where perplexity selects: which is best.
    order: Literal["lowest", "highest", "middle", "random"] = "lowest"
    keep: Count = 1  # pairs per prompt, the best first
    pool: Annotated[Share | None, Field(gt=0.0)] = None  # share kept of all of these, the best
    max_perplexity: Positive | None = None  # where perplexity selects, none above it is chosen
    on_filter: Literal["drop", "count"] = "drop"  # count: note what a filter caught, keep it
    min_chars: Annotated[int, Field(ge=0)] = 1
    max_chars: Count | None = None
    truncated: bool = True  # catch responses that the token limit cut
    max_repetition: Share | None = 0.5  # share of 3-word runs that occurred before in the response
    same_as_rejected: bool = True  # catch a chosen response equal to the rejected one
    test_sets: list[str] = []  # files or Hub ids; prompts that occur in them are dropped
    ngram: Annotated[int, Field(ge=2)] = 8  # words in a run, for prompts that overlap a test set
    ngram_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5  # of a test prompt's runs, to drop
    near_duplicates: Annotated[float | None, Field(gt=0.0, le=1.0)] = None  # drop those as alike

    @property
    def excludes(self) -> bool:
        """Whether prompts are dropped, and not only candidates."""
        return bool(self.test_sets) or self.near_duplicates is not None

    def identity(self) -> dict[str, Any]:
        """What is switched off is no part of it, so that older results keep their names."""
        values = super().identity()
        for name in ("by", "order", "pool"):
            if values[name] == type(self).model_fields[name].default:
                del values[name]
        if not self.test_sets:
            for name in ("test_sets", "ngram", "ngram_share"):
                del values[name]
        if self.near_duplicates is None:
            del values["near_duplicates"]
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
    loss: Literal[
        "sigmoid",
        "sigmoid_norm",
        "hinge",
        "ipo",
        "exo_pair",
        "nca_pair",
        "robust",
        "bco_pair",
        "sppo_hard",
        "aot",
        "aot_unpaired",
        "apo_zero",
        "apo_down",
        "discopop",
    ] = "sigmoid"  # of the preferences, by trl's names
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = (
        0.0  # share of pairs taken as swapped
    )
    reference: Literal["base", "previous"] = "base"


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

    def identity(self) -> dict[str, Any]:
        """A prompt counts by its text."""
        return {name: digest(prompts.read(path)) for name, path in super().identity().items()}


class Judge(Section):
    """Who compares two answers, and how its verdicts become a ranking."""

    # gold: the embedded world's own, in code. likelihood: how probable the agent finds an answer.
    kind: Literal["gold", "llm", "mixture", "reward", "likelihood"]
    reward: RewardModel | None = None  # kind reward: a classifier, whose higher score wins
    agent: str | None = None  # who gives the verdict, and chooses the criteria of a mixture
    proposers: list[str] = []  # kind mixture: who write critiques
    criteria: Annotated[int, Field(ge=0, le=8)] = 3  # of eight, chosen for each pair; 0: all
    prompts: JudgePrompts = JudgePrompts()
    sampling: Sampling = Sampling(temperature=0, top_p=1, top_k=0, max_new_tokens=1024)
    pairs: Literal["all", "swiss", "first_vs_rest"] = "all"  # which answers meet
    merge: Literal["each", "agree"] = "each"  # each verdict counts, or only what both orders say
    ties: Literal["random", "first"] = "random"  # between answers of one score
    max_position_bias: Annotated[float, Field(ge=0.5, le=1.0), KNOB] = 0.75  # stop beyond it

    @model_validator(mode="after")
    def _has_agents(self) -> Judge:
        if self.kind in ("llm", "mixture", "likelihood") and not self.agent:
            raise ValueError(f"kind {self.kind} needs an agent that gives the verdict")
        if self.kind == "reward" and self.reward is None:
            raise ValueError("kind reward needs a reward model")
        if self.kind == "mixture" and not self.proposers:
            raise ValueError("kind mixture needs proposers")
        return self


class RewardTraining(Section):
    """How `macpo train --reward` makes a reward model from D1's human pairs."""

    base: str | None = None  # Hub id, folder or world:NAME; null: the student's
    revision: str = "main"
    chat_template: str = "tokenizer"
    full: bool = False  # train all weights, not an adapter
    epochs: Positive = 1.0
    learning_rate: Positive = 1e-4
    batch_size: Count = 32  # pairs per optimiser step


class Eval(Section):
    """How `macpo eval` measures policies on the held-out prompts."""

    reward: RewardModel | None = None  # scores each answer by itself
    judge: Judge | None = None  # compares answers with the baseline's; null: that of the data
    against: str | None = None  # the baseline: a policy as student-positive-0, or chosen


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
    """What SFT and DPO share."""

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
    quantization: str | None = None  # as vLLM names it, such as fp8
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
        return self

    def identity(self) -> dict[str, Any]:
        """Which real engine wrote is no identity, but a fake one is."""
        values = super().identity() | {"fake": self.name == "fake"}
        if self.quantization is None:  # no part of it, so that older results keep their names
            del values["quantization"]
        return values


class Score(Section):
    """What computes how likely a policy finds a given response."""

    engine: Literal["forward", "vllm"] = "forward"  # vllm: its prompt_logprobs, a sample checked


class Recipe(Section):
    """One experiment, from data to trained rounds."""

    run: Annotated[Name, KNOB]  # folder under runs/; variants of a sweep share one
    method: Literal["macpo", "moaa", "weak_labels", "spin", "self_rewarding", "rlaif", "rlcd"] = (
        "macpo"
    )
    seed: Seed = 0
    rounds: Annotated[Annotated[int, Field(ge=0)], KNOB] = 3  # the last round that `run` makes
    data: Data
    agents: dict[Name, Agent]
    labeller: str | None = None  # teacher who labels D2 for the student; null: the first
    schedule: Literal["alternating", "simultaneous"] = "alternating"
    positives: Literal["mutual", "own"] = "mutual"  # own: each agent's are its own answers
    negatives: Literal["once", "every_round"] = "once"
    # Who writes them: the negative twins; the bare base; the positive policies, framed to be bad;
    # or nobody: the words of the chosen answer shuffled, or the chosen answer of another prompt.
    negatives_by: Literal["fine_tuning", "base", "framing", "corruption", "mismatch"] = (
        "fine_tuning"
    )
    frozen_teachers: bool = False  # after round 0 the student alone learns
    # converged: `run` ends once the student's perplexity of what it learns hardly falls.
    stop: Annotated[Literal["rounds", "converged"], KNOB] = "rounds"
    stop_below: Annotated[Share, KNOB] = 0.01  # converged: less than this share, in one round
    framing: Framing = Framing()
    sampling: Sampling = Sampling()
    select: Select = Select()
    sft: SFT = SFT()
    confidence: Confidence | None = None  # of the student's fine-tuning; null: cross-entropy
    negative: Negative = Negative()
    dpo: DPO = DPO()
    lora: Lora = Lora()
    train: Train = Train()
    engine: Engine = Engine()
    score: Annotated[Score, KNOB] = Score()
    mixture: Mixture | None = None
    judge: Judge | None = None
    reward: Annotated[RewardTraining, KNOB] = RewardTraining()  # for evaluation alone
    eval: Annotated[Eval, KNOB] = Eval()

    def identity(self) -> dict[str, Any]:
        """What is not there is no part of it, so that older results keep their names."""
        optional = ("mixture", "judge", "confidence")
        absent = [name for name in optional if getattr(self, name) is None]
        return {k: v for k, v in super().identity().items() if k not in absent}

    @property
    def teachers(self) -> list[str]:
        """Names of the teachers, as written."""
        return [name for name, agent in self.agents.items() if agent.role == "teacher"]

    @property
    def students(self) -> list[str]:
        """Names of the students, as written."""
        return [name for name, agent in self.agents.items() if agent.role == "student"]

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


def load_settings(sets: list[str] | None) -> TrainSettings:
    """Defaults with `a.b=c` settings laid over them.

    Raises:
        RecipeError: anything is wrong; all mistakes at once.
    """
    values: dict[str, Any] = {"dpo": {"reference": "previous"}}
    problems = [p for setting in sets or [] if (p := _apply(values, setting))]
    if not problems:
        objective = "sft" if values.get("objective") == "sft" else "dpo"
        problems = _untrainable(values, objective)
        if values.get("confidence") and objective == "dpo":
            problems.append("confidence: only objective=sft reads it")
        try:
            settings = TrainSettings.model_validate(values)
        except ValidationError as error:
            problems = explain(error) + problems
    if problems:
        raise RecipeError("--set", problems)
    return settings


def shipped() -> list[str]:
    """Names of the recipes that come with the package."""
    files = resources.files("recipes").iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))


def recipe_text(recipe: str | None) -> tuple[str, str]:
    """Find a recipe: (where it is, its YAML).

    `None` is ./macpo.yaml where there is one, else quickstart.

    Raises:
        MacpoError: there is no such recipe.
    """
    if recipe is None:
        recipe = "macpo.yaml" if Path("macpo.yaml").is_file() else "quickstart"
    if _SHIPPED.match(recipe):
        if recipe not in shipped():
            raise MacpoError(
                f"no recipe named {recipe!r}; shipped are {', '.join(shipped())} "
                "(a file is given with its path, such as ./mine.yaml)"
            )
        return recipe, (resources.files("recipes") / f"{recipe}.yaml").read_text("utf-8")
    try:
        return recipe, Path(recipe).read_text("utf-8")
    except FileNotFoundError:
        raise MacpoError(
            f"no recipe file {recipe}; `macpo init` writes ./macpo.yaml, shipped are "
            f"{', '.join(shipped())}"
        ) from None
    except (OSError, ValueError) as error:
        raise MacpoError(f"cannot read recipe {recipe}: {error}; give a YAML file") from None


class _DoubleKey(yaml.MarkedYAMLError):
    """A key that stands twice; YAML itself would silently take the last."""


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and keys.count(key.value) > 1:
                raise _DoubleKey(problem=f"{key.value} stands twice", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(source: str, text: str) -> dict[str, Any]:
    """Parse a file that is a mapping of keys.

    Raises:
        RecipeError: it is none, or a key stands twice.
    """
    try:
        values = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        why = f": {error.problem}" if isinstance(error, _DoubleKey) else ""
        raise RecipeError(source, [f"not valid YAML{line}{why}"]) from None
    if not isinstance(values, dict):
        raise RecipeError(source, ["a recipe is a mapping of keys, see `macpo init quickstart`"])
    return values


def load_recipe(
    recipe: str | None = None,
    sets: list[str] | None = None,
    over: Sequence[tuple[str, Any]] = (),
) -> Recipe:
    """Load and validate a recipe by name or file, with `a.b=c` settings laid over it.

    Args:
        recipe: as a person names it.
        sets: settings from the command line; they have the last word.
        over: (dotted path, value) of a study, laid over the file before them.

    Raises:
        RecipeError: anything is wrong; all mistakes at once, with dotted paths.
        MacpoError: there is no such recipe.
    """
    source, text = recipe_text(recipe)
    values = read_yaml(source, text)
    problems = [p for path, value in over if (p := _lay(values, path, value))]
    problems += [p for setting in sets or [] if (p := _apply(values, setting))]
    if problems:
        raise RecipeError(source, problems)
    if isinstance(values.get("agents"), dict):  # null takes one out
        values["agents"] = {k: v for k, v in values["agents"].items() if v is not None}
    try:
        loaded = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(source, explain(error) + _misfits(values)) from None
    if problems := _misfits(values) + _unfilled(loaded):
        raise RecipeError(source, problems)
    return loaded


def _unfilled(recipe: Recipe) -> list[str]:
    """Prompts that would be asked without what they are about."""
    named = [("mixture.prompt", "aggregate", recipe.mixture.prompt)] if recipe.mixture else []
    for path, judge in (("judge", recipe.judge), ("eval.judge", recipe.eval.judge)):
        texts = judge.prompts.model_dump() if judge else {}
        named += [(f"{path}.prompts.{kind}", kind, text) for kind, text in texts.items()]
    for side in ("positive", "negative"):
        prompts.fill(getattr(recipe.framing, side))
    return [
        f"{path}: {text} lacks {', '.join('$' + name for name in names)}"
        for path, kind, text in named
        if (names := prompts.lacking(kind, text))
    ]


def _misfits(values: dict[str, Any]) -> list[str]:
    """Mistakes between fields. Looks at the raw values, so that a wrong field hides none."""
    agents = values.get("agents")
    if not isinstance(agents, dict):
        return []
    roles = {name: a.get("role") for name, a in agents.items() if isinstance(a, dict)}
    teachers = [name for name, role in roles.items() if role == "teacher"]
    students = [name for name, role in roles.items() if role == "student"]
    labeller = values.get("labeller")
    problems = []
    method = values.get("method", "macpo")
    if method != "moaa" and not teachers:
        problems.append("agents: no agent with role teacher")
    problems += _unread(values, method)
    if method == "self_rewarding" and len(students) == 1:
        if _raw(values, "judge", "agent", students[0]) != students[0]:
            problems.append(f"judge.agent: in method {method} the student judges: {students[0]}")
        if _raw(values, "judge", "kind", "llm") not in ("llm", "likelihood"):
            problems.append(f"judge.kind: in method {method} the student judges: llm or likelihood")
    if method == "moaa":
        problems += [
            f"{section}: missing; method moaa needs it"
            for section in ("mixture", "judge")
            if not values.get(section)
        ]
    if method in ("rlaif", "self_rewarding") and not values.get("judge"):
        problems.append(f"judge: missing; method {method} needs it")
    if method in ("moaa", "rlaif", "self_rewarding") and _raw(values, "sampling", "n", 1) == 1:
        problems.append(f"sampling.n: method {method} compares answers of the student: 2 or more")
    if len(students) != 1:
        problems.append(f"agents: {len(students)} agents with role student, 1 is needed")
    if labeller is not None and labeller not in teachers:
        problems.append(
            f"labeller: {labeller!r} is no teacher (those are: {', '.join(map(str, teachers))})"
        )
    problems += _untrainable(values, "sft", "negative", "dpo")
    problems += _misnamed(values, roles)
    keep, n = _raw(values, "select", "keep", 1), _raw(values, "sampling", "n", 1)
    heard = len(teachers)
    mixed = [
        name for layer in _items(_raw(values, "mixture", "layers", [])) for name in _items(layer)
    ]
    if method == "macpo":
        heard = 1 if values.get("positives") == "own" else heard
        problems += [
            f"mixture.layers: {name} is trained in method macpo; name an agent of another role"
            for name in dict.fromkeys(map(str, mixed))
            if name in (*teachers, *students)
        ]
    if isinstance(keep, int) and isinstance(n, int) and teachers and not mixed and keep > n * heard:
        problems.append(f"select.keep: {keep} of only {n * heard} candidates per prompt")
    for name in (*teachers, *students):
        if agents[name].get("endpoint") and not agents[name].get("base"):
            problems.append(f"agents.{name}: it is trained, so it needs a base of its own")
    return problems


# What a method does not read: a setting that changes nothing is one that nobody should believe in.
_CHOOSING = ("select.by", "select.order", "select.pool", "select.keep", "select.max_perplexity")
_TEACHING = ("positives", "negatives", "negatives_by", "frozen_teachers", "schedule", "mixture")
_UNREAD = {
    "moaa": (*_CHOOSING, *_TEACHING[:-1], "confidence", "data.label_noise", "stop"),
    "spin": (*_CHOOSING, *_TEACHING, "data.label_noise"),
    "weak_labels": (*_CHOOSING, *_TEACHING, "stop"),
    **dict.fromkeys(("rlcd", "rlaif", "self_rewarding"), (*_CHOOSING, *_TEACHING)),
}


def _unread(values: dict[str, Any], method: Any) -> list[str]:
    """Settings that are not at their default, and change nothing."""

    def changed(path: str) -> bool:
        part, _, key = path.rpartition(".")
        sections: dict[str, type[Section]] = {"select": Select, "data": DataBase, "": Recipe}
        given = values.get(part) if part else values
        default = sections[part].model_fields[key].default
        return isinstance(given, dict) and given.get(key, default) != default

    if isinstance(method, str) and method in _UNREAD:
        paths = filter(changed, _UNREAD[method])
        return [f"{path}: method {method} does not read it; leave it out" for path in paths]
    found: list[str] = []
    by_text = _raw(values, "select", "by", "perplexity") != "perplexity"
    by_chance = _raw(values, "select", "order", "lowest") == "random"
    if by_text or by_chance:
        ranking = ["select.pool", "select.max_perplexity", *(["select.order"] if by_text else [])]
        found += [f"{path}: only read where perplexity ranks" for path in filter(changed, ranking)]
    if values.get("negatives_by") in ("corruption", "mismatch"):
        found += [
            f"{path}: negatives_by {values['negatives_by']} makes one of each chosen answer"
            for path in filter(changed, ("negatives", "select.keep"))
        ]
    return found


def _untrainable(values: dict[str, Any], *sections: str) -> list[str]:
    """Mistakes between fields that decide how the sections train."""
    problems = []
    loss, smoothing = (
        _raw(values, "dpo", "loss", "sigmoid"),
        _raw(values, "dpo", "label_smoothing", 0),
    )
    if loss == "exo_pair" and smoothing == 0:
        problems.append("dpo.label_smoothing: exo_pair needs it above 0, its paper has 1e-3")
    elif smoothing and loss not in SMOOTHED:
        problems.append(f"dpo.label_smoothing: {loss} knows none, these do: {', '.join(SMOOTHED)}")
    micro = _raw(values, "train", "micro_batch_size", None)
    for section in sections:
        batch = _raw(values, section, "batch_size", Recipe.model_fields[section].default.batch_size)
        if (
            isinstance(micro, int)
            and isinstance(batch, int)
            and 0 < micro < batch
            and batch % micro
        ):
            problems.append(f"train.micro_batch_size: {micro} does not divide {section}'s {batch}")
    return problems


def _misnamed(values: dict[str, Any], agents: dict[str, Any]) -> list[str]:
    """Agents that a judge names and nobody knows; a judge that the data has none of."""
    judges = {"judge": values.get("judge"), "eval.judge": _raw(values, "eval", "judge", None)}
    judges = {path: judge for path, judge in judges.items() if isinstance(judge, dict)}
    named = [(f"{path}.agent", judge.get("agent")) for path, judge in judges.items()]
    for path, judge in judges.items():
        named += [(f"{path}.proposers", name) for name in _items(judge.get("proposers"))]
    for layer in _items(_raw(values, "mixture", "layers", [])):
        named += [("mixture.layers", name) for name in _items(layer)]
    problems = [
        f"{path}: {name!r} is no agent (those are: {', '.join(map(str, agents))})"
        for path, name in dict.fromkeys((path, str(name)) for path, name in named if name)
        if name not in [*agents]
    ]
    problems += [
        f"{path}.agent: kind likelihood needs weights here; give {judge['agent']} a base"
        for path, judge in judges.items()
        if judge.get("kind") == "likelihood"
        and isinstance(who := values["agents"].get(str(judge.get("agent"))), dict)
        and not who.get("base")
    ]
    by, kind = _raw(values, "select", "by", "perplexity"), _raw(values, "judge", "kind", None)
    if by == "judge" and kind is None:
        problems.append("select.by: judge needs a section judge")
    if by == "reward" and kind != "reward":
        problems.append("select.by: reward needs a section judge with kind reward")
    if _raw(values, "data", "source", "") != "world":
        problems += [
            f"{path}.kind: only source world has a gold judge"
            for path, judge in judges.items()
            if judge.get("kind") == "gold"
        ]
    return problems


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _raw(values: dict[str, Any], section: str, key: str, default: Any) -> Any:
    part = values.get(section)
    return part.get(key, default) if isinstance(part, dict) else default


def _apply(values: dict[str, Any], setting: str) -> str | None:
    """Lay `a.b=c` over nested `values`; return what is wrong with it, or None."""
    path, equals, text = setting.partition("=")
    if not equals or not all(path.split(".")):
        return f"--set {setting}: write it as key.key=value"
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return f"--set {setting}: the value is not valid YAML"
    return _lay(values, path, value)


def _lay(values: dict[str, Any], path: str, value: Any) -> str | None:
    """Lay a value over nested `values` at a dotted path; return what is wrong, or None."""
    *keys, last = path.split(".")
    at = values
    for key in keys:
        child = at.setdefault(key, {})
        if child is None:
            child = at[key] = {}
        if not isinstance(child, dict):
            return f"{path}: {key} is not a section"
        at = child
    at[last] = deepcopy(value)
    return None


def explain(error: ValidationError) -> list[str]:
    """Say each mistake in one phrase that begins with its dotted path."""
    said = []
    for problem in error.errors():
        loc = [str(p) for p in problem["loc"]]
        if loc[0] == "data" and len(loc) > 2:
            del loc[1]  # the discriminator, which is part of pydantic's path and not of the user's
        path = ".".join(p for p in loc if p != "[key]")
        if problem["type"] == "extra_forbidden":
            said.append(f"{path}: unknown key")
        elif problem["type"] == "missing":
            said.append(f"{path}: missing")
        elif problem["type"] == "string_pattern_mismatch":
            said.append(f"{path}: a name has only letters, digits, _ and -")
        elif problem["type"] == "value_error":
            message = problem["msg"].removeprefix("Value error, ")
            said += [f"{path}: {m}" if path else m for m in message.split("\n")]
        else:
            said.append(f"{path}: {problem['msg'][0].lower()}{problem['msg'][1:]}")
    return said
