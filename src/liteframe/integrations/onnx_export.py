"""An encoder as ONNX: any number of groups, any height and width that its patches and strides divide.

1. load the encoder alone, in float32 on the CPU: no language model is read
2. trace it with `torch.export` and its sizes left open; positions are resampled bicubically inside the graph
3. run the file in onnxruntime beside torch, on random frames of several sizes; too great a difference is an error
4. only then give the folder its name

In the graph depth-wise convolutions are ONNX's own ``Conv``: what torch computes as taps on a CPU is written for torch.

Axis letters: ``g`` groups, ``f`` frames of a group, ``H``/``W`` pixels, ``h``/``w`` grid cells, ``d`` feature width.
"""

from __future__ import annotations

import json
import logging
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from liteframe.encoders import EncoderSource, build_encoder
from liteframe.encoders.interface import STUDENT_FOLDER, PixelConfig, VideoEncoder
from liteframe.encoders.loading import load_student
from liteframe.encoders.student import LiteFrameConfig, LiteFrameEncoder
from liteframe.errors import CheckpointError, InputError
from liteframe.files import filling
from liteframe.language.loading import read_checkpoint_config
from liteframe.language.places import find_checkpoint, first_line
from liteframe.language.vision_tower import load_vision_tower
from liteframe.runtime import machine_facts

MODEL_FILE, SETTINGS_FILE = "encoder.onnx", "encoder.json"
ENCODERS = ("liteframe", "teacher")
"""What can be exported, besides a student's folder."""
TOLERANCE = 1e-4
"""Largest difference between onnxruntime and torch, as a share of torch's largest value. Both compute in float32 but
add in another order, which over 24 layers leaves 1e-6 to 1e-5; a wrong operator or a wrong position leaves far more."""

_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_CELLS = ((1, 2, 2), (3, 2, 3), (2, 5, 1))
"""Sizes at which the file is checked besides the native one: (groups, rows, columns), in cells of the output."""
_REPEATS = 5


