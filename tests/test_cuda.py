"""On a GPU: the same features, answers and steps as on the CPU. Left out where torch sees no CUDA device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from liteframe import VideoLLM
from liteframe.baselines import BASELINES
from liteframe.encoders.depthwise import METHODS, depthwise_convolution
from liteframe.encoders.interface import group_frames
from liteframe.encoders.precision import explained_variance
from liteframe.latency.bench import run as bench
from liteframe.training.adapt import adapt
from liteframe.training.distill import distill
from liteframe.video.decode import read_video
from liteframe.video.transform import resize

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
QUESTION = "What colour was the square?"
ENCODERS = ("teacher", "pooled", "liteframe", *BASELINES)
# Its choice hangs on a frame's exact values, and devices resize to within two of 255: see the test of its own.
CHOOSES_BY_PIXELS = "random"

CTD = """
output = "{output}"
teacher = "mini"
steps = 4
save_every = 2
learning_rate = 1e-3
[student]
size = "liteframe-mini"
[data]
clips = 2
workers = 0
held_out_clips = 2
[data.needles]
frames = 8
canvases = 4
codec_share = 0.0
"""
LMA = """
output = "{output}"
model = "mini"
encoder = "liteframe"
steps = 4
save_every = 2
learning_rate = 1e-3
[curriculum]
frames = [8]
[data]
conversations = 2
[data.bank]
clips = 4
frames = 16
needles = [1, 2]
"""


@pytest.fixture(autouse=True)
def exact_sums() -> Iterator[None]:
    """Without TF32, whose ten bits are no float32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("kernel", "stride"), [((3, 1, 1), (1, 1, 1)), ((3, 3, 3), (2, 2, 2)), ((3, 3, 3), (2, 1, 1))])
def test_a_depthwise_convolution_and_its_gradients(method, kernel, stride):
    torch.manual_seed(0)
    hidden, weight = torch.randn(3, 4, 6, 8, 16), torch.randn(16, 1, *kernel)
    found = []
    for device, how in (("cpu", "taps"), ("cuda", method)):
        inputs = [value.to(device, copy=True).requires_grad_() for value in (hidden, weight)]
        result = depthwise_convolution(*inputs, stride, how)
        (result * torch.arange(result.numel(), device=device).view(result.shape).cos()).sum().backward()
        found.append([result.detach().cpu(), *(value.grad.cpu() for value in inputs)])
    for ours, exact in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, exact, atol=2e-4, rtol=1e-4)


def test_frames_are_resized_as_on_the_cpu(clip):
    """The device resizes in float: at most two of 255 from the CPU's kernel of whole numbers."""
    pixels = read_video(clip, num_frames=4).pixels
    exact, found = (resize(pixels, (56, 56), torch.device(device)).cpu().float() for device in ("cpu", "cuda"))
    assert (exact - found).abs().max() <= 2


@pytest.mark.parametrize("encoder", [name for name in ENCODERS if name != CHOOSES_BY_PIXELS])
def test_the_answer_is_that_of_the_cpu(mini, clip, encoder):
    """In float32, on the same visual tokens up to rounding."""
    found = {}
    for device in ("cpu", "cuda"):
        model = VideoLLM.from_pretrained(mini, encoder=encoder, device=device, dtype="float32")
        video = model.watch(clip, num_frames=8)
        found[device] = (video.visual.embeddings.cpu(), model.ask(video, QUESTION, max_new_tokens=8).text)
    assert explained_variance(found["cuda"][0], found["cpu"][0]) > 0.999
    assert found["cuda"][1] == found["cpu"][1] != ""


def test_of_the_same_frames_the_same_tokens_are_chosen(mini):
    frames = torch.randn(4, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    found = []
    for device in ("cpu", "cuda"):
        model = VideoLLM.from_pretrained(mini, encoder=CHOOSES_BY_PIXELS, device=device, dtype="float32")
        with torch.inference_mode():
            groups = group_frames(frames.to(device), model.encoder.group_size)
            found.append(model.encoder(groups).features.cpu())
    torch.testing.assert_close(found[1], found[0], atol=1e-3, rtol=1e-3)


def test_the_default_dtype_answers_too(mini, clip):
    model = VideoLLM.from_pretrained(mini, device="cuda")
    assert model.encoder.dtype == torch.bfloat16
    assert model.ask(clip, QUESTION, num_frames=16, max_new_tokens=4).text


COMPILED = """
import torch
from liteframe.encoders.interface import group_frames
from liteframe.encoders.precision import compiled
from tiny_student import make_student
torch.backends.cudnn.allow_tf32 = False
torch.manual_seed(0)
student = make_student().cuda()
batches = [group_frames(torch.randn(4 * count, 3, 56, 56, device="cuda"), 4) for count in (8, 3, 8, 1)]
with torch.inference_mode():
    exact = [student(batch).features.clone() for batch in batches]
    fast = compiled(student, 32)
    found = [fast(batch).features for batch in batches]
print(max((ours - wanted).abs().max().item() for ours, wanted in zip(found, exact, strict=True)))
"""


def test_a_compiled_student_gives_the_same_features_in_every_batch():
    """In a process of its own: the checks of shapes that these tests run with cannot be traced."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", COMPILED]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert 0 < float(run.stdout) < 1e-3  # 0 would be no compilation


def test_distillation_takes_its_steps_and_goes_on(tmp_path: Path):
    path = tmp_path / "ctd.toml"
    path.write_text(CTD.format(output=(tmp_path / "run").as_posix()))
    distill(path)
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["held_out"]["explained_variance"] > record["held_out_before"]["explained_variance"]


def test_adaptation_takes_its_steps(tmp_path: Path, clip):
    path = tmp_path / "lma.toml"
    path.write_text(LMA.format(output=(tmp_path / "run").as_posix()))
    adapt(path)
    model = VideoLLM.from_pretrained(tmp_path / "run", device="cuda")
    assert model.ask(clip, QUESTION, num_frames=8, max_new_tokens=4).text


def test_bench_measures_the_device(tmp_path: Path):
    report = bench("mini", [8], ["liteframe"], device="cuda", repeats=1, answer_tokens=2, out=tmp_path)
    assert report["machine"]["gpu"] == torch.cuda.get_device_name()
    assert report["rows"][0]["peak_memory_bytes"] > 0
    assert report["machine"]["dtype"] == "bfloat16"
