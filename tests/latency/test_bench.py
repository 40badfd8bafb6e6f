"""`liteframe bench`: what is timed is the true work, what is reported adds up, and what cannot be done is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from liteframe import runtime
from liteframe.data.needles import NeedleConfig, write_benchmark
from liteframe.encoders.interface import STUDENT_FOLDER
from liteframe.encoders.student import LiteFrameEncoder
from liteframe.errors import InputError, VideoWarning
from liteframe.language.places import find_checkpoint
from liteframe.language.prompt import Slots
from liteframe.latency import bench, machine
from liteframe.latency.bench import Request, check_memory, make_video, needed_memory, run
from liteframe.latency.cost import STAGES, CostModel, num_weights
from liteframe.latency.measure import time_question
from liteframe.latency.shapes import (
    CHAT_TOKENS,
    QUESTION,
    SHAPES,
    build_subject,
    counted_prompt,
    find_shape,
    internvl3_config,
    random_model,
    with_student,
)
from liteframe.pipeline import VideoLLM
from liteframe.video.probe import probe
from tiny_internvl import make_model

CPU = torch.device("cpu")


def request_for(shape, **changes) -> Request:
    values = {"frames": (8,), "methods": ("teacher",), "device": CPU, "dtype": torch.float32, "repeats": 1}
    return Request(shape=shape, answer_tokens=2, **{**values, **changes})


# --- a whole run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def result(out, tiny_shape):
    """A run of the tiny shape; 64 frames of the teacher are longer than its context."""
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "CPU_MATRIX_SIDES", (256,))
        found = run(
            tiny_shape, [3, 64], ["teacher", "liteframe"], device="cpu", out=out, repeats=2, answer_tokens=3,
            on_progress=lambda done, total: told.append((done, total)),
        )  # fmt: skip
    assert told == [(done, 9) for done in range(1, 10)]
    return found


def test_a_row_for_each_setting(result):
    settings = [(row["method"], row["frames"]) for row in result["rows"]]
    assert settings == [("teacher", 3), ("liteframe", 3), ("liteframe", 64)]
    (left_out,) = result["left_out"]
    assert (left_out["method"], left_out["frames"]) == ("teacher", 64)
    assert "512" in left_out["reason"]
    # 56 pixels: 2 x 2 tokens a frame of the teacher; one for 4 frames of the student.
    assert [row["visual_tokens"] for row in result["rows"]] == [12, 1, 16]
    labels = [sum(6 + len(str(slot)) for slot in range(1, slots + 1)) for slots in (3, 1, 16)]
    texts = [row["positions"] - row["visual_tokens"] for row in result["rows"]]
    assert texts == [CHAT_TOKENS + label for label in labels]
    assert result["weights"] == {"model": "random", "student": "random"}


def test_stages_explain_the_wall_time(result):
    for row in result["rows"]:
        assert tuple(row["stages"]) == STAGES
        assert all(math.isfinite(value) and value > 0 for value in row["stages"].values())
        for stage, (shortest, longest) in row["spread"].items():
            assert shortest <= row["stages"][stage] <= longest
        assert 0.5 < row["explained"] <= 1
        assert set(row["bound_seconds"]) == set(row["flops"]) == set(STAGES) - {"decode"}
        assert sum(row["bound_seconds"].values()) < row["wall_seconds"]
        assert row["peak_memory_bytes"] > 2**20
    # These passes take milliseconds: a row may be interrupted between two stages. What no stage held would lack in all.
    assert max(row["explained"] for row in result["rows"]) >= 0.95


def test_bounds_are_the_costs_at_the_measured_rates(result):
    facts = result["machine"]
    for row in result["rows"]:
        for stage, seconds in row["bound_seconds"].items():
            computing = row["flops"][stage] / facts["flops_per_second"]
            moving = row["bytes"][stage] / facts["bytes_per_second"]
            assert seconds == pytest.approx(max(computing, moving))


def test_what_is_written_is_what_is_returned(result, out):
    assert json.loads((out / "bench.json").read_text()) == json.loads(json.dumps(result))
    assert result["files"] == [str(out / "bench.png"), str(out / "bench.json")]
    picture = np.asarray(Image.open(out / "bench.png").convert("RGB"))
    assert picture.shape[0] > 300 and len(np.unique(picture.reshape(-1, 3), axis=0)) > len(STAGES)


def test_a_precision_is_told_with_what_it_costs(tiny_shape, result, monkeypatch):
    monkeypatch.setattr(runtime, "CPU_MATRIX_SIDES", (256,))
    found = run(tiny_shape, [3], ["teacher", "liteframe"], device="cpu", repeats=1, answer_tokens=2, precision="int8")
    for method in ("teacher", "liteframe"):
        assert result["encoders"][method] == {"precision": "fp32", "explained_variance": 1.0}
        facts = found["encoders"][method]
        assert facts["precision"] == "int8" and 0.9 < facts["explained_variance"] < 1
    for row in found["rows"]:
        # The matrix rate of float32 bounds no int8; all else is computed as before.
        assert set(row["bound_seconds"]) == set(STAGES) - {"decode", "encode"}
        assert row["stages"]["encode"] > 0


def test_the_same_words_as_the_pipeline_says(mini, tmp_path):
    """The timed steps are the true ones: the miniature says what `ask` says of the same file."""
    shape = find_shape("mini")
    subject = build_subject(shape, ["pooled"], CPU, torch.float32)
    assert subject.weights == {"model": "shipped"}
    video = make_video(tmp_path, 18, 128, seed=3)
    asked = VideoLLM.from_pretrained(mini, encoder="pooled", device="cpu")
    said = asked.ask(video, QUESTION, num_frames=18, max_new_tokens=6)
    timed = time_question(subject, "pooled", video, 18, 6)
    in_groups = time_question(subject, "pooled", video, 18, 6, batch_frames=6)  # of 4 frames, the last of two
    assert (in_groups.answer, in_groups.positions) == (timed.answer, timed.positions)
    assert timed.visual_tokens == said.num_visual_tokens
    assert len(timed.answer) == 6
    words = asked.language.tokenizer.decode(timed.answer, skip_special_tokens=False)
    assert words.startswith(said.text) and said.text
    with pytest.warns(VideoWarning), pytest.raises(InputError, match="holds 18 frames, not 20"):
        time_question(subject, "pooled", video, 20, 1)


def test_videos_are_drawn_and_of_the_length_asked_for(tmp_path):
    video = make_video(tmp_path, 5, 64, seed=0)
    info = probe(video)
    assert (info.num_frames, info.width, info.height) == (5, 64, 64)
    write_benchmark(tmp_path / "same", 1, 0, NeedleConfig(frames=5, size=64, needle_frames=(1, 4), needles=(1, 1)))
    assert next((tmp_path / "same").glob("*.mp4")).read_bytes() == video.read_bytes()


# --- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "millions"), [("internvl3-1b", 938.2), ("internvl3-2b", 2088.9), ("internvl3-8b", 7944.4)]
)
def test_true_shapes_have_the_published_number_of_weights(name, millions):
    costs = CostModel(internvl3_config(name), size=(448, 448))
    assert costs.total_weights / 1e6 == pytest.approx(millions, rel=0.001)


def test_another_student_is_counted_with_its_own_operations():
    usual, fast = (with_student(find_shape("internvl3-1b"), name) for name in ("liteframe-b", "liteframe-b-fast"))
    assert usual == find_shape("internvl3-1b")
    with torch.device("meta"):
        flops = [LiteFrameEncoder(shape.student).flops(448, 448, 64) for shape in (usual, fast)]
    # docs/distillation.md: 8.68 and 13.97 times fewer operations than the tower.
    assert flops[0] / flops[1] == pytest.approx(13.97 / 8.68, abs=0.01)
    with pytest.raises(InputError, match="--student liteframe-b: mini has a student with weights"):
        with_student(find_shape("mini"), "liteframe-b")
    with pytest.raises(InputError, match="its tokens are not those of internvl3-1b's teacher"):
        with_student(find_shape("internvl3-1b"), "liteframe-mini")


def test_a_counted_prompt_is_text_around_slots():
    prompt = counted_prompt(Slots(44, 4), 5)  # 11 slots, of which two have a number of two digits
    assert int(prompt.visual.sum()) == 11 * 5
    assert int((~prompt.visual).sum()) == CHAT_TOKENS + 9 * 7 + 2 * 8
    runs = re.findall("v+", "".join("v" if visual else "-" for visual in prompt.visual.tolist()))
    assert runs == ["v" * 5] * 11


def test_random_models_are_made_in_their_dtype(tiny_shape):
    model = random_model(tiny_shape.config, CPU, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32
    # What turns positions into angles is no weight: in bfloat16 it could not tell far positions apart.
    angles = model.model.language_model.rotary_emb.inv_freq
    assert torch.equal(angles, make_model(tiny_shape.config).model.language_model.rotary_emb.inv_freq)
    assert angles.dtype == torch.float32


def test_random_models_compute_with_every_weight(tiny_shape):
    """No memory that was left as it was, no zeros: every matrix is random, and outputs depend on the position."""
    model, again = (random_model(tiny_shape.config, CPU, torch.float32) for _ in range(2))
    for (name, parameter), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(parameter, other), name
        if parameter.ndim > 1:
            assert 0.01 < float(parameter.detach().std()) < 0.03, name
            assert (parameter == 0).float().mean() < 0.01, name
    with torch.inference_mode():
        logits = model(input_ids=torch.arange(8)[None]).logits[0]
    assert logits.isfinite().all() and not torch.allclose(logits[0], logits[1])


def test_the_miniature_is_timed_with_what_is_shipped(mini):
    shape = find_shape("mini")
    subject = build_subject(shape, ["liteframe"], CPU, torch.float32)
    has_student = (find_checkpoint(mini) / STUDENT_FOLDER).is_dir()
    assert subject.weights["student"] == ("shipped" if has_student else "random")
    assert num_weights(subject.encoders["liteframe"]) == num_weights(
        CostModel(shape.config, shape.student, size=(112, 112)).student
    )


# --- the machine ------------------------------------------------------------------------------------------------------


def test_rates_are_work_over_time_and_the_best_counts(monkeypatch):
    seconds = [0.5]
    for module in (machine, runtime):
        monkeypatch.setattr(module, "best_seconds", lambda run, device: seconds[0])
    gauge = machine.Gauge(CPU, torch.float32, weight_bytes=3 << 20)
    assert gauge.best["buffer_bytes"] == 3 << 20
    for seconds[0], fastest in ((0.5, 0.5), (2.0, 0.5), (0.25, 0.25)):
        gauge.measure()
        assert gauge.rates.flops == 2 * max(runtime.CPU_MATRIX_SIDES) ** 3 / fastest
        assert gauge.rates.bytes == gauge.best["copy_bytes_per_second"] == 2 * (3 << 20) / fastest
        assert gauge.best["read_bytes_per_second"] == (3 << 20) / fastest


def test_the_fastest_run_counts(monkeypatch):
    """One call to warm up, then five runs; a clock that only the calls move."""
    now, taken = [0.0], iter([9.0, 3.0, 1.0, 2.0, 3.0, 2.0])
    monkeypatch.setattr(runtime, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def work():
        now[0] += next(taken)

    assert runtime.best_seconds(work, CPU) == 1.0
    assert next(taken, None) is None


def test_the_peak_sees_what_was_held_for_a_moment():
    machine.reset_peak(CPU)
    before = machine.peak_memory(CPU)
    held = torch.ones(32 << 20)  # 128 MiB
    del held
    assert machine.peak_memory(CPU) - before > 100 << 20


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"shape": "internvl3-9b"}, "internvl3-9b: unknown; use one of mini, internvl3-1b"),
        ({"methods": ["teacher", "tome"]}, "tome: unknown; use teacher, pooled, average, liteframe"),
        ({"frames": [0]}, "--frames 0"),
        ({"frames": [5000]}, "--frames 5000"),
        ({"repeats": 0}, "--repeats 0"),
        ({"answer_tokens": 0}, "--answer-tokens 0"),
        ({"device": "nowhere"}, "--device nowhere"),
        ({"dtype": "int8"}, "int8: unknown"),
        ({"batch_frames": 0}, "--batch-frames 0"),
        ({"precision": "fp4"}, "--precision fp4: unknown; use fp32, bf16, int8 or fastest"),
    ],
)
def test_wrong_requests_are_refused(tiny_shape, arguments, words):
    with pytest.raises(InputError, match=words):
        run(**{"shape": tiny_shape, **arguments})


def test_a_folder_that_cannot_be_made_fails_before_anything_is_measured(tiny_shape, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "Gauge", None)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        run(tiny_shape, [1], ["teacher"], device="cpu", out=tmp_path / "file")


def test_nothing_that_the_context_holds_is_refused(tiny_shape):
    with pytest.raises(InputError, match=r"teacher with 600 frames needs .* ask for fewer"):
        run(tiny_shape, [600], ["teacher"])


def test_too_little_memory_names_what_would_fit():
    shape = find_shape("internvl3-8b")
    request = request_for(shape)
    costs, free = request.costs(), 20 << 30
    with pytest.raises(InputError) as raised:
        check_memory(request, costs, [("teacher", 8)], free)
    needed, there = (float(number) for number in re.findall(r"([\d.]+) GiB", str(raised.value)))
    assert needed * 2**30 > 4 * costs.total_weights > free and there == 20.0
    assert "would fit: --dtype bfloat16 or --shape internvl3-2b" in str(raised.value)
    for fitting in (dataclasses.replace(request, dtype=torch.bfloat16), request_for(find_shape("internvl3-2b"))):
        check_memory(fitting, fitting.costs(), [("teacher", 8)], free)


def test_too_little_memory_for_many_frames_names_fewer():
    request = request_for(find_shape("internvl3-8b"), dtype=torch.bfloat16)
    costs = request.costs()
    few, many = (needed_memory(costs, bench._question(request, costs, "teacher", count)) for count in (8, 64))
    with pytest.raises(InputError, match="--frames 8 with teacher"):
        check_memory(request, costs, [("teacher", 8), ("teacher", 64)], (few + many) // 2)


def test_a_device_with_nothing_at_all(tiny_shape):
    request = request_for(tiny_shape)
    assert set(SHAPES) >= {"mini"}
    with pytest.raises(InputError, match="use a device with more memory"):
        check_memory(request, request.costs(), [("teacher", 8)], 1000)
