"""The files in recipes/launch, each started as a user would, with two processes on the CPU."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from liteframe.language.loading import save_checkpoint
from liteframe.training.adapt import AdaptRecipe, adapt
from liteframe.training.distill import distill
from tiny_internvl import make_checkpoint
from tiny_student import TINY, make_student

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "recipes" / "launch"

CTD = """
output = "{output}"
teacher = "{model}"
steps = 4
learning_rate = 1e-3
save_every = 2
evaluate_every = 2
[student]
initialise = "nothing"
[student.changes]
hidden_sizes = {hidden_sizes}
mlp_sizes = {mlp_sizes}
depths = {depths}
[loss]
# `clipped_mse` clips by the spread of each process's own residuals.
name = "mse"
[data]
clips = 3
workers = 1
held_out_clips = 2
[data.needles]
frames = 8
canvases = 4
codec_share = 0.0
"""

LMA = """
output = "{output}"
model = "{model}"
steps = 4
learning_rate = 1e-2
save_every = 2
[tune]
mode = "{mode}"
save_dtype = "float32"
[tune.lora]
rank = 2
[curriculum]
frames = [4]
[data]
path = "{data}"
conversations = 3
workers = 0
isolate = false
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    save_checkpoint(make_checkpoint(), folder, also=lambda to: make_student().save_pretrained(to / "liteframe"))
    return folder


@pytest.fixture
def data(tmp_path: Path, clip: Path) -> Path:
    shutil.copy(clip, tmp_path / "clip.mp4")
    lines = []
    for question, answer in (("What moves?", "a bar"), ("Is it dark?", "yes"), ("How fast?", "slowly, I think")):
        said = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
        lines.append(json.dumps({"video": "clip.mp4", "conversations": said}) + "\n")
    path = tmp_path / "talk.jsonl"
    path.write_text("".join(lines))
    return path


def lma(tmp_path: Path, base: Path, data: Path, mode: str) -> Path:
    path = tmp_path / "lma.toml"
    output = (tmp_path / "run").as_posix()
    path.write_text(LMA.format(output=output, model=base.as_posix(), data=data.as_posix(), mode=mode))
    return path


def environment(**more: str) -> dict[str, str]:
    ours = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable, "RESTARTS": "0"}
    return {**os.environ, **ours, **more}


