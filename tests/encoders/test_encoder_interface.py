"""Grouping, batching, and the refusals that every encoder shares."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from liteframe.encoders import ENCODERS, EncoderSource, build_encoder
from liteframe.encoders.interface import frames_at_once, group_frames, patch_grid
from liteframe.errors import CheckpointError, InputError
from tiny_internvl import make_config, make_model
from tiny_student import make_student


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> EncoderSource:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_student().save_pretrained(folder / "liteframe")
    return EncoderSource(make_model(make_config()).model.vision_tower, folder=folder)


@pytest.mark.parametrize(("frames", "groups"), [(1, 1), (3, 1), (4, 1), (5, 2), (8, 2)])
def test_last_frame_fills_the_last_group(pixels, frames, groups):
    pixels = pixels.repeat(2, 1, 1, 1)[:frames]
    grouped = group_frames(pixels, 4)
    assert grouped.shape == (groups, 4, 3, 56, 56)
    flat = grouped.flatten(0, 1)
    assert torch.equal(flat[:frames], pixels)
    assert all(torch.equal(frame, pixels[-1]) for frame in flat[frames:])


def test_no_frames_are_refused(pixels, source):
    with pytest.raises(InputError, match="no frames"):
        group_frames(pixels[:0], 4)
    with pytest.raises(InputError, match="no frames"):
        build_encoder("teacher", source).encode(pixels[:0])


def test_patch_grid():
    assert patch_grid(448, 224, 14) == (32, 16)
    assert patch_grid(448, 224, 14, stride=2) == (16, 8)
    for height, width in ((450, 448), (448, 450), (0, 448)):
        with pytest.raises(InputError, match="multiples of 14"):
            patch_grid(height, width, 14)


@pytest.mark.parametrize(
    ("height", "width", "group_size", "frames"),
    [
        (448, 448, 4, 16),  # the size that the number of pixels is stated by
        (448, 224, 4, 32),
        (224, 224, 1, 64),
        (112, 112, 4, 128),
        (28, 28, 4, 128),  # no more, however small
        (112, 112, 3, 126),  # whole groups
        (1344, 1344, 4, 4),  # at least one
    ],
)
def test_small_frames_go_through_in_larger_batches(height, width, group_size, frames):
    assert frames_at_once(height, width, group_size) == frames


def test_a_student_takes_twice_as_many_small_frames(source):
    student = make_student()
    assert [student.frames_at_once(side, side) for side in (28, 112, 224, 448)] == [256, 256, 64, 16]
    assert build_encoder("pooled", source).frames_at_once(112, 112) == 128


def test_a_gpu_takes_larger_batches():
    assert frames_at_once(448, 448, 4, "cuda") == 64
    assert frames_at_once(112, 112, 3, "cuda") == 510


@pytest.mark.parametrize("name", list(ENCODERS))
def test_the_interface_is_kept(name, pixels, source):
    encoder = build_encoder(name, source)
    seconds = np.arange(6) / 2
    tokens = encoder.encode(pixels, seconds)
    assert encoder.name == name
    assert not encoder.training
    assert tokens.features.shape[1:] == (*encoder.grid(56, 56), encoder.feature_dim)
    assert tokens.num_frames == 6
    assert tokens.group_size == encoder.group_size
    assert tokens.seconds is seconds
    assert not tokens.features.requires_grad


@pytest.mark.parametrize("name", list(ENCODERS))
def test_batch_size_does_not_change_the_tokens(name, pixels, source):
    # 1e-5: matrix products of other batch sizes may add in another order; features are of order 1 in float32.
    encoder = build_encoder(name, source)
    done = []
    at_once = encoder.encode(pixels, batch_frames=100).features
    in_parts = encoder.encode(pixels, batch_frames=1, on_progress=lambda now, total: done.append((now, total))).features
    torch.testing.assert_close(in_parts, at_once, atol=1e-5, rtol=1e-5)
    assert done[-1] == (6, 6)
    assert len(done) == -(-6 // encoder.group_size)


@pytest.mark.parametrize("name", list(ENCODERS))
def test_sizes_that_do_not_divide_are_refused(name, source):
    encoder = build_encoder(name, source)
    with pytest.raises(InputError, match="multiples of"):
        encoder.encode(torch.zeros(4, 3, 50, 56))


def test_pooling_refuses_an_odd_grid(source):
    with pytest.raises(InputError, match="multiples of 28"):
        build_encoder("pooled", source).encode(torch.zeros(4, 3, 42, 56))


def test_unknown_encoder_lists_the_known(source):
    known = "teacher, pooled, average, liteframe, or the folder of a student"
    with pytest.raises(InputError, match=f"encoder 'fast': unknown; use one of {known}"):
        build_encoder("fast", source)


def test_a_student_is_taken_from_any_folder(source, pixels, tmp_path):
    make_student(seed=7).save_pretrained(tmp_path / "other")
    own = build_encoder("liteframe", source).encode(pixels).features
    other = build_encoder(str(tmp_path / "other"), source)
    assert other.name == "liteframe"
    assert not other.training
    assert torch.equal(other.encode(pixels).features, make_student(seed=7).encode(pixels).features)
    assert not torch.equal(other.encode(pixels).features, own)


def test_a_checkpoint_without_a_student_says_what_to_do(source, tmp_path):
    message = "has no LiteFrame student; train one with liteframe distill, or use --encoder teacher"
    for folder in (None, tmp_path):
        with pytest.raises(CheckpointError, match=message):
            build_encoder("liteframe", replace(source, folder=folder))
    with pytest.raises(CheckpointError, match="is no folder of a LiteFrame student"):
        build_encoder(f"{tmp_path}/missing", source)


def test_a_student_of_another_teacher_is_refused(source, tmp_path):
    make_student(feature_dim=64).save_pretrained(tmp_path / "wide")
    with pytest.raises(CheckpointError, match="teacher of width 64, and this model's is 32"):
        build_encoder(str(tmp_path / "wide"), source)


def test_a_student_takes_the_precision_of_the_checkpoint(source):
    tower = make_model(make_config()).model.vision_tower.bfloat16()
    assert build_encoder("liteframe", replace(source, vision_tower=tower)).dtype == torch.bfloat16


def test_the_registry_imports_nothing_heavy():
    code = "import sys, liteframe.encoders; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