def export_onnx(
    name: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    encoder: str | None = None,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> dict[str, Any]:
    """Write ``encoder.onnx`` and ``encoder.json`` (what goes in and comes out) to `out`: checked, or not at all.

    Args:
        name: ``"mini"``, a folder or a hub id of a Video LLM, or the folder of a student.
        out: a new or empty folder.
        encoder: one of `ENCODERS` or a student's folder; None takes the student, where there is one, else the teacher.
        tolerance: see `TOLERANCE`.
        seed: of the random frames.

    Returns:
        ``out``, ``model``, ``encoder``, ``file``, ``bytes``, ``input`` and ``output`` (axes and sizes), ``checks`` (of
        each ``shape`` the ``max_difference`` and ``largest``, the greatest absolute value of torch's),
        ``max_difference`` (the largest of them), ``relative_difference`` (the largest share of ``largest``),
        ``tolerance``, ``torch_seconds`` and ``onnxruntime_seconds`` (medians at the native size, with as many threads),
        ``speed_ratio`` (the first by the second: above 1, onnxruntime is faster), ``machine``.

    Raises:
        CheckpointError: the model cannot be loaded, the graph is not the encoder, or the folder is not free.
        InputError: the extra ``onnx`` is not installed, or an encoder that cannot be exported.
    """
    check_installed()
    built, pixels = _load(str(name), encoder)
    with filling(out) as work:
        file = work / MODEL_FILE
        _write(built, pixels, file)
        settings = _settings(built, pixels)
        report = _compare(built, pixels, file, seed)
        if not report["relative_difference"] <= tolerance:
            raise CheckpointError(
                out,
                f"is not written: onnxruntime differs from torch by {report['relative_difference']:.1e} of the largest "
                f"feature, and at most {tolerance:.1e} is allowed; another version of onnxruntime or torch may help",
            )
        result = {"model": str(name), "encoder": built.name, "bytes": file.stat().st_size, **settings, **report}
        result["tolerance"] = tolerance
        (work / SETTINGS_FILE).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return {"out": str(out), "file": str(Path(out) / MODEL_FILE), **result, "machine": machine_facts()}


def check_installed() -> None:
    """Raise InputError where the extra is not installed."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(f"export --to onnx needs {', '.join(missing)}: pip install 'liteframe-video[onnx]'")


def _load(name: str, encoder: str | None) -> tuple[VideoEncoder, PixelConfig]:
    """Step 1: the encoder, and the frames that it expects (of a student alone: its size, and the usual colours)."""
    folder = find_checkpoint(name)
    if _is_student(folder):
        if encoder is not None:
            raise InputError(f"{name} is a student itself; leave --encoder out")
        student = load_student(folder)
        if student.allow_remainder:
            raise InputError(f"{name}: a student with allow_remainder, whose frames leave a rest, cannot be exported")
        height, width = student.config.image_size
        return student.float(), PixelConfig(height=height, width=width)
    if encoder is None:
        encoder = "liteframe" if (folder / STUDENT_FOLDER).is_dir() else "teacher"
    if encoder not in ENCODERS and not _is_student(Path(encoder).expanduser()):
        raise InputError(f"encoder '{encoder}' cannot be exported; use {', '.join(ENCODERS)} or a student's folder")
    values, _ = read_checkpoint_config(name, folder)
    if values["model_type"] != "internvl":
        raise InputError(
            f"{name}: export --to onnx knows InternVL checkpoints only, and this is '{values['model_type']}'"
        )
    tower = load_vision_tower(name, device="cpu", dtype="float32")
    source = EncoderSource(
        vision_tower=tower.tower,
        feature_layer=tower.feature_layer,
        select_strategy=tower.select_strategy,
        folder=folder,
        shuffle_factor=round(1 / values.get("downsample_ratio", 0.5)),
    )
    return build_encoder(encoder, source), tower.pixels


def _is_student(folder: Path) -> bool:
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("model_type") == LiteFrameConfig.model_type


def _with_convolutions(student: LiteFrameEncoder) -> LiteFrameEncoder:
    """The same student, its depth-wise convolutions computed by the library."""
    fields = {**student.config.to_dict(), "depthwise": "convolution"}
    same = LiteFrameEncoder(LiteFrameConfig.from_dict(fields))
    same.load_state_dict(student.state_dict())
    return same.eval()


class _Features(nn.Module):
    """An encoder as a function of tensors alone."""

    def __init__(self, encoder: VideoEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Float[Tensor, "g f 3 H W"]) -> Float[Tensor, "g t h w d"]:
        return self.encoder(pixels).features


def _cell(encoder: VideoEncoder, pixels: PixelConfig) -> int:
    """Pixels along a side of one cell of the output: the patch, times the strides."""
    return pixels.height // encoder.grid(pixels.height, pixels.width)[1]


def _write(encoder: VideoEncoder, pixels: PixelConfig, file: Path) -> None:
    """Step 2."""
    cell = _cell(encoder, pixels)
    groups, rows, columns = (torch.export.Dim(axis) for axis in ("groups", "rows", "columns"))
    # Three sizes that are told apart, and none of which is the native one.
    example = torch.zeros(2, encoder.group_size, 3, 3 * cell, 4 * cell)
    if isinstance(encoder, LiteFrameEncoder):
        encoder = _with_convolutions(encoder)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            _Features(encoder).eval(),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["pixels"],
            output_names=["features"],
            dynamic_shapes=({0: groups, 3: cell * rows, 4: cell * columns},),
        )
        assert program is not None
        program.save(str(file))


def _settings(encoder: VideoEncoder, pixels: PixelConfig) -> dict[str, Any]:
    """What a program that has only the file must know."""
    cell = _cell(encoder, pixels)
    return {
        "input": {
            "name": "pixels",
            "dtype": "float32",
            "axes": ["groups", "frames", "channels (R, G, B)", "height", "width"],
            "shape": [None, encoder.group_size, 3, f"multiple of {cell}", f"multiple of {cell}"],
            "native_height": pixels.height,
            "native_width": pixels.width,
            # Of values in [0, 1]: (value - mean) / std.
            "mean": list(pixels.mean),
            "std": list(pixels.std),
        },
        "output": {
            "name": "features",
            "dtype": "float32",
            "axes": ["groups", "time", "rows", "columns", "features"],
            "shape": [None, encoder.grid(pixels.height, pixels.width)[0], None, None, encoder.feature_dim],
        },
    }


def _compare(encoder: VideoEncoder, pixels: PixelConfig, file: Path, seed: int) -> dict[str, Any]:
    """Step 3: differences at several sizes, seconds at the native one."""
    session = _session(file)
    random = torch.Generator().manual_seed(seed)
    cell = _cell(encoder, pixels)
    native = torch.randn(2, encoder.group_size, 3, pixels.height, pixels.width, generator=random)
    others = [
        torch.randn(groups, encoder.group_size, 3, rows * cell, columns * cell, generator=random)
        for groups, rows, columns in _CELLS
    ]
    checks: list[dict[str, Any]] = []
    with torch.inference_mode():
        for frames in (native, *others):
            expected = encoder(frames).features
            found = _run(session, frames, file)
            if found.shape != expected.shape:
                raise CheckpointError(file.parent, f"the graph gives {tuple(found.shape)}, not {tuple(expected.shape)}")
            difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
            checks.append({"shape": list(frames.shape), "max_difference": difference, "largest": largest})
        seconds = _medians([lambda: encoder(native), lambda: session.run(None, {"pixels": native.numpy()})])
    return {
        "checks": checks,
        "max_difference": max(check["max_difference"] for check in checks),
        # Written so that a difference that is not a number is the greatest of all, and passes no tolerance.
        "relative_difference": max(_share(check["max_difference"], check["largest"]) for check in checks),
        "torch_seconds": seconds[0],
        "onnxruntime_seconds": seconds[1],
        "speed_ratio": seconds[0] / seconds[1],
    }


def _run(session: Any, frames: Float[Tensor, "g f 3 H W"], file: Path) -> Tensor:
    """The graph's features; a graph that is not open for this size is not what was asked for."""
    try:
        return torch.from_numpy(session.run(None, {"pixels": frames.numpy()})[0])
    except Exception as error:  # onnxruntime's errors are of no common kind
        raise CheckpointError(
            file.parent, f"the graph does not take frames of {tuple(frames.shape)} ({first_line(error)})"
        ) from None


def _share(difference: float, largest: float) -> float:
    share = difference / largest if largest > 0 else difference
    return float("inf") if math.isnan(share) else share


def _medians(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Median seconds of each, taken in turns behind one call to warm up, so that a busy moment meets them all."""
    taken: list[list[float]] = [[] for _ in calls]
    for repeat in range(_REPEATS + 1):
        for call, seconds in zip(calls, taken, strict=True):
            start = time.perf_counter()
            call()
            if repeat:
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in taken]


def _session(file: Path) -> Any:
    """The file in onnxruntime, on the CPU, with as many threads as torch has."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors are of no common kind
        raise CheckpointError(file.parent, f"onnxruntime cannot read the graph ({first_line(error)})") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of torchvision, which is not needed, and of torch's own future: nothing for its user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
