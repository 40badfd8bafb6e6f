"""Encoders at another precision or compiled: what is computed, how far it is off, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from liteframe.baselines import build_method
from liteframe.encoders import EncoderSource, build_encoder
from liteframe.encoders import precision as module
from liteframe.encoders.interface import PixelConfig, VideoEncoder, group_frames
from liteframe.encoders.precision import (
    PRECISIONS,
    FixedShapes,
    compiled,
    explained_variance,
    faster,
    fastest_precision,
    with_precision,
)
from liteframe.errors import InputError
from tiny_internvl import make_config, make_model
from tiny_student import make_student

METHODS = ("teacher", "pooled", "liteframe")
PIXELS = PixelConfig(height=56, width=56)


def make(method: str) -> VideoEncoder:
    if method == "liteframe":
        return make_student(cls_token=True)
    return build_encoder(method, EncoderSource(make_model(make_config()).model.vision_tower))


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("precision", "explained"), [("bf16", 0.999), ("int8", 0.98)])
def test_features_are_nearly_those_of_float32(method, precision, explained, pixels):
    encoder = make(method)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    exact = encoder.encode(pixels).features
    other = with_precision(encoder, precision)
    found = other.encode(pixels).features
    assert found.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
    assert explained < explained_variance(found, exact) < 1
    assert not other.training
    # What it was made from is as it was.
    assert torch.equal(encoder.encode(pixels).features, exact)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_its_own_precision_costs_no_copy():
    encoder = make("liteframe")
    assert with_precision(encoder, "fp32") is encoder
    assert faster(encoder, PIXELS) is encoder
    assert {tensor.dtype for tensor in with_precision(encoder, "bf16").parameters()} == {torch.bfloat16}


def test_int8_layers_multiply_integers():
    """The head once more in plain arithmetic: weights of 8 bits by row, inputs of 7 bits by tensor, both rounded."""
    encoder = make("liteframe")
    inputs = torch.randn(5, encoder.head.in_features, generator=torch.Generator().manual_seed(3))
    weight, bias = encoder.head.weight.detach(), encoder.head.bias.detach()
    row = weight.abs().amax(1, keepdim=True) / 127.5
    low, high = inputs.min().clamp(max=0), inputs.max().clamp(min=0)
    step = (high - low) / 127
    zero = (-low / step).round()
    integers = ((inputs / step).round() + zero).clamp(0, 127) - zero
    expected = integers @ (weight / row).round().clamp(-128, 127).T * step * row.T + bias
    with torch.inference_mode():
        found = with_precision(encoder, "int8").head(inputs)
        exact = encoder.head(inputs)
    # What is left is a value here and there that lies between two integers, and is rounded to the other one.
    assert (found - expected).abs().mean() < 0.1 * (found - exact).abs().mean()
    assert (found - exact).abs().max() > 1e-3


def test_all_linear_layers_are_int8():
    other = with_precision(make("liteframe"), "int8")
    kinds = {name: type(layer) for name, layer in other.named_modules() if name.rpartition(".")[2] in ("qkv", "head")}
    assert kinds and not any(issubclass(kind, nn.Linear) for kind in kinds.values())
    assert not any(type(layer) is nn.Linear for layer in other.modules())


def test_an_int8_encoder_says_what_it_is_and_what_it_was_made_from():
    encoder = make("liteframe")
    other = with_precision(encoder, "int8")
    assert {**encoder.settings(), "precision": "int8"} == other.settings() != encoder.settings()
    assert other.weights().keys() == encoder.state_dict().keys()
    assert all(tensor is other.exact[0].state_dict()[name] or torch.equal(tensor, encoder.state_dict()[name])
               for name, tensor in other.weights().items())  # fmt: skip


def test_explained_variance_is_one_minus_the_share_of_the_error():
    exact = torch.tensor([[0.0, 10.0], [2.0, 14.0]])
    # Distances from the means (1, 12): 1 + 4 + 1 + 4 = 10; errors: 0.5 ** 2 + 1 = 1.25.
    assert explained_variance(exact + torch.tensor([[0.5, 0.0], [0.0, 1.0]]), exact) == pytest.approx(1 - 0.125)
    assert explained_variance(exact.mean(0).expand(2, 2), exact) == 0
    assert explained_variance(exact, exact) == 1


@pytest.mark.parametrize(("share", "chosen"), [(0.5, "bf16"), (0.94, "bf16"), (0.96, "fp32"), (3.0, "fp32")])
def test_bf16_is_chosen_where_it_measures_faster(monkeypatch, share, chosen):
    turns = {"fp32": iter([9.0, 4.0, 2.0, 3.0]), "bf16": iter([9.0, 4.0 * share, 2.0 * share, 5.0])}
    monkeypatch.setattr(
        module, "_seconds", lambda encoder, groups: next(turns["bf16" if groups.dtype == torch.bfloat16 else "fp32"])
    )
    encoder = make("liteframe")
    assert fastest_precision(encoder, PIXELS) == chosen
    monkeypatch.setattr(module, "fastest_precision", lambda *_: chosen)
    assert faster(encoder, PIXELS, "fastest").dtype == {"bf16": torch.bfloat16, "fp32": torch.float32}[chosen]


def test_the_measurement_is_of_the_encoder_itself():
    assert fastest_precision(make("pooled"), PIXELS) in ("fp32", "bf16")


def test_unknown_precisions_and_devices_are_refused():
    with pytest.raises(InputError, match=f"--precision fp4: unknown; use {', '.join(PRECISIONS)} or fastest"):
        with_precision(make("liteframe"), "fp4")
    with torch.device("meta"):
        encoder = make_student()
    with pytest.raises(InputError, match="--device cpu"):
        with_precision(encoder, "int8")


# --- compiled ---------------------------------------------------------------------------------------------------------


def test_fixed_shapes_are_filled_up_and_cut():
    sizes = []

    def run(batch):
        sizes.append(len(batch))
        return 2 * batch

    shapes = FixedShapes(run, 6)
    for count in (1, 2, 3, 5, 6, 13):
        batch = torch.randn(count, 4)
        result = shapes(batch)
        assert torch.equal(result, 2 * batch)
        assert result.is_contiguous()
    assert sizes == [1, 2, 4, 6, 6, 6, 6, 1]


COMPILED = """
import functools, sys, torch
from test_precision import METHODS, PIXELS, make
from liteframe.encoders.precision import explained_variance, faster, with_precision
backend, precision = sys.argv[1:]
if backend != "inductor":
    torch.compile = functools.partial(torch.compile, backend=backend)
