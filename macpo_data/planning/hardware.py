"""What a machine has: known cards by their names, and what is found here.

A card's figures are those of its maker's data sheet: memory, FLOP/s in bfloat16 without sparsity,
and bytes per second of its memory. Those of a CPU's core are what these benchmarks reach at best.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import psutil

from macpo_data.errors import MacpoError
from macpo_data.models.base import gpus, gpus_have_bfloat16

GIB = 1 << 30
MIB = 1 << 20


@dataclass(frozen=True)
class Card:
    """One kind of accelerator."""

    memory: int  # GiB
    teraflops: float  # in bfloat16
    bandwidth: int  # GB/s


CARDS = {
    "A100-40GB": Card(40, 312, 1555),
    "A100-80GB": Card(80, 312, 2039),
    "H100-80GB": Card(80, 989, 3350),
    "H200-141GB": Card(141, 989, 4800),
    "B200-180GB": Card(180, 2250, 8000),
    "L4-24GB": Card(24, 121, 300),
    "L40S-48GB": Card(48, 362, 864),
    "A10-24GB": Card(24, 125, 600),
    "A6000-48GB": Card(48, 155, 768),
    "RTX3090-24GB": Card(24, 71, 936),
    "RTX4090-24GB": Card(24, 165, 1008),
    "RTX5090-32GB": Card(32, 210, 1792),
    "MI300X-192GB": Card(192, 1307, 5300),
}
CORE_FLOPS = 1e11  # of a core, in float32
CORES_BANDWIDTH = 2e10  # of all cores together


@dataclass(frozen=True)
class Hardware:
    """Devices of one kind: cards, or the cores of a CPU, which share their memory."""

    name: str  # as in --on
    count: int
    is_gpu: bool
    memory: float  # bytes, of each card; of all cores together
    free: float  # likewise, of what is not taken now
    flops: float | None  # of each in a second; None for a card that is not in the table
    bandwidth: float | None  # bytes in a second, of each card; of all cores together
    named: bool = False  # by a person, rather than found here
    bfloat16: bool = False  # it computes in bfloat16 itself, as all cards of the table do

    @property
    def in_words(self) -> str:
        """For a person to read."""
        return f"{self.name} ({'named' if self.named else 'this machine'})"


def named(text: str) -> Hardware:
    """The hardware that `--on` names.

    >>> named("8xA100-80GB").count, named("2xcpu-24GB").is_gpu
    (8, False)

    Raises:
        MacpoError: there is no such card in the table.
    """
    parts = re.fullmatch(r"(?:(\d{1,4})x)?([\w.]+?)(?:-(\d+)GB)?", text.strip(), re.IGNORECASE)
    count = int(parts[1] or 1) if parts else 0
    if parts and count and parts[2].lower() == "cpu" and parts[3]:
        memory = float(parts[3]) * GIB
        name = f"{count}xCPU-{parts[3]}GB"
        return Hardware(name, count, False, memory, memory, CORE_FLOPS, CORES_BANDWIDTH, True)
    matches = [n for n in CARDS if parts and count and _is_called(n, parts[2], parts[3])]
    if len(matches) != 1:
        cards = matches or [*CARDS]
        raise MacpoError(
            f"--on {text}: write a number and one of {', '.join(cards)}, such as 8x{cards[0]}; "
            "or 2xCPU-24GB for two cores"
        )
    return _of_card(matches[0], count)


def _is_called(name: str, kind: str, memory: str | None) -> bool:
    own, _, size = name.partition("-")
    return kind.lower() == own.lower() and memory in (None, size.removesuffix("GB"))


def _of_card(name: str, count: int) -> Hardware:
    card = CARDS[name]
    memory = float(card.memory * GIB)
    flops, bandwidth = card.teraflops * 1e12, card.bandwidth * 1e9
    return Hardware(f"{count}x{name}", count, True, memory, memory, flops, bandwidth, True, True)


def here() -> Hardware:
    """What this machine has: its cards, all taken to be of the first one's kind, else its cores."""
    if cards := [card.split(", ") for card in gpus()]:
        name, total, _ = cards[0]
        card = _named_like(name, float(total))
        return Hardware(
            f"{len(cards)}x{card or name}",
            len(cards),
            True,
            float(total) * MIB,
            min(float(free) for _, _, free in cards) * MIB,
            CARDS[card].teraflops * 1e12 if card else None,
            CARDS[card].bandwidth * 1e9 if card else None,
            bfloat16=card is not None or gpus_have_bfloat16(),
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory, free = machine_memory()
    name = f"{cores or 1}xCPU-{memory / GIB:.0f}GB"
    return Hardware(name, cores or 1, False, memory, free, CORE_FLOPS, CORES_BANDWIDTH)


def machine_memory() -> tuple[float, float]:
    """Bytes of main memory, and those that are free: a container may have less than its host."""
    memory = psutil.virtual_memory()
    total, free = float(memory.total), float(memory.available)
    try:
        limit = float(Path("/sys/fs/cgroup/memory.max").read_text("utf-8"))
    except (OSError, ValueError):  # none is set, or this is no such system
        return total, free
    return min(total, limit), min(free, limit)


def _named_like(name: str, mib: float) -> str | None:
    """The card of the table that a driver's name means: `NVIDIA A100-SXM4-80GB`."""
    plain = re.sub(r"[^A-Z0-9]", "", name.upper())
    alike = [n for n in CARDS if re.search(rf"{n.partition('-')[0]}(?![0-9])", plain)]
    near = [n for n in alike if abs(CARDS[n].memory * 1024 - mib) < 0.1 * mib]
    return near[0] if near else None
