"""The whole recipe, and the part of it that a training on one dataset reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from macpo_data import prompts
from macpo_data.recipe.agents import Agent, is_named
from macpo_data.recipe.data import Columns, Data
from macpo_data.recipe.engine import Engine, Score
from macpo_data.recipe.evaluation import Eval, Judge
from macpo_data.recipe.generation import Framing, Mixture, Sampling, Select
from macpo_data.recipe.section import KNOB, LATER, Name, Positive, Section, Seed, Share, written
from macpo_data.recipe.training import (
    DPO,
    SFT,
    Confidence,
    Delta,
    Finetuning,
    Lora,
    Negative,
    RewardTraining,
    Spin,
    Train,
)

MAX_ROUNDS = 500  # a plan of so many takes some seconds


class Recipe(Section):
    """One experiment, from data to trained rounds."""

    run: Annotated[Name, KNOB]
    """Folder under runs/. Not part of what a result is: variants of a recipe may share it."""
    method: str = "macpo"
    """The rule that says who writes and which texts become chosen and rejected."""
    seed: Seed = 0
    """Decides the draw of prompts, every sampled text and the order of training."""
    rounds: Annotated[Annotated[int, Field(ge=0, le=MAX_ROUNDS)], KNOB] = 3
    """The last round that `macpo run` makes. Round 0 is initialisation: with method moaa
    fine-tuning, after which round 1 learns preferences and later ones repeat it."""
    data: Data
    """Which prompts, and the human answers that the teachers start from. data.source says what
    reads them, and with it which keys there are. world: the embedded world. hh_rlhf, pku_saferlhf,
    ultrafeedback, ultrachat: these datasets. pairs: any other preference dataset."""
    agents: dict[Name, Agent]
    """Who takes part: a name for each, and what it is."""
    labeller: str | None = None
    """Teacher whose answers to D2 initialise the student; null: the first."""
    schedule: Literal["alternating", "simultaneous"] = "alternating"
    """alternating: the teachers of round t learn from the student of round t. simultaneous: all
    write, then all are trained; the teachers learn from the student of round t-1."""
    positives: Literal["mutual", "own"] = "mutual"
    """mutual: the agents' positives are the other side's answers. own: each agent's are its own."""
    negatives: Literal["once", "every_round", "retrained"] = "once"
    """once: the negative agent of round 0 writes once per prompt, the same rejected text in every
    round. every_round: it writes anew in each. retrained: it is trained anew in each, from the
    newest positive policy, on the rejected answers of round 0."""
    negatives_by: Literal[
        "fine_tuning", "base", "framing", "temperature", "corruption", "mismatch"
    ] = "fine_tuning"
    """Who writes the rejected answers. fine_tuning: the agent's negative twin. base: its bare base.
    framing: its positive policy of round 0, told to be bad, as `framing` says. temperature: that
    policy, at negatives_temperature. corruption: nobody, the words of the chosen answer are
    shuffled. mismatch: nobody, it is the answer that was chosen for another prompt."""
    negatives_temperature: Annotated[Positive, LATER] = 2.0
    """Read where negatives_by is temperature, which keeps all tokens, whatever sampling.top_p and
    sampling.top_k say."""
    frozen_teachers: bool = False
    """After round 0 the student alone learns."""
    stop: Annotated[Literal["rounds", "converged", "probe"], KNOB] = "rounds"
    """When `macpo run` ends. rounds: after the last round. converged: or before, where the
    student's perplexity of what it learns falls by less than stop_below, from round 2 on. probe: or
    before, where its perplexity of the probe's chosen answers is above stop_above."""
    stop_below: Annotated[Share, KNOB] = 0.01
    """Converged is a perplexity that falls by less than this share from one round to the next."""
    stop_above: Annotated[float, Field(gt=1.0), KNOB] = 1.25
    """Times round 0's perplexity of the probe: rounds beyond are never named as the best one,
    whatever `stop` says."""
    framing: Framing = Framing()
    """What leads one model to good and to bad answers, where a method or negatives_by asks for
    it."""
    spin: Annotated[Spin, LATER] = Spin()
    """What only method spin reads."""
    delta: Annotated[Delta | None, LATER] = None
    """What only method delta reads: the two teachers who write its pairs."""
    sampling: Sampling = Sampling()
    """How policies write what is learned."""
    select: Select = Select()
    """Which answers become the student's chosen ones."""
    sft: SFT = SFT()
    """Round 0, the positive agents: fine-tuning on the chosen answers."""
    confidence: Annotated[Confidence | None, LATER] = None
    """The student's fine-tuning trusts its own predictions too (Burns et al. 2023); null: it is
    cross-entropy on the labels alone."""
    negative: Negative = Negative()
    """Round 0, the negative agents: the positive adapter, trained further on the rejected
    answers."""
    dpo: DPO = DPO()
    """Rounds 1 and later: contrastive training on the round's pairs."""
    lora: Lora = Lora()
    """The adapter that is trained; each round continues that of the round before."""
    train: Train = Train()
    """What all training shares."""
    engine: Engine = Engine()
    """What runs the models that write and score."""
    score: Annotated[Score, KNOB] = Score()
    """What computes how likely a policy finds an answer."""
    mixture: Annotated[Mixture | None, LATER] = None
    """Layers of agents who write together, each reading the answers of the layer before: method
    moaa's SFT data. null: none."""
    judge: Annotated[Judge | None, LATER] = None
    """Who compares two answers, and how the verdicts become a ranking; null: nobody."""
    reward: Annotated[RewardTraining, KNOB] = RewardTraining()
    """The reward model of `macpo train --reward`: a classifier of the human's better answer,
    trained on D1's pairs, for evaluation alone."""
    eval: Annotated[Eval, KNOB] = Eval()
    """How `macpo eval` measures the policies on the held-out prompts."""

    @property
    def teachers(self) -> list[str]:
        """Names of the teachers, as written."""
        return [name for name, agent in self.agents.items() if agent.role == "teacher"]

    @property
    def students(self) -> list[str]:
        """Names of the students, as written."""
        return [name for name, agent in self.agents.items() if agent.role == "student"]

    @property
    def has_gold(self) -> bool:
        """Whether the data say by themselves what an answer is worth."""
        return self.data.source == "world" or self.eval.by == "answer"

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

    def finetuning(self, agent: str) -> Finetuning:
        """What is trained of an agent: an adapter, or all weights."""
        return self.agents[agent].finetuning or self.train.finetuning

    @property
    def reward_finetuning(self) -> Finetuning:
        """What is trained of the run's own reward model."""
        return self.reward.finetuning or self.train.finetuning

    def read(self, path: str) -> Any:
        """The identity of what stands at a dotted path, such as `agents.student` or `dpo`."""
        value: Any = self
        for key in path.split("."):
            value = value[key] if isinstance(value, dict) else getattr(value, key)
        if isinstance(value, list):
            return [written(each) for each in value]
        return value.identity() if isinstance(value, Section) else written(value)


