"""Encoders as ONNX: the graph is run here by onnxruntime at sizes that the exporter never saw, and compared with torch.

The export runs in another process: tracing does not go through the checks of shapes that these tests put around every
function.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from liteframe.encoders.loading import load_student
from liteframe.encoders.teacher import TeacherEncoder
from liteframe.errors import CheckpointError, InputError, LiteFrameError
from liteframe.integrations import onnx_export
from liteframe.language.vision_tower import load_vision_tower
from tiny_student import make_student

onnxruntime = pytest.importorskip("onnxruntime")


PROGRAM = """
import json, sys
from liteframe.integrations.onnx_export import export_onnx
for name, encoder, out in json.loads(sys.argv[1]):
    print(json.dumps(export_onnx(name, out, encoder=encoder)))
"""
MINI = Path(find_spec("liteframe").submodule_search_locations[0]) / "assets" / "mini"
CLS = {"cls_token": True, "layer_scale": 0.5, "norm_after_stride": True, "activation": "gelu_tanh"}


@pytest.fixture(scope="module")
def exported(mini, tmp_path_factory) -> dict[str, dict]:
    """Reports of the miniature's student and teacher, and of a student with CLS, LayerScale and three widths."""
    folder = tmp_path_factory.mktemp("onnx")
    make_student(**CLS).save_pretrained(folder / "cls")
    wanted = (("mini", None, "liteframe"), ("mini", "teacher", "teacher"), (str(folder / "cls"), None, "student"))
    calls = [(name, encoder, str(folder / out)) for name, encoder, out in wanted]
    command = [sys.executable, "-c", PROGRAM, json.dumps(calls)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""  # nothing of the exporter's own
    reports = [json.loads(line) for line in ran.stdout.splitlines()]
    for report in reports:
        assert sorted(path.name for path in Path(report["out"]).iterdir()) == ["encoder.json", "encoder.onnx"]
    return {**{out: report for (_, _, out), report in zip(wanted, reports, strict=True)}, "folder": folder}


def reference(name: str, folder: Path) -> torch.nn.Module:
    """The encoder in torch, loaded without the exporter."""
    tower = load_vision_tower("mini", device="cpu", dtype="float32")
    if name == "teacher":
        return TeacherEncoder(tower.tower, tower.feature_layer, tower.select_strategy)
    return load_student(MINI / "liteframe" if name == "liteframe" else folder / "cls").float()


@pytest.mark.parametrize("name", ["liteframe", "teacher", "student"])
def test_any_number_of_groups_and_any_size(exported, name):
    encoder = reference(name, exported["folder"])
    session = onnxruntime.InferenceSession(exported[name]["file"], providers=["CPUExecutionProvider"])
    cell = int(exported[name]["input"]["shape"][3].split()[-1])
    random = torch.Generator().manual_seed(3)
    for groups, rows, columns in ((1, 4, 4), (5, 4, 4), (2, 3, 7), (1, 1, 1), (7, 8, 2)):
        pixels = torch.randn(groups, encoder.group_size, 3, rows * cell, columns * cell, generator=random)
        with torch.no_grad():
            expected = encoder(pixels).features
        (found,) = session.run(["features"], {"pixels": pixels.numpy()})
        assert found.shape == tuple(expected.shape) == (groups, 1, rows, columns, encoder.feature_dim)
        # Float32 on both sides; sums in another order.
        torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=1e-4)
        assert expected.std() > 0.05


@pytest.mark.parametrize("name", ["liteframe", "teacher", "student"])
def test_the_report_says_what_was_compared(exported, name):
    report = exported[name]
    assert 0 < report["relative_difference"] <= report["tolerance"] == onnx_export.TOLERANCE
    assert report["max_difference"] == max(check["max_difference"] for check in report["checks"])
    assert len({tuple(check["shape"]) for check in report["checks"]}) == 4
    assert report["speed_ratio"] == pytest.approx(report["torch_seconds"] / report["onnxruntime_seconds"])
    assert report["bytes"] == Path(report["file"]).stat().st_size
    written = json.loads((Path(report["out"]) / "encoder.json").read_text())
    assert {key: report[key] for key in written} == written
    size = 56 if name == "student" else 112
    group = 1 if name == "teacher" else 4
    assert (written["input"]["native_height"], written["input"]["shape"][1]) == (size, group)
    assert written["output"]["shape"][-1] == (32 if name == "student" else 192)


@pytest.mark.parametrize(
    ("name", "encoder", "why"),
    [
        ("mini", "pooled", "encoder 'pooled' cannot be exported; use liteframe, teacher or a student's folder"),
        ("mini", "fastv", "encoder 'fastv' cannot be exported"),
        ("no/such-model", None, "no/such-model"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(mini, tmp_path, name, encoder, why):
    with pytest.raises(LiteFrameError, match=why) as raised:
        onnx_export.export_onnx(name, tmp_path / "out", encoder=encoder)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_student_has_no_other_encoder(tmp_path):
    make_student().save_pretrained(tmp_path / "student")
    with pytest.raises(InputError, match="is a student itself"):
        onnx_export.export_onnx(tmp_path / "student", tmp_path / "out", encoder="teacher")


def test_a_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(InputError, match=r"needs onnxscript: pip install 'liteframe-video\[onnx\]'"):
        onnx_export.check_installed()


@pytest.mark.parametrize(("seed", "tolerance"), [(1, onnx_export.TOLERANCE), (0, 0.0)], ids=["other", "exact"])
def test_too_great_a_difference_leaves_nothing(exported, tmp_path, monkeypatch, seed, tolerance):
    """A graph of another student's weights; and the right one, where not even rounding is allowed."""
    make_student(seed=seed, **CLS).save_pretrained(tmp_path / "this")
    graph = exported["student"]["file"]
    monkeypatch.setattr(onnx_export, "_write", lambda encoder, pixels, file: shutil.copyfile(graph, file))
    with pytest.raises(CheckpointError, match="out: is not written: onnxruntime differs from torch by") as raised:
        onnx_export.export_onnx(tmp_path / "this", tmp_path / "out", tolerance=tolerance)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["this"]
