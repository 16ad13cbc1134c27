"""Make a weaker base from a strong one: leave out some of its layers.

Every layer adds to one running state, so that a model goes on without some of its middle ones, and
the worse the more are gone: Gromov et al. 2024, https://arxiv.org/abs/2403.17887. Nothing is
trained; round 0 fine-tunes what is left.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from macpo_data.bases.named import Weakened, folder_of, print_of, weakened
from macpo_data.errors import ModelError
from macpo_data.models.base import Base, load_model, load_tokenizer
from macpo_data.models.worker import Report
from macpo_train.convert import new_folder, write_manifest


def weaken(report: Report, base: str) -> Path:
    """Make a weaker base, unless that is done, and return its folder.

    `report` gets the number of parts done and in all. Another process that makes the same base is
    waited for.

    Raises:
        ModelError: there is no such layer, or the strong base is of a kind without such layers.
    """
    target, named = folder_of(base), weakened(base)
    if target is None:
        raise ModelError(f"{base} is no base that is made here")
    with new_folder(target) as folder:
        if folder:
            report(0, 2, "parts")
            strong = Base(named.base, None)
            model: Any = load_model(strong, place=False)
            report(1, 2, "parts")
            drop(model, named)
            model.save_pretrained(folder)
            load_tokenizer(strong).save_pretrained(folder)
            layers = model.config.num_hidden_layers
            dropped = [named.first, named.last]
            facts = {"made_from": print_of(base), "dropped": dropped, "layers": layers}
            write_manifest(folder, base, facts)
            report(2, 2, "parts")
    return target


def drop(model: Any, named: Weakened) -> None:
    """Leave out layers, in place.

    Raises:
        ModelError: there is no such layer, or they are kept in another place than Llama's.
    """
    decoder = getattr(model, "model", None)
    layers = list(getattr(decoder, "layers", []))
    if named.last >= len(layers) - 1 or not all(hasattr(each, "self_attn") for each in layers):
        raise ModelError(f"{named.base} cannot lose layers {named.first} to {named.last}")
    kept = [number for number in range(len(layers)) if number not in named.dropped]
    model.model.layers = torch.nn.ModuleList(layers[number] for number in kept)
    for place, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = place  # by which the cache of a layer is found
    model.config.num_hidden_layers = len(kept)
    if kinds := getattr(model.config, "layer_types", None):
        model.config.layer_types = [kinds[number] for number in kept]