def done(command: list[str], **more: str) -> str:
    run = subprocess.run(
        command, env=environment(**more), cwd=ROOT, capture_output=True, text=True, timeout=400, check=False
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return run.stderr


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def assert_same_model(ours: Path, theirs: Path) -> None:
    left, right = load_file(ours / "model.safetensors"), load_file(theirs / "model.safetensors")
    for weights in (left, right):
        for name in weights:
            # Softmax does not see a bias of all keys: its gradient is rounding, of which AdamW makes whole steps.
            if name.endswith("attention.qkv.bias"):
                weights[name] = torch.cat([weights[name].chunk(3)[part] for part in (0, 2)])
    torch.testing.assert_close(left, right, rtol=1e-3, atol=2e-5)


def processes_of(output: Path) -> int:
    """How many made the last step: each gives the learned samples of its share."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    return lines[-1]["samples"]


def test_one_gpu_and_one_node_distil_the_same_student(tmp_path: Path, base: Path) -> None:
    path = tmp_path / "ctd.toml"
    shape = {name: list(TINY[name]) for name in ("hidden_sizes", "mlp_sizes", "depths")}
    path.write_text(CTD.format(output=(tmp_path / "one").as_posix(), model=base.as_posix(), **shape))
    done([str(LAUNCH / "one_gpu.sh"), "distill", "--recipe", str(path)])
    told = done(
        [str(LAUNCH / "one_node.sh"), "distill", "--recipe", str(path), "--set", f"output={tmp_path / 'two'}"],
        PROCESSES="2",
    )
    assert "finished before" not in told
    assert_same_model(tmp_path / "one", tmp_path / "two")
    records = [json.loads((tmp_path / name / "training.json").read_text()) for name in ("one", "two")]
    for figure in ("explained_variance", "cosine"):
        assert records[0]["held_out"][figure] == pytest.approx(records[1]["held_out"][figure], abs=1e-3)
    assert all("held_out_explained_variance" in point for point in records[1]["curve"][1::2])
    # The same command once more trains nothing.
    record = distill(path)
    assert record["steps"] == 4 and "is finished" not in told


FAKE_SRUN = """#!/usr/bin/env bash
# Two tasks, as on two nodes.
[ "$1" = "--kill-on-bad-exit=1" ] && shift
SLURM_PROCID=0 "$@" & first=$!
SLURM_PROCID=1 "$@" & second=$!
wait $first || exit 1
wait $second
"""
FAKE_SCONTROL = """#!/usr/bin/env bash
[ "$*" = "show hostnames node[1-2]" ] || exit 1
printf '127.0.0.1\\nnode2\\n'
"""


def test_slurm_starts_a_task_a_node_and_they_find_each_other(tmp_path: Path, base: Path, data: Path) -> None:
    """slurm.sbatch and several_nodes.sh; srun and scontrol are stand-ins, and both nodes are this machine."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, content in (("srun", FAKE_SRUN), ("scontrol", FAKE_SCONTROL)):
        (tools / name).write_text(content)
        (tools / name).chmod(0o755)
    path = lma(tmp_path, base, data, "lora")
    # Slurm runs a copy of the script from elsewhere.
    shutil.copy(LAUNCH / "slurm.sbatch", tmp_path / "script")
    done(
        ["bash", str(tmp_path / "script"), "adapt", "--recipe", str(path)],
        PATH=f"{tools}:{os.environ['PATH']}",
        PROCESSES="1",
        PORT=free_port(),
        SLURM_JOB_NODELIST="node[1-2]",
        SLURM_JOB_NUM_NODES="2",
        SLURM_JOB_ID="7",
        SLURM_SUBMIT_DIR=str(ROOT),
    )
    assert processes_of(tmp_path / "run") == 3
    adapt(path, [f"output={(tmp_path / 'one').as_posix()}"])
    assert_same_model(tmp_path / "one", tmp_path / "run")


def test_accelerate_divides_a_full_fine_tuning(tmp_path: Path, base: Path, data: Path) -> None:
    """fsdp2.yaml: as one process would; a checkpoint of two processes is finished by one."""
    path = lma(tmp_path, base, data, "full")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH / "fsdp2.yaml")]
    command = [*launch, "--num_processes", "2", "-m", "liteframe", "adapt", "--recipe", str(path)]
    done([*command, "--set", "tune.gradient_checkpointing=true"])
    names = {file.name for file in (tmp_path / "run" / "step-00000004").iterdir()}
    assert {"model-00001-of-00002.safetensors", "optimizer-00002-of-00002.safetensors"} <= names
    adapt(path, [f"output={(tmp_path / 'one').as_posix()}"])
    assert_same_model(tmp_path / "one", tmp_path / "run")
    halfway = tmp_path / "halfway"
    shutil.copytree(tmp_path / "run" / "step-00000002", halfway / "step-00000002")
    adapt(path, [f"output={halfway.as_posix()}"])
    assert_same_model(tmp_path / "one", halfway)


@pytest.mark.parametrize("script", ["one_gpu.sh", "one_node.sh", "several_nodes.sh", "slurm.sbatch"])
def test_scripts_are_sound(script: str) -> None:
    assert subprocess.run(["bash", "-n", str(LAUNCH / script)], check=False).returncode == 0
    assert script == "slurm.sbatch" or os.access(LAUNCH / script, os.X_OK)


def test_several_nodes_asks_for_what_it_needs() -> None:
    run = subprocess.run(
        [str(LAUNCH / "several_nodes.sh")],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0 and "NODES: how many machines" in run.stderr


def test_the_recipe_for_full_fine_tuning_is_divided_and_feeds_eight_gpus() -> None:
    recipe = AdaptRecipe.from_toml(ROOT / "recipes" / "lma_full_internvl3_8b.toml")
    assert (recipe.tune.mode, recipe.tune.shard) == ("full", True)
    assert recipe.data.conversations >= 8 * recipe.accumulate
