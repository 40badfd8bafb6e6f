"""What every baseline keeps of the encoder interface, and the whole line from a file to an answer."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from liteframe import cli
from liteframe.baselines import BASELINES, build_method
from liteframe.encoders import EncoderSource
from liteframe.errors import ConfigError, InputError
from liteframe.pipeline import VideoLLM
from tiny_internvl import make_config, make_model

REDUCED = [name for name in BASELINES if name != "fastv"]  # fastv hands all tokens on; see test_fastv.py


@pytest.fixture(scope="module")
def source() -> EncoderSource:
    """112 x 112 frames: 16 tokens of four patches each."""
    return EncoderSource(make_model(make_config(image_size=(112, 112))).model.vision_tower)


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.randn(6, 3, 112, 112, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", REDUCED)
@pytest.mark.parametrize("tokens", [None, 1, 3])
def test_the_budget_is_kept(name, tokens, source, frames):
    encoder = build_method(name if tokens is None else f"{name}:tokens={tokens}", source)
    encoded = encoder.encode(frames)
    groups = -(-6 // encoder.group_size)
    kept = (tokens or 1) * encoder.group_size
    assert encoder.grid(112, 112) == (kept, 2, 2)
    assert encoded.features.shape == (groups, kept, 2, 2, 32)
    assert encoded.num_frames == 6
    assert not encoder.training
    assert encoded.features.isfinite().all()


@pytest.mark.parametrize("name", REDUCED)
def test_batches_do_not_change_the_tokens(name, source, frames):
    # 1e-5: matrix products of other batch sizes may add in another order; features are of order 1 in float32.
    encoder = build_method(f"{name}:tokens=3", source)
    at_once = encoder.encode(frames, batch_frames=100).features
    torch.testing.assert_close(encoder.encode(frames, batch_frames=1).features, at_once, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["random", "visionzip", "tome"])
@pytest.mark.parametrize(("height", "width"), [(112, 112), (56, 140)])
def test_keeping_all_is_the_teacher(name, height, width, source):
    """All tokens, in order: the teacher's squares of four patches, row by row."""
    rows, columns = height // 28, width // 28
    pixels = torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(4))
    setting = ":contextual=0" if name == "visionzip" else ""
    kept = build_method(f"{name}:tokens={rows * columns}{setting}", source).encode(pixels).features
    teacher = build_method("teacher", source).encode(pixels).features[:, 0]
    squares = [teacher[:, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2] for r in range(rows) for c in range(columns)]
    torch.testing.assert_close(kept, torch.stack(squares, dim=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["fastvid", "holitom"])
def test_a_short_window_is_filled_with_its_last_frame(name, source, frames):
    encoder = build_method(f"{name}:tokens=2", source)
    filled = encoder.encode(torch.cat([frames, frames[-1:], frames[-1:]])).features
    torch.testing.assert_close(encoder.encode(frames).features, filled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", REDUCED)
def test_the_towers_precision_is_kept(name, frames):
    tower = make_model(make_config(image_size=(112, 112))).model.vision_tower.bfloat16()
    features = build_method(f"{name}:tokens=2", EncoderSource(tower)).encode(frames.bfloat16()).features
    assert features.dtype == torch.bfloat16
    assert features.isfinite().all()


@pytest.mark.parametrize("name", REDUCED)
def test_settings_tell_stored_tokens_apart(name, source):
    default, other = build_method(name, source), build_method(f"{name}:tokens=2", source)
    assert json.dumps(default.settings()) != json.dumps(other.settings())
    assert default.settings()["teacher"]["name"] == "teacher"


def test_what_cannot_be_is_one_line(source, frames):
    with pytest.raises(InputError, match=r"visionzip:tokens=17: cannot keep 17 tokens of a frame that has 16"):
        build_method("visionzip:tokens=17", source).encode(frames)
    with pytest.raises(InputError, match="a window of 8 frames can keep 16 tokens, as many as one frame has, not 24"):
        build_method("fastvid:frames=8:tokens=3", source).encode(frames)
    with pytest.raises(InputError, match="takes its features before any attention; use random"):
        build_method("tome", EncoderSource(source.vision_tower, feature_layer=0)).encode(frames)
    with pytest.raises(InputError, match="multiples of 28"):
        build_method("random", source).encode(torch.zeros(1, 3, 42, 56))
    with pytest.raises(InputError, match="write settings as NAME:key=value"):
        build_method("random:4", source)
    with pytest.raises(ConfigError, match="encoder 'random:width=3': unknown key 'width'; known keys: tokens, seed"):
        build_method("random:width=3", source)
    with pytest.raises(ConfigError, match="key 'tokens'"):
        build_method("random:tokens=0", source)
    with pytest.raises(InputError, match=r"liteframe, random, .*or the folder of a student"):
        build_method("fast", source)


@pytest.mark.parametrize("name", BASELINES)
def test_the_miniature_answers(name, clip, mini):
    """Six frames of 16 tokens each, one of sixteen kept."""
    model = VideoLLM.from_pretrained(mini, encoder=name, device="cpu")
    answer = model.ask(clip, "How many digits were shown?", num_frames=6, max_new_tokens=8)
    assert answer.num_visual_tokens == -(-6 // model.encoder.group_size) * model.encoder.group_size
    assert answer.encoder == name
    assert answer.text


def test_ask_takes_a_budget(clip, mini, capsys, monkeypatch):
    words = ["ask", str(clip), "What was shown?", "--model", mini, "--encoder", "visionzip:tokens=4", "--frames", "5"]
    monkeypatch.setattr(sys, "argv", ["liteframe", *words, "--json"])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    assert not exited.value.code
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (answer["num_visual_tokens"], answer["encoder"]) == (20, "visionzip:tokens=4")


def test_the_registry_imports_nothing_heavy():
    code = "import sys, liteframe.baselines; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
