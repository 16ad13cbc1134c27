"""Loads a base model, with or without an adapter, and its tokenizer."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macpo_data.bases.named import check_base, folder_of, folder_print, is_folder, is_made, print_of
from macpo_data.errors import MacpoError, ModelError, first_line
from macpo_data.models.chat import Chat
from macpo_data.models.templates import make_chat
from macpo_data.models.weights import weights_sha256
from macpo_data.recipe.agents import Agent
from macpo_data.recipe.section import digest
from macpo_data.world.named import WORLD

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Base:
    """A base model with everything that decides how it is loaded."""

    id: str  # as the recipe has it
    revision: str | None  # a commit on the Hub, or the print of what is here; None in the world
    trust_remote_code: bool = False
    checkpoint: str | None = None  # folder of all its weights, as trained; None: as released

    @property
    def released(self) -> Base:
        """The base before any training of all its weights; its tokenizer is that of all of them."""
        return replace(self, checkpoint=None)

    @property
    def name(self) -> str:
        """Of these weights, for a person and for the process that loads them."""
        return f"{self.id} as {Path(self.checkpoint).name}" if self.checkpoint else self.id

    @property
    def source(self) -> str:
        """What `from_pretrained` takes.

        Raises:
            ModelError: what it is made from is not there.
        """
        if self.checkpoint:
            return self.checkpoint
        folder = folder_of(self.id) if is_made(self.id) or self.id.startswith("~") else None
        return self.id if folder is None else str(folder)


# All endpoints together: one engine asks them side by side.
ENDPOINTS = Base("endpoints", None)


def resolve(agent: Agent) -> str | None:
    """The commit that a base's revision names now, or the print of what is on this machine.

    Raises:
        ModelError: the base is not there, or the network is not.
    """
    check_base(agent.base)
    if agent.base.startswith(WORLD):
        return None
    if is_made(agent.base):
        return print_of(agent.base)
    if is_folder(agent.base):
        folder = Path(agent.base).expanduser()
        if not (folder / "config.json").is_file():
            raise ModelError(f"no model in {agent.base}: a folder with a config.json is needed")
        return folder_print(folder)
    from macpo_data.hub_session import connect

    try:
        return str(connect().model_info(agent.base, revision=agent.revision).sha)
    except Exception as error:  # every way of not reaching the Hub has its own class
        raise ModelError(unreachable("base", agent.base, error)) from None


def unreachable(what: str, name: str, error: Exception) -> str:
    """Say in one line why something on the Hub cannot be had."""
    kind = type(error).__name__
    hints = {
        "GatedRepoError": "it is gated: accept its licence on its page, then run `hf auth login`",
        "RepositoryNotFoundError": "there is no such repository, or it is private: check the name, "
        "or run `hf auth login`",
        "RevisionNotFoundError": "it has no such revision",
        "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set: unset it, or name a local folder",
        "HFValidationError": "it is neither a Hub id (org/name) nor a local folder",
    }
    if isinstance(error, MacpoError):
        return f"{what} {name}: {error}"
    why = str(error) if kind == "NobodyAnswers" else "the Hub cannot be reached"
    hint = hints.get(kind, f"{why}: check the network and HF_ENDPOINT, or name a local folder")
    return f"{what} {name}: {hint} ({kind})"


def load_chat(base: Base, chat_template: str) -> Chat:
    """The tokenizer of a base with its chat template.

    Raises:
        ModelError: it cannot be loaded, or has no such template.
    """
    return make_chat(load_tokenizer(base), chat_template, base.id)


def load_tokenizer(base: Base) -> PreTrainedTokenizerBase:
    """The tokenizer of a base.

    Raises:
        ModelError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    return _load(AutoTokenizer, base.released)


def load_model(
    base: Base, dtype: str = "auto", quantization: str = "none", place: bool = True
) -> PreTrainedModel:
    """The base's weights, on the GPU if there is one (`place`). dtype: auto, float32 or bfloat16.

    Raises:
        ModelError: it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    kwargs: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    if quantization == "nf4":
        kwargs |= {"quantization_config": _nf4(dtype), "device_map": {"": device()}}
        return _load(AutoModelForCausalLM, base, **kwargs)
    model = _load(AutoModelForCausalLM, base, **kwargs)
    return model.to(device()) if place else model


def skeleton(base: Base, classifier: bool = False) -> PreTrainedModel | None:
    """The base's modules without their weights, in a moment; None where its code does not let it.

    Raises:
        ModelError: its configuration cannot be loaded.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    config = _load(AutoConfig, base)
    kind = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    try:
        with torch.device("meta"):
            return kind.from_config(config, trust_remote_code=base.trust_remote_code)
    except Exception:  # code from anywhere: what it cannot do without weights has no common class
        return None