pixels = torch.randn(6, 3, 56, 56, generator=torch.Generator().manual_seed(1))
for method in METHODS:
    exact = with_precision(make(method), precision).encode(pixels).features
    found = faster(make(method), PIXELS, precision, compile_it=True).encode(pixels).features
    print(method, (found - exact).abs().max().item(), explained_variance(found, exact))
"""


def run_compiled(backend: str, precision: str) -> list[list[str]]:
    """In a process of its own: the checks of shapes that these tests run with cannot be traced."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    run = subprocess.run(
        [sys.executable, "-c", COMPILED, backend, precision],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return [line.split() for line in run.stdout.splitlines()]


def test_compiled_encoders_are_one_graph_and_give_the_same():
    """Traced as a whole, or it fails, and then run without a compiler."""
    rows = run_compiled("eager", "fp32")
    assert [method for method, *_ in rows] == list(METHODS)
    # 1e-5: groups that are filled up may be added up in another order.
    assert all(float(error) < 1e-5 for _, error, _ in rows)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_truly_compiled_encoders_give_the_same(precision):
    rows = run_compiled("inductor", precision)
    assert [method for method, *_ in rows] == list(METHODS)
    for _, error, explained in rows:
        # Fused operations round less often: in bf16 that is seen.
        assert float(error) < 1e-4 if precision == "fp32" else float(explained) > 0.999


def test_methods_that_choose_tokens_are_not_compiled():
    source = EncoderSource(make_model(make_config()).model.vision_tower)
    with pytest.raises(InputError, match="--compile: visionzip:tokens=2 cannot be compiled"):
        compiled(build_method("visionzip:tokens=2", source), 8)


def test_a_missing_compiler_is_told_in_one_line():
    import torch._inductor.config

    with (
        torch._inductor.config.patch({"cpp.cxx": ("/nowhere/c++",)}),
        pytest.raises(InputError, match=r"--compile: .*install a C\+\+ compiler") as raised,
    ):
        compiled(make("liteframe"), 8)
    assert "\n" not in str(raised.value)


def test_half_a_batch_of_a_compiled_pool_is_pooled_over_its_true_frames(pixels, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda run, **_: run)
    encoder = compiled(make("pooled"), 8)
    tokens = encoder(group_frames(pixels[:5], 4), num_frames=5)
    torch.testing.assert_close(tokens.features, make("pooled").encode(pixels[:5]).features, atol=1e-5, rtol=1e-5)
