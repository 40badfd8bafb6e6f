"""Linear layers by oneDNN: the same numbers, gradients included, and never those of weights that have changed."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from liteframe import packed
from liteframe.packed import PackedLinear, linear, pack, unpack

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this torch has no oneDNN",
)


@pytest.fixture(autouse=True)
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever processor the tests run on."""
    monkeypatch.setattr(packed, "is_faster", lambda: True)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that were multiplied by oneDNN."""
    made: list[tuple[int, ...]] = []
    multiply = packed._multiply

    def noted(hidden: torch.Tensor, *rest: torch.Tensor | None) -> torch.Tensor:
        made.append(tuple(hidden.shape))
        return multiply(hidden, *rest)

    monkeypatch.setattr(packed, "_multiply", noted)
    return made


def exact(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """In float64, by a sum over products."""
    product = (hidden.double()[..., None, :] * weight.double().flatten(1)).sum(-1)
    return product if bias is None else product + bias.double()


@pytest.mark.parametrize("shape", [(7, 40), (2, 5, 40), (3, 1, 2, 40)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_values_are_those_of_the_sum(calls: list, shape: tuple[int, ...], has_bias: bool) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(shape), torch.randn(48, 40)
    bias = torch.randn(48) if has_bias else None
    result = linear(hidden, weight, bias)
    assert calls and result.shape == (*shape[:-1], 48)
    torch.testing.assert_close(result.double(), exact(hidden, weight, bias), rtol=1e-5, atol=1e-5)


def test_views_and_kernels_are_taken_as_they_lie(calls: list) -> None:
    torch.manual_seed(0)
    hidden, kernel = torch.randn(48, 6, 9).permute(2, 1, 0)[:, ::2], torch.randn(64, 3, 4, 4)
    result = linear(hidden, kernel)
    assert calls
    torch.testing.assert_close(result.double(), exact(hidden, kernel, None), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("learns", [("hidden", "weight", "bias"), ("weight",), ("hidden",), ("bias",)])
def test_gradients_are_those_of_float64(calls: list, learns: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    values = {"hidden": torch.randn(3, 10, 40), "weight": torch.randn(48, 40), "bias": torch.randn(48)}
    ours = {name: value.clone().requires_grad_(name in learns) for name, value in values.items()}
    theirs = {name: value.double().requires_grad_(name in learns) for name, value in values.items()}
    linear(**ours).sin().sum().backward()
    exact(**theirs).sin().sum().backward()
    assert calls
    for name in values:
        if name in learns:
            torch.testing.assert_close(ours[name].grad.double(), theirs[name].grad, rtol=1e-4, atol=1e-4)
        else:
            assert ours[name].grad is None


@pytest.mark.parametrize("learns", [True, False])
def test_a_weight_that_changed_is_packed_anew(learns: bool) -> None:
    torch.manual_seed(0)
    layer = pack(nn.Sequential(nn.Linear(40, 48)))[0].requires_grad_(learns)
    hidden = torch.randn(5, 40, requires_grad=True)
    for _ in range(3):
        result = layer(hidden)
        torch.testing.assert_close(result.double(), exact(hidden, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)
        (grad,) = torch.autograd.grad(result.sum(), hidden)
        torch.testing.assert_close(grad, layer.weight.sum(0).expand(5, 40), rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            layer.weight.mul_(-2).add_(0.5)
    layer.weight = nn.Parameter(torch.randn(48, 40))
    torch.testing.assert_close(layer(hidden).double(), exact(hidden, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)


def test_a_product_is_packed_once_and_forgotten_with_its_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make = packed._pack
    monkeypatch.setattr(packed, "_pack", lambda matrix: made.append(matrix.shape) or make(matrix))
    layer = pack(nn.Sequential(nn.Linear(40, 48)))[0]
    before = len(packed._packed)
    with torch.inference_mode():
        for _ in range(3):
            layer(torch.randn(6, 40))
    assert made == [(48, 40)] and len(packed._packed) == before + 1
    del layer
    assert len(packed._packed) == before


def test_all_else_is_left_to_torch(calls: list) -> None:
    layer = pack(nn.Sequential(nn.Linear(40, 48)))[0]
    narrow = pack(nn.Sequential(nn.Linear(40, 8)))[0]
    rows = torch.randn(6, 40)
    layer(rows[:3])
    narrow(rows)
    copy.deepcopy(layer).to(torch.bfloat16)(rows.bfloat16())
    copy.deepcopy(layer).double()(rows.double())
    with torch.autocast("cpu", torch.bfloat16):
        layer(rows)
    with torch.device("meta"):
        copy.deepcopy(layer).to("meta")(torch.randn(6, 40))
    torch.export.export(layer, (rows,))
    torch.jit.trace(layer, rows, check_trace=False)
    assert not calls
    layer(rows)
    assert calls == [(6, 40)]


def test_packing_and_unpacking_a_model_changes_its_layers_only() -> None:
    class Own(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) + 1

    model = nn.Sequential(nn.Linear(40, 48), Own(48, 40), nn.ModuleDict({"a": nn.Linear(40, 40)}))
    names = list(model.state_dict())
    assert pack(model) is model
    assert [type(layer) for layer in (model[0], model[1], model[2]["a"])] == [PackedLinear, Own, PackedLinear]
    assert list(model.state_dict()) == names
    model[0](torch.randn(5, 40))
    model[0].weight.data.fill_(2.0)  # torch does not tell of it
    unpack(model)
    assert [type(layer) for layer in (model[0], model[1], model[2]["a"])] == [nn.Linear, Own, nn.Linear]
    hidden = torch.randn(5, 40)
    pack(model)
    torch.testing.assert_close(model[0](hidden), F.linear(hidden, torch.full((48, 40), 2.0), model[0].bias))


def test_a_with_statement_puts_back_what_it_packed() -> None:
    fresh, before = nn.Sequential(nn.Linear(40, 48)), pack(nn.Sequential(nn.Linear(40, 48)))
    with pytest.raises(KeyError), packed.packed(fresh), packed.packed(before):
        assert type(fresh[0]) is type(before[0]) is PackedLinear
        raise KeyError
    assert type(fresh[0]) is nn.Linear and type(before[0]) is PackedLinear


def test_a_model_that_needs_too_much_memory_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    layer, size = nn.Sequential(nn.Linear(40, 48, bias=False)), 40 * 48 * 4
    for free, kind in ((4 * size - 1, nn.Linear), (4 * size, PackedLinear)):
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: type("Memory", (), {"available": free}))
        pack(layer)
        assert type(layer[0]) is kind


def test_flops_are_counted() -> None:
    layer = pack(nn.Sequential(nn.Linear(40, 48)))
    with FlopCounterMode(display=False) as counter:
        layer(torch.randn(2, 5, 40, requires_grad=True)).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 10 * 40 * 48


@pytest.mark.parametrize(
    ("vendor", "capability", "expected"),
    [("AuthenticAMD", "AVX512", True), ("GenuineIntel", "AVX512", False), ("AuthenticAMD", "AVX2", False)],
)
def test_where_it_is_used(monkeypatch: pytest.MonkeyPatch, vendor: str, capability: str, expected: bool) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(packed, "_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.delenv("LITEFRAME_LINEAR", raising=False)
    decide = packed.is_faster.__wrapped__
    assert decide() is expected
    for wish, answer in (("torch", False), ("onednn", True)):
        monkeypatch.setenv("LITEFRAME_LINEAR", wish)
        assert decide() is answer
