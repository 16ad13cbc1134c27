"""trl's own command trains on what macpo renders: from the folder, and from a Hub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import RECIPE
from hub_server import TOKEN, serve

STEPS = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--logging_steps", "1"]
LOSS = ["--loss_type", "sigmoid", "sft", "--loss_weights", "1.0", "0.2"]
QUIET = ["--report_to", "none", "--save_strategy", "no", "--bf16", "false", "--use_cpu", "true"]


@pytest.mark.slow
def test_trl_trains_two_steps_from_the_folder_and_from_the_hub(
    tmp_path: Path, tiny_base: Path
) -> None:
    (tmp_path / "macpo.yaml").write_text(RECIPE.replace("engine: {", "engine: {name: fake, "))
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    # Telemetry of the libraries has no place in tests, and no Hub to go to.
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "CUDA_VISIBLE_DEVICES": ""}

    def run(*command: str | Path, **more: str) -> str:
        words = [str(word) for word in command]
        done = subprocess.run(
            words, cwd=tmp_path, env={**environment, **more}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    macpo: list[str | Path] = [sys.executable, "-m", "macpo"]
    run(*macpo, "run", "--until", "1")
    run(*macpo, "push", "--round", "1", "--learner", "student", "--to", "tree")
    trl: list[str | Path] = [
        Path(sys.executable).with_name("trl"),
        "dpo",
        "--model_name_or_path",
        tiny_base,
    ]
    common = ["--dataset_config", "round_1_student", *LOSS, *STEPS, *QUIET]
    output = run(*trl, "--dataset_name", tmp_path / "tree", "--output_dir", "one", *common)
    assert "rewards/margins" in output and (tmp_path / "one/model.safetensors").is_file()
    with serve() as hub:
        online = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
        push = ["push", "--round", "1", "--learner", "student", "--repo", "org/pairs"]
        run(*macpo, *push, **online)
        again = run(*trl, "--dataset_name", "org/pairs", "--output_dir", "two", *common, **online)
        assert hub.count("GET /datasets/org/pairs/resolve/.*parquet")
    assert "rewards/margins" in again
    same = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("one", "two")]
    assert same[0] == same[1]
