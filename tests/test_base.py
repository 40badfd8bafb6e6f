"""The ground: carriers, settings, errors, the machine."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import liteframe as lf
from liteframe.config import Config
from liteframe.runtime import Stopwatch, choose_device, choose_dtype, seed_everything, tune_allocator
from liteframe.types import Answer, Frames, VideoTokens


class Recipe(Config):
    class Data(Config):
        path: str = "videos"

    steps: int = 10
    rate: float = 1e-3
    sizes: tuple[int, ...] = (1, 2)
    data: Data = Data()


# --- carriers ---------------------------------------------------------------------------------------------------------


def frames(count: int = 3, **changes: np.ndarray) -> Frames:
    values = {"pixels": np.zeros((count, 4, 6, 3), np.uint8), "seconds": np.arange(count, dtype=np.float64)}
    return Frames(**{**values, **changes})


def test_frames_know_their_length_and_describe_themselves():
    assert len(frames(3)) == 3
    assert repr(frames(3)) == "Frames(3 of 6 x 4, 0.000 to 2.000 s)"
    assert repr(frames(0)) == "Frames(0 of 6 x 4, no frames)"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"pixels": np.zeros((3, 4, 6, 3), np.float32)}, "not uint8"),
        ({"pixels": np.zeros((3, 4, 6), np.uint8)}, "not uint8"),
        ({"pixels": np.zeros((3, 4, 6, 4), np.uint8)}, "not uint8"),
        ({"seconds": np.zeros(2)}, "not float64"),
        ({"seconds": np.arange(3)}, "not float64"),
        ({"seconds": np.array([0.0, 1.0, 1.0])}, "increase strictly"),
    ],
)
def test_frames_refuse_wrong_shapes_and_times(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        frames(**changes)


def test_video_tokens_count_the_padding_of_the_last_group():
    tokens = VideoTokens(torch.zeros(3, 1, 4, 4, 8), num_frames=10, group_size=4, seconds=np.arange(10.0))
    assert tokens.num_padded_frames == 2
    assert repr(tokens) == "VideoTokens(3 groups of 4 frames, grid 1 x 4 x 4, width 8)"


@pytest.mark.parametrize(
    ("features", "num_frames", "seconds", "complaint"),
    [
        (torch.zeros(3, 4, 4, 8), 12, None, "not floating"),
        (torch.zeros(3, 1, 4, 4, 8, dtype=torch.int32), 12, None, "not floating"),
        (torch.zeros(3, 1, 4, 4, 8), 13, None, "do not make 3 groups"),
        (torch.zeros(3, 1, 4, 4, 8), 8, None, "do not make 3 groups"),
        (torch.zeros(3, 1, 4, 4, 8), 12, np.arange(11.0), "seconds has shape"),
    ],
)
def test_video_tokens_refuse_what_does_not_fit(features, num_frames, seconds, complaint):
    with pytest.raises(ValueError, match=complaint):
        VideoTokens(features, num_frames=num_frames, group_size=4, seconds=seconds)


def test_an_answer_becomes_the_json_of_ask():
    answer = Answer("red", 8, 64, {"decode": 0.1}, model="mini", encoder="teacher", video="a.mp4", seconds=[0.0])
    assert list(answer.as_dict()) == [
        "text", "num_frames", "num_visual_tokens", "timings", "model", "encoder", "video", "seconds",
    ]  # fmt: skip


# --- settings ---------------------------------------------------------------------------------------------------------


def test_settings_survive_toml_with_equal_digest(tmp_path):
    recipe = Recipe(steps=7, data=Recipe.Data(path="elsewhere"))
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    again = Recipe.from_toml(tmp_path / "recipe.toml")
    assert again == recipe
    assert again.digest() == recipe.digest() != Recipe().digest()


def test_overrides_are_typed_and_reach_into_tables(tmp_path):
    (tmp_path / "recipe.toml").write_text("steps = 5\n")
    overrides = ["steps=8", "rate=0.5", "sizes=[3, 4]", "data.path=my videos"]
    recipe = Recipe.from_toml(tmp_path / "recipe.toml", overrides)
    assert (recipe.steps, recipe.rate, recipe.sizes, recipe.data.path) == (8, 0.5, (3, 4), "my videos")


@pytest.mark.parametrize(
    ("toml", "override", "complaint"),
    [
        ("stepz = 5", "steps=1", r"unknown key 'stepz'; known keys: steps, rate, sizes, data"),
        ("", "data.pat=x", r"unknown key 'data.pat'"),
        ("steps = 'many'", "rate=1", r"key 'steps': .* \(got 'many'\)"),
        ("steps = = 5", "rate=1", r"is not valid TOML"),
        ("", "steps", r"write key=value"),
        ("steps = 5", "steps.more=1", r"'steps' is a value, not a table"),
    ],
)
def test_unusable_settings_are_refused_in_one_line_that_names_the_key(tmp_path, toml, override, complaint):
    (tmp_path / "recipe.toml").write_text(toml)
    with pytest.raises(lf.ConfigError, match=complaint) as caught:
        Recipe.from_toml(tmp_path / "recipe.toml", [override])
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_not_there_is_named(tmp_path):
    with pytest.raises(lf.ConfigError, match=r"nowhere\.toml: cannot be read"):
        Recipe.from_toml(tmp_path / "nowhere.toml")


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Recipe().steps = 3


# --- errors -----------------------------------------------------------------------------------------------------------


def test_every_error_has_one_root_and_names_its_file():
    error = lf.VideoError("a.mp4", "empty", "the file is empty; copy it again")
    assert str(error) == "a.mp4: the file is empty; copy it again"
    assert (error.path, error.reason) == ("a.mp4", "empty")
    for name in ("VideoError", "CheckpointError", "ContextError", "ConfigError", "InputError"):
        assert issubclass(getattr(lf, name), lf.LiteFrameError)
    assert issubclass(lf.InputError, ValueError)
    assert not issubclass(lf.VideoWarning, lf.LiteFrameError)


# --- the machine ------------------------------------------------------------------------------------------------------


def test_devices_and_dtypes_are_chosen_or_refused():
    cpu = choose_device("cpu")
    assert cpu.type == "cpu"
    assert choose_device("auto").type in {"cpu", "cuda", "mps"}
    assert choose_dtype(cpu) == torch.float32
    assert choose_dtype(torch.device("cuda")) == torch.bfloat16
    assert choose_dtype(cpu, "float16") == torch.float16
    with pytest.raises(lf.InputError, match="unknown device"):
        choose_device("toaster")
    for name in ("int8", "Tensor", "floaty"):
        with pytest.raises(lf.InputError, match="unknown; use auto"):
            choose_dtype(cpu, name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_an_absent_cuda_device_is_refused_with_the_remedy():
    with pytest.raises(lf.InputError, match="use --device cpu"):
        choose_device("cuda:0")


def test_seeds_repeat():
    draws = []
    for _ in range(2):
        seed_everything(5)
        draws.append((torch.rand(3).tolist(), np.random.rand(3).tolist()))
    assert draws[0] == draws[1]


def test_a_stopwatch_adds_up_its_stages():
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        with watch.stage("encode"):
            pass
    with pytest.raises(RuntimeError), watch.stage("decode"):
        raise RuntimeError
    assert set(watch.seconds) == {"encode", "decode"}
    assert all(seconds >= 0 for seconds in watch.seconds.values())


def test_the_allocator_setting_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("LITEFRAME_ALLOCATOR", "system")
    assert tune_allocator() is False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_the_allocator_setting_keeps_freed_memory():
    """After large blocks are freed, the next ones must not be faulted in from the system again."""
    code = (
        "import resource, sys, numpy as np\n"
        "from liteframe.runtime import tune_allocator\n"
        "took = tune_allocator()\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "np.ones(8 << 20, np.uint8)\n"
        "before = faults()\n"
        "for _ in range(20): np.ones(8 << 20, np.uint8)\n"
        "print(int(took), faults() - before)\n"
    )
    took, faults = map(
        int, subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.split()
    )
    if not took:
        pytest.skip("this C library has no mallopt")
    assert faults < 20 * (8 << 20) // 4096 // 10


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
@pytest.mark.parametrize("where", ["main", "thread"])
@pytest.mark.parametrize(("count", "between"), [(1, 0), (40, 0), (40, 64)])
def test_what_was_freed_is_given_back_when_asked(where, count, between):
    """Forty megabytes that a thread freed, at the end of its arena or with small blocks in between that stay."""
    code = (
        "import sys, threading, numpy as np\n"
        "from pathlib import Path\n"
        "from liteframe.runtime import return_freed_memory, tune_allocator\n"
        "took = tune_allocator()\n"
        "def resident(): return 4096 * int(Path('/proc/self/statm').read_text().split()[1])\n"
        "stay, told = [], []\n"
        "def work():\n"
        "    blocks = []\n"
        f"    for _ in range({count}):\n"
        f"        blocks.append(np.ones((40 << 20) // {count}, np.uint8))\n"
        f"        stay.append(np.ones({between}, np.uint8) if {between} else None)\n"
        "    blocks.clear()\n"
        "    before = resident()\n"
        "    return_freed_memory()\n"
        "    told.append(before - resident())\n"
        f"if {where == 'thread'}:\n"
        "    thread = threading.Thread(target=work); thread.start(); thread.join()\n"
        "else:\n"
        "    work()\n"
        "kept = resident(); np.ones(8 << 20, np.uint8); kept = resident() - kept\n"
        "print(int(took), told[0], kept)\n"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    took, returned, kept = map(int, output.split())
    if not took:
        pytest.skip("this C library has no mallopt")
    assert returned > 35 << 20
    assert kept > 7 << 20  # the setting holds again
