from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from liteframe.video.transform import normalize, resize


def _pictures(kind: str, t: int, h: int, w: int) -> np.ndarray:
    if kind == "random":
        return np.random.default_rng(0).integers(0, 256, (t, h, w, 3), np.uint8)
    y, x = np.mgrid[0:h, 0:w]
    waves = [127 + 127 * np.sin((x * (i + 1) + y * 2) / 17 + channel) for i in range(t) for channel in range(3)]
    return np.stack(waves).reshape(t, 3, h, w).transpose(0, 2, 3, 1).astype(np.uint8)


@pytest.mark.parametrize("kind", ["random", "smooth"])
@pytest.mark.parametrize(("h", "w", "size"), [(90, 160, (56, 56)), (47, 63, (112, 84)), (100, 40, (30, 77))])
def test_resize_is_pillows_within_one_grey_level(kind, h, w, size):
    frames = _pictures(kind, 3, h, w)
    ours = resize(frames, size)
    assert ours.shape == (3, 3, *size)
    assert ours.is_contiguous()
    for frame, result in zip(frames, ours, strict=True):
        picture, bicubic = Image.fromarray(frame), Image.Resampling.BICUBIC
        # Pillow 13 takes the height first for some upright formats; two calls fix the order.
        by_width = picture.resize((size[1], h), bicubic).resize(size[::-1], bicubic)
        pillow = np.asarray(picture.resize(size[::-1], bicubic) if w > h or kind == "smooth" else by_width).astype(int)
        # Both round fixed-point weights, in another order: the last bit may differ.
        assert np.abs(pillow - result.permute(1, 2, 0).numpy()).max() <= 1


def test_resize_takes_tensors_many_frames_and_the_same_size():
    frames = _pictures("random", 40, 12, 16)
    assert torch.equal(resize(torch.from_numpy(frames), (8, 8)), resize(frames, (8, 8)))
    assert torch.equal(resize(frames, (12, 16)), torch.from_numpy(frames).permute(0, 3, 1, 2))
    assert resize(frames[:0], (8, 8)).shape == (0, 3, 8, 8)


def test_normalize_is_the_textbook_formula():
    pixels = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = (pixels.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    # float32 keeps 24 bits of values up to 2.7.
    assert (normalize(pixels, mean, std) - expected).abs().max() < 2e-6
    assert normalize(pixels, mean, std, torch.bfloat16).dtype == torch.bfloat16