def load_classifier(base: Base, dtype: str = "auto", new_head: bool = False) -> PreTrainedModel:
    """A base as a sequence classifier that scores what it reads.

    Args:
        base: the weights.
        dtype: auto, float32 or bfloat16.
        new_head: put one output on it that is still to be trained.

    Raises:
        ModelError: it cannot be loaded, or is no sequence classifier.
    """
    from transformers import AutoModelForSequenceClassification

    kwargs: dict[str, Any] = {"num_labels": 1} if new_head else {}
    model, loading_info = _load(
        AutoModelForSequenceClassification, base,
        dtype=dtype, use_safetensors=True, output_loading_info=True, **kwargs,
    )  # fmt: skip
    missing = sorted(loading_info["missing_keys"])
    # A head that the files lack would be random numbers, and nobody would see it.
    if missing and not new_head:
        raise ModelError(
            f"{base.id} is no reward model: its files lack {missing[0]}; name a sequence "
            "classifier whose class transformers itself has"
        )
    tokenizer = load_tokenizer(base)
    pad = tokenizer.pad_token_id
    # The last token before the padding is the one that is read.
    model.config.get_text_config().pad_token_id = tokenizer.eos_token_id if pad is None else pad
    return model.to(device())


def _nf4(dtype: str) -> Any:
    """Four bits per weight, as QLoRA has it (Dettmers et al. 2023).

    Raises:
        ModelError: there is no GPU, or no bitsandbytes.
    """
    from importlib.util import find_spec

    import torch
    from transformers import BitsAndBytesConfig

    if not torch.cuda.is_available():
        raise ModelError("train.quantization=nf4 needs a GPU; set it to none")
    if find_spec("bitsandbytes") is None:
        raise ModelError("train.quantization=nf4 needs bitsandbytes: pip install bitsandbytes")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


@cache
def gpus() -> list[str]:
    """The GPUs that this process may use, each as `name, total MiB, free MiB`, without torch."""
    return _ask_driver("name,memory.total,memory.free")


@cache
def gpus_have_bfloat16() -> bool:
    """Whether the first GPU computes in bfloat16 itself (Ampere and later), without torch."""
    capabilities = _ask_driver("compute_cap")
    return bool(capabilities) and float(capabilities[0]) >= 8


def _ask_driver(fields: str) -> list[str]:
    """Fields of each GPU that this process may use, a line for each."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) == "" or not shutil.which("nvidia-smi"):
        return []
    which = ["-i", visible] if visible else []
    command = ["nvidia-smi", *which, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip().splitlines() if answer.returncode == 0 else []


def device() -> torch.device:
    """The GPU if there is one; that of this process where several train together."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def has_bfloat16() -> bool:
    """Whether the device is a GPU that computes in bfloat16 itself."""
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def _load(loader: Any, base: Base, **kwargs: Any) -> Any:
    from safetensors import SafetensorError

    from macpo_data.hub_session import connect

    if is_far := not is_folder(base.source):
        connect()  # the libraries of their own accord wait for ever
    try:
        return loader.from_pretrained(
            base.source,
            revision=base.revision if is_far else None,
            trust_remote_code=base.trust_remote_code,
            **kwargs,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"cannot load base {base.name}: {first_line(error)}") from None


def voice_identity(
    base: Base, chat: Chat, adapter: str | Path | None, dtype: torch.dtype | str
) -> dict[str, Any]:
    """Everything on which the log-probabilities of given messages depend, as JSON values."""
    trained = adapter or base.checkpoint
    return {
        "base": base.id,
        "base_revision": base.revision,
        "base_files": _files(Path(base.released.source)),
        "adapter_sha256": None if trained is None else weights_sha256(Path(trained)),
        "template_sha256": chat.sha256,
        "tokenizer_sha256": hashlib.sha256(
            chat.tokenizer.backend_tokenizer.to_str().encode()
        ).hexdigest(),
        "dtype": str(dtype).removeprefix("torch."),
    }


def _files(folder: Path) -> str | None:
    """Identify a local base without reading its weights; None for one on the Hub."""
    if not folder.is_dir():
        return None
    facts = [(p.name, s.st_size, s.st_mtime_ns) for p in folder.iterdir() for s in [p.stat()]]
    return digest(sorted(facts))
