"""What all trainings share: the arguments of transformers' Trainer, and resuming."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import fsdp2_prepare_model
from peft import PeftModel
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from transformers import PrinterCallback

from macpo_data.errors import ModelError
from macpo_data.models.weights import weights_sha256
from macpo_data.models.worker import Report
from macpo_data.recipe.agents import is_named, read_template
from macpo_data.recipe.section import digest
from macpo_data.recipe.training import DPO
from macpo_data.signs.training import of_training
from macpo_train import ranks
from macpo_train.adapter import sharded
from macpo_train.job import Job
from macpo_train.watch import Watch, last_checkpoint, say

_LOGS = os.environ.get("TENSORBOARD_LOGGING_DIR")  # a person's own wish


def training_arguments(job: Job, rows: int) -> dict[str, Any]:
    """What all of them tell transformers' Trainer.

    Raises:
        ModelError: the batch cannot be cut so.
    """
    settings, train_ = job.settings, job.train
    processes = ranks.count()
    # With FSDP a checkpoint holds the adapter's shards; whole, it would gather all of the base.
    os.environ["FSDP_STATE_DICT_TYPE"] = "SHARDED_STATE_DICT"
    micro = min(train_.micro_batch_size or settings.batch_size, settings.batch_size // processes)
    if micro < 1 or settings.batch_size % (micro * processes):
        raise ModelError(
            f"batch_size {settings.batch_size} is no multiple of train.micro_batch_size {micro} "
            f"times {processes} processes"
        )
    if train_.report_to != "none":
        if find_spec(train_.report_to) is None:
            raise ModelError(
                f"train.report_to={train_.report_to} needs its package: "
                f"pip install {train_.report_to}"
            )
        logs = job.logs or job.out.parent / "logs"
        os.environ["TENSORBOARD_LOGGING_DIR"] = _LOGS or str(logs / (job.name or job.out.name))
    steps = -(-rows // settings.batch_size) * settings.epochs
    held = train_.scheduler == "constant" and train_.warmup > 0
    return {
        "output_dir": str(job.out / "trainer"),
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate * job.lr_scale,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": settings.batch_size // (micro * processes),
        # A warmup that transformers' constant would not read.
        "lr_scheduler_type": train_.scheduler + ("_with_warmup" if held else ""),
        "warmup_steps": int(train_.warmup * steps),
        "weight_decay": train_.weight_decay,
        "max_grad_norm": train_.max_grad_norm,
        "gradient_checkpointing": train_.gradient_checkpointing,
        "bf16": train_.dtype == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        "max_length": None,
        **({"optim": "adamw_bnb_8bit"} if train_.optimizer == "adamw_8bit" else {}),
        "seed": job.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # `Watch` stops at a loss that is not finite
        # By the clock unless steps are named; several processes have several clocks.
        "save_strategy": "steps" if train_.save_steps or processes > 1 else "no",
        "save_steps": train_.save_steps or 100,
        "save_total_limit": 2,  # the older one goes before the newer one is marked as whole
        "report_to": train_.report_to,
        "run_name": job.name or job.out.name,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
    }


def run(
    report: Report, job: Job, keys: dict[str, str], make: Callable[[Any], Any]
) -> dict[str, Any]:
    """Make a trainer around a `Watch`, and train from the last checkpoint, if there is one."""
    of = identity(job)
    name = job.name or job.out.name
    settings = job.settings
    reference = settings.reference if isinstance(settings, DPO) else "previous"
    signs = partial(of_training, start=job.start_signs, reference=reference)
    kind = "checkpoint" if job.finetuning == "full" else "adapter"
    begins = f"{job.base.id} with the {kind} {job.start}" if job.start else job.base.id
    watch = Watch(report, name, begins, keys, settings.batch_size, of, job.train.save_steps, signs)
    trainer = make(watch)
    trainer.remove_callback(PrinterCallback)  # `watch` tells each step
    folder = Path(trainer.args.output_dir)
    checkpoint = last_checkpoint(folder, of)
    if checkpoint is None:
        if trainer.is_world_process_zero():
            shutil.rmtree(folder, ignore_errors=True)
    else:
        say(f"going on from {checkpoint}")
    trainer.accelerator.wait_for_everyone()
    if isinstance(trainer.model, PeftModel):
        # Else peft looks on the Hub, at each checkpoint, whether the base's vocabulary has grown.
        trainer.model.save_pretrained = partial(
            trainer.model.save_pretrained, save_embedding_layers=False
        )
    _reshard(trainer.model)
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    history = watch.history(trainer.state)
    return {
        "history": history,
        "signs": signs(history),
        "resumed_from": None if checkpoint is None else int(checkpoint.name.split("-")[1]),
    }


@contextmanager
def exact(model: Any) -> Iterator[None]:
    """Keep the digits of what is trained: trl rounds it to bfloat16 where the base is quantised."""
    kept = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
    yield
    for name, weights in model.named_parameters():
        if name in kept:
            weights.data = kept[name]


def hold(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A micro batch as accelerate passes it on untouched: of lists it looks at each number."""
    return {"rows": lambda: rows}


