"""Run a module with accelerate made to shard on CPUs, which it does on accelerators only.

Stands between `accelerate launch` and `-m macpo_train.launch JOB`.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

usual = AcceleratorState.__init__


def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
    """What accelerate does after this for several GPUs."""
    usual(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin


if __name__ == "__main__":
    AcceleratorState.__init__ = init
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__")
