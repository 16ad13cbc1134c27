"""The recipe: what a person types, section by section, with each key's meaning under its field.

Here is the model; `load` reads a recipe, `rules` knows mistakes between fields, `write` shows it.
The model imports the package's prompts and errors alone, `rules` also the world's bases.
"""

from macpo_data.recipe.agents import NAMED_TEMPLATES, Agent, Endpoint, read_template
from macpo_data.recipe.data import (
    Columns,
    Data,
    DataBase,
    FileData,
    HHData,
    More,
    PairsData,
    PartSpec,
    PKUData,
    Probe,
    UltraChatData,
    UltraFeedbackData,
    WorldData,
)
from macpo_data.recipe.engine import VLLM, Engine, Score
from macpo_data.recipe.evaluation import (
    TRAINED,
    Eval,
    EvalSampling,
    Judge,
    JudgePrompts,
    RewardModel,
)
from macpo_data.recipe.generation import Framing, Mixture, Sampling, Select
from macpo_data.recipe.recipe import Recipe, TrainSettings, text_files
from macpo_data.recipe.section import KNOB, LATER, Count, Name, Section, Seed, digest
from macpo_data.recipe.training import (
    DPO,
    SFT,
    SMOOTHED,
    Confidence,
    Delta,
    Lora,
    Negative,
    RewardTraining,
    Spin,
    Train,
)

__all__ = [
    "DPO",
    "KNOB",
    "LATER",
    "NAMED_TEMPLATES",
    "SFT",
    "SMOOTHED",
    "TRAINED",
    "VLLM",
    "Agent",
    "Columns",
    "Confidence",
    "Count",
    "Data",
    "DataBase",
    "Delta",
    "Endpoint",
    "Engine",
    "Eval",
    "EvalSampling",
    "FileData",
    "Framing",
    "HHData",
    "Judge",
    "JudgePrompts",
    "Lora",
    "Mixture",
    "More",
    "Name",
    "Negative",
    "PKUData",
    "PairsData",
    "PartSpec",
    "Probe",
    "Recipe",
    "RewardModel",
    "RewardTraining",
    "Sampling",
    "Score",
    "Section",
    "Seed",
    "Select",
    "Spin",
    "Train",
    "TrainSettings",
    "UltraChatData",
    "UltraFeedbackData",
    "WorldData",
    "digest",
    "read_template",
    "text_files",
]