def text_files(values: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Where a recipe's values name a text in a file: (section, key)."""
    evaluation = values.get("eval") or {}
    judges = [judge for part in (values, evaluation) if (judge := part.get("judge"))]
    rewards = [part.get("reward") for part in (values, evaluation, *judges)]
    yield from _template_files([*values["agents"].values(), *rewards])
    yield from _prompt_files([judge.get("prompts") or {} for judge in judges])
    mixture, framing = values.get("mixture") or {}, values.get("framing") or {}
    yield from _prompt_files([mixture], ("prompt",))
    yield from _prompt_files([framing], ("positive", "negative"))


def _prompt_files(
    sections: list[dict[str, Any]], keys: Sequence[str] | None = None
) -> Iterator[tuple[dict[str, Any], str]]:
    """Which of the keys, or of all keys, name a file and not one of the package's own texts."""
    for section in sections:
        for key in list(section) if keys is None else keys:
            if key in section and not prompts.is_own(section[key]):
                yield section, key


def _template_files(speakers: list[Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Which agents and reward models, where they are sections, name a template in a file."""
    for speaker in speakers:
        if isinstance(speaker, dict):
            template = speaker.get("chat_template", "tokenizer")
            if template and not is_named(template):
                yield speaker, "chat_template"


class TrainSettings(Section):
    """How `macpo train --dataset` trains: what a recipe would say, and nothing about rounds."""

    objective: Literal["dpo", "sft"] = "dpo"
    """dpo: on the pairs. sft: on the chosen answers alone."""
    seed: Seed = 0
    """Decides the order of training."""
    chat_template: str = "tokenizer"
    """How messages become text, as for agents."""
    trust_remote_code: bool = False
    """Run code that the base's repository brings."""
    another_base: bool = False
    """Take the adapters of --init and --reference though they were made for another base."""
    columns: Columns = Columns()
    """Which columns of the dataset hold what."""
    dpo: DPO = DPO(reference="previous")
    """Contrastive training."""
    sft: SFT = SFT()
    """Fine-tuning, with objective sft."""
    confidence: Confidence | None = None
    """Fine-tuning trusts the model's own predictions too; null: it is cross-entropy alone."""
    lora: Lora = Lora()
    """The adapter that is trained."""
    train: Train = Train()
    """What all training shares."""
    engine: Engine = Engine()
    """What runs the models that score."""
