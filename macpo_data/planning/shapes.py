"""How large a base model is, by its config.json: no weights are read, and no library is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from macpo_data.bases.gguf import head_of
from macpo_data.bases.named import (
    WEAKENED,
    check_base,
    folder_of,
    gguf_file,
    hub_id,
    is_made,
    is_ready,
    weakened,
)
from macpo_data.errors import ModelError
from macpo_data.models.base import unreachable
from macpo_data.outside import parse_json, read_bytes
from macpo_data.recipe.agents import Agent
from macpo_data.world.bases import base_spec
from macpo_data.world.named import WORLD

# The tokenizer of the embedded world has so many tokens.
WORLD_VOCABULARY = 1200
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8, "float8_e4m3fn": 1}
TWO_MATRICES = ("gpt2", "gpt_neox", "opt", "bloom", "phi", "falcon", "gptj", "starcoder2")
# What each fact is called in the configs of older classes.
NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head"),
    "vocabulary": ("vocab_size",),
}


@dataclass(frozen=True)
class Shape:
    """A decoder of transformers, as its config.json describes it."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool  # the head is the embedding
    dtype: str  # in which numbers its weights are saved
    origin: str  # where it was read
    experts: int = 1
    active_experts: int = 1  # through which a token goes
    gated: bool = True  # three matrices in a feed-forward layer, not two
    qkv_bias: bool = False
    norms: int = 2  # in a layer
    positions: int = 0  # tokens that it reads at most; 0 where it does not say

    @property
    def bytes_saved(self) -> int:
        """Of a weight on disk."""
        return BYTES.get(self.dtype, 4)

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Of a layer with one expert: name, inputs and outputs."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        inner = {"gate_proj": (self.hidden, self.intermediate)} if self.gated else {}
        return {
            "q_proj": (self.hidden, q),
            "k_proj": (self.hidden, kv),
            "v_proj": (self.hidden, kv),
            "o_proj": (q, self.hidden),
            **inner,
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    def _of_layers(self, experts: int) -> int:
        """Weights in the matrices of all layers, with so many experts in each."""
        sizes = {name: i * o for name, (i, o) in self.matrices.items()}
        attention = sum(sizes[name] for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
        router = self.hidden * self.experts if self.experts > 1 else 0
        return self.layers * (attention + (sum(sizes.values()) - attention) * experts + router)

    @property
    def in_matrices(self) -> int:
        """Weights in the matrices of all layers: what four bits make smaller."""
        return self._of_layers(self.experts)

    @property
    def elsewhere(self) -> int:
        """Weights in the embedding, the head, the norms and the biases."""
        bias = sum(o for n, (_, o) in self.matrices.items() if n[0] in "qkv") * self.qkv_bias
        of_layers = self.layers * (self.norms * self.hidden + bias)
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + of_layers + self.hidden

    @property
    def parameters(self) -> int:
        """All weights.

        >>> shape_of(Agent(role="student", base="mistralai/Mistral-7B-v0.1")).parameters
        7241732096
        """
        return self.in_matrices + self.elsewhere

    @property
    def active(self) -> int:
        """Weights that a token meets: those of its experts, and the head."""
        return self._of_layers(self.active_experts) + self.vocabulary * self.hidden


def from_config(config: Mapping[str, Any], origin: str) -> Shape:
    """A shape from the values of a config.json.

    Raises:
        KeyError: it lacks a size.
    """
    values = {**config, **config.get("text_config", {})}
    sizes = {
        fact: next(int(values[n]) for n in (*names, names[0]) if n in values or n == names[0])
        for fact, names in NAMES.items()
    }
    hidden, heads, kind = sizes["hidden"], sizes["heads"], str(values.get("model_type", ""))
    inner = values.get("intermediate_size") or values.get("n_inner") or 4 * hidden
    experts = values.get("num_local_experts") or values.get("num_experts") or 1
    # Most of transformers' classes tie unless they say so; Llama's kin do not.
    untied = kind in ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen2_moe", "phi3")
    return Shape(
        **sizes,
        intermediate=int(values.get("moe_intermediate_size") or inner),
        kv_heads=int(values.get("num_key_value_heads") or heads),
        head_dim=int(values.get("head_dim") or hidden // heads),
        tied=bool(values.get("tie_word_embeddings", not untied)),
        dtype=str(values.get("torch_dtype") or values.get("dtype") or "float32"),
        origin=origin,
        experts=int(experts),
        active_experts=int(values.get("num_experts_per_tok") or 1) if experts > 1 else 1,
        gated=kind not in TWO_MATRICES,
        qkv_bias=bool(values.get("attention_bias", kind.startswith("qwen2"))),
        norms=4 if kind.startswith(("gemma2", "gemma3")) else 2,
        positions=int(values.get("max_position_embeddings") or 0),
    )


def shape_of(agent: Agent) -> Shape:
    """The shape of an agent's base: of its folder, the Hub's cache, our own table, or the Hub.

    Raises:
        ModelError: its config.json is not there, or says too little.
    """
    shape = _tried(agent.base, agent.revision)
    if isinstance(shape, ModelError):
        raise shape
    return shape


@cache
def _tried(base: str, revision: str) -> Shape | ModelError:
    """Nobody is asked twice, whatever the answer was."""
    try:
        return _shape_of(base, revision)
    except ModelError as error:
        return error


def _shape_of(base: str, revision: str) -> Shape:
    check_base(base)
    if base.startswith(WORLD):
        return _of_world(base)
    if base.startswith(WEAKENED):
        named = weakened(base)
        whole = _shape_of(named.base, revision)
        if named.last >= whole.layers - 1:
            raise ModelError(
                f"{base}: {named.base} has layers 0 to {whole.layers - 1}, and the last one stays"
            )
        return replace(whole, layers=whole.layers - len(named.dropped))
    config, origin = _config(base, revision)
    try:
        return from_config(config, origin)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{base}: its config.json tells no {error}, so that its size is not known"
        ) from None


def _of_world(base: str) -> Shape:
    spec = base_spec(base.removeprefix(WORLD))
    return Shape(
        layers=spec.layers,
        hidden=spec.width,
        intermediate=spec.mlp,
        heads=spec.heads,
        kv_heads=spec.heads,
        head_dim=spec.width // spec.heads,
        vocabulary=WORLD_VOCABULARY,
        tied=True,
        dtype="float32",
        origin="the embedded world",
        positions=2048,
    )


def _config(base: str, revision: str) -> tuple[dict[str, Any], str]:
    """The values of a base's config.json, and where they stand."""
    if (hub := hub_id(base)) is not None:  # its package may not be installed yet
        return shipped()[hub] | {"torch_dtype": "float32"}, "macpo's own table"
    folder = folder_of(base)
    if folder is not None and is_made(base) and not is_ready(folder):
        return head_of(file).config() if (file := gguf_file(base)) else {}, str(file)
    if folder is not None:
        path = folder / "config.json"
        if not path.is_file():
            raise ModelError(f"no model in {base}: a folder with a config.json is needed")
        return _read(path, base), str(path)
    if file := cached_file(base, "config.json", revision):
        return _read(file, base), "the Hub's cache"
    if base in (table := shipped()):
        return table[base], "macpo's own table"
    return _from_hub(base, revision), "the Hub"


def _from_hub(base: str, revision: str) -> dict[str, Any]:
    """One small file, asked for once: what downloads files for good would try for half a minute."""
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils._headers import build_hf_headers
    from huggingface_hub.utils._http import hf_raise_for_status

    from macpo_data.hub_session import connect

    try:
        if constants.HF_HUB_OFFLINE:
            raise OfflineModeIsEnabled
        connect()
        url = hf_hub_url(base, "config.json", revision=revision)
        answer = get_session().get(
            url, headers=build_hf_headers(), timeout=5, follow_redirects=True
        )
        hf_raise_for_status(answer)
        values: dict[str, Any] = answer.json()
    except Exception as error:  # every way of not reaching the Hub has its own class
        raise ModelError(unreachable("base", base, error)) from None
    return values


def cached_file(base: str, name: str, revision: str = "main") -> Path | None:
    """A file of a base in the Hub's cache; None where it is not there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(base, name, revision=revision)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


@cache
def shipped() -> dict[str, dict[str, Any]]:
    """What the config.json of the shipped recipes' own bases says, as far as it is read here."""
    text = (files("macpo_data.planning") / "bases.json").read_text("utf-8")
    table: dict[str, dict[str, Any]] = parse_json(text)
    return table


def _read(path: Path, base: str) -> dict[str, Any]:
    try:
        values = parse_json(read_bytes(path))
    except (OSError, ValueError) as error:
        raise ModelError(f"{base}: cannot read its config.json ({type(error).__name__})") from None
    if not isinstance(values, dict):
        raise ModelError(f"{base}: its config.json holds no fields")
    return values
