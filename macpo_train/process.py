"""The entry point of each process that `launch` starts."""

from __future__ import annotations

import json
import os
import pickle
import sys
import threading
from pathlib import Path
from typing import Any

from macpo_data.errors import MacpoError
from macpo_train.job import Job
from macpo_train.launch import SIGN
from macpo_train.ranks import is_first
from macpo_train.train import train


def main() -> None:
    """One of the processes."""
    first = is_first()

    def tell(**message: Any) -> None:
        if first:
            print(SIGN + json.dumps(message), flush=True)

    def end_with_the_parent() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=end_with_the_parent, daemon=True).start()
    job: Job = pickle.loads(Path(sys.argv[1]).read_bytes())
    try:
        facts = train(lambda *progress: tell(progress=progress), job)
    except MacpoError as error:
        tell(error=str(error), kind=type(error).__name__)
        sys.exit(1 if first else f"process {os.environ['RANK']}: {error}")
    tell(facts=facts)


if __name__ == "__main__":
    main()