def own_rows(trainer: Any, batches: list[dict[str, Any]]) -> int:
    """Take the rows out of a step's micro batches, and put `count` beside them: how many count.

    Those with which accelerate fills up the last batches of several processes are left out, but for
    one where none would stay.

    Returns:
        How many rows the step has over all processes.
    """
    args, rows = trainer.args, len(trainer.train_dataset)
    micro = args.per_device_train_batch_size
    size = micro * args.gradient_accumulation_steps * args.world_size
    first = trainer.state.global_step % -(-rows // size) * size
    for n, batch in enumerate(batches):
        at = n * args.world_size + args.process_index
        held = batch["rows"]()
        batch["count"] = max(0, min(rows - first - at * micro, len(held)))
        batch["rows"] = held[: max(1, batch["count"])]
    return int(min(size, rows - first))


def shard(trainer: Any) -> None:
    """Split the model among the processes, where their accelerate config says so (FSDP).

    Until then it lies in the memory of the CPU, so that no GPU has to hold it whole.

    Raises:
        ModelError: it cannot be split in that way.
    """
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if sharded() and plugin is None:
        raise ModelError("accelerate shards on GPUs only; use distributed_type: MULTI_CPU here")
    if trainer.is_deepspeed_enabled or (plugin and plugin.fsdp_version != 2):
        raise ModelError(
            "only FSDP 2 shards here, which does what DeepSpeed's ZeRO 3 does: write "
            "distributed_type: FSDP, and fsdp_version: 2 under fsdp_config, into the accelerate "
            "config"
        )
    if plugin:
        if trainer.args.bf16:
            # accelerate's own policy would round log-probabilities, which are sums, as well.
            plugin.mixed_precision_policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
        fsdp2_prepare_model(trainer.accelerator, trainer.model)


def _reshard(model: Any) -> None:
    """Have each process hold its shards alone, which are what the optimiser is to change.

    accelerate leaves the last norm and the head whole after a forward pass, such as that of the
    reference; an optimiser that is made then would change copies that nobody reads.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def identity(job: Job) -> str:
    """What a checkpoint depends on: all that decides the result, and how batches are cut."""
    start = weights_sha256(job.start) if job.start else None
    template = job.chat_template
    if not is_named(template):
        template = read_template(template)
    facts = [job.base.id, job.base.revision, template, job.column, job.lr_scale, job.seed]
    sections = (job.settings, job.lora, job.train, job.confidence)
    settings = [section.identity() for section in sections if section]
    cut = [job.train.micro_batch_size, str(ranks.count()), sharded()]
    dataset = hashlib.sha256(job.dataset.read_bytes()).hexdigest()
    reference = [weights_sha256(job.reference)] if job.reference else []
    full = [job.finetuning] if job.finetuning == "full" else []
    return digest([dataset, start, facts, settings, cut, *reference, *full])
