"""The loop on a linear regression: killed and resumed runs, bounded checkpoints, damaged files, the schedule."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import CONFIG, SAMPLES, SETTINGS, KilledError, Points, Regression, logged, state
from torch import Tensor, nn

from liteframe.errors import ConfigError
from liteframe.training import checkpoint, checkpoint_files
from liteframe.training.checkpoint import load_weights, newest_training_state
from liteframe.training.loop import LoopConfig, Task, TrainingError, train
from liteframe.training.optimizer import learning_rate_at, make_optimizer
from liteframe.training.record import curve
from liteframe.training.run_log import shown


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    task = Regression()
    train(task, CONFIG, tmp_path_factory.mktemp("unbroken"), "unbroken")
    return state(task)


def finish(output: Path, unbroken: dict[str, Tensor]) -> None:
    """Resume in `output` with a fresh process's objects; everything must be as in an unbroken run, bit for bit."""
    task = Regression()
    last = train(task, CONFIG, output, "resumed")
    ended = state(task)
    assert ended.keys() == unbroken.keys() and all(torch.equal(ended[name], unbroken[name]) for name in ended)
    assert last == output / "step-00000010" == newest_training_state(output)
    assert logged(output) == list(range(1, 11))
    names = {p.name for p in output.iterdir()} - {"events.jsonl"}  # which says that it was resumed, where it was
    assert names == {"log.jsonl", "step-00000009", "step-00000010"}
    read_back = Regression()
    load_weights(last, read_back.module)
    assert all(torch.equal(tensor, unbroken[name]) for name, tensor in read_back.module.state_dict().items())


@pytest.mark.parametrize("place", ["kill_batch", "kill_loss"])
@pytest.mark.parametrize("step", [0, 1, 2, 3, 4, 6, 8, 9])
def test_killed_run_ends_like_an_unbroken_one(
    tmp_path: Path, unbroken: dict[str, Tensor], place: str, step: int
) -> None:
    with pytest.raises(KilledError):
        train(Regression(**{place: step}), CONFIG, tmp_path, "killed")
    finish(tmp_path, unbroken)


@pytest.mark.parametrize("file", ["model.safetensors", "buffers.safetensors", "optimizer.safetensors", "state.json"])
def test_run_killed_while_it_saves_goes_on_from_the_checkpoint_before(
    tmp_path: Path, unbroken: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    save_file, replace = checkpoint_files.save_file, checkpoint.os.replace

    def killed_in_the_middle(tensors: dict[str, Tensor], path: Path, metadata: dict | None) -> None:
        if path.parent.name == ".step-00000006.part" and path.name == file:
            path.write_bytes(b"half a fi")
            raise KilledError
        save_file(tensors, path, metadata)

    def killed_before_the_rename(source: Path, target: Path) -> None:
        if target.name == "step-00000006":
            raise KilledError
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, "save_file", killed_in_the_middle)
        if file == "state.json":
            patch.setattr(checkpoint.os, "replace", killed_before_the_rename)
        with pytest.raises(KilledError):
            train(Regression(), CONFIG, tmp_path, "killed")
    assert (tmp_path / ".step-00000006.part").is_dir()
    assert newest_training_state(tmp_path) == tmp_path / "step-00000003"
    # One of a run that saved at other steps.
    (tmp_path / ".step-00000005.part").mkdir()
    finish(tmp_path, unbroken)


def test_half_a_line_in_the_log_is_dropped(tmp_path: Path, unbroken: dict[str, Tensor]) -> None:
    with pytest.raises(KilledError):
        train(Regression(kill_loss=5), CONFIG, tmp_path, "killed")
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "lo')
    finish(tmp_path, unbroken)


def test_two_checkpoints_are_kept_and_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"save_every": 1})
    train(Regression(), config, tmp_path, "run")
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000009", "step-00000010"]
    task = Regression(kill_batch=0)
    train(task, config, tmp_path, "again")
    assert logged(tmp_path) == list(range(1, 11))


def test_loss_that_is_no_number_stops_before_the_update(tmp_path: Path) -> None:
    short = CONFIG.model_copy(update={"save_every": 1})
    task = Regression(poison=4)
    with pytest.raises(TrainingError, match=r"step 5: loss nan.*nothing was updated"):
        train(task, short, tmp_path, "poisoned")
    saved = Regression()
    load_weights(tmp_path / "step-00000004", saved.module)
    for (name, one), (_, other) in zip(task.module.named_parameters(), saved.module.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert logged(tmp_path) == [1, 2, 3, 4]
    assert newest_training_state(tmp_path) == tmp_path / "step-00000004"


def test_rates_follow_the_formula() -> None:
    rates = [learning_rate_at(step, 100, 0.4, 0.1, 0.02) for step in range(100)]
    assert rates[0] == pytest.approx(0.04) and rates[4] == pytest.approx(0.2)
    assert rates[9] == rates[10] == max(rates) == 0.4  # the end of the warm-up and the cosine's top
    assert rates[55] == pytest.approx((0.4 + 0.008) / 2)  # half way down
    assert rates[99] == pytest.approx(0.008 + 0.392 * (1 + math.cos(math.pi * 89 / 90)) / 2)
    assert rates[99] == pytest.approx(0.008, abs=2e-4)
    assert all(before >= after for before, after in zip(rates[9:], rates[10:], strict=False))
    assert learning_rate_at(0, 1, 0.4, 0.0, 0.02) == 0.4


def test_rates_reach_the_optimizer(tmp_path: Path) -> None:
    train(Regression(), CONFIG, tmp_path, "run")
    rates = [json.loads(line)["rate"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([learning_rate_at(s, 10, 0.05, 0.2, 0.02) for s in range(10)], abs=1e-6)


def test_only_matrices_decay_and_frozen_parameters_stay() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.LayerNorm(4), nn.Linear(4, 4))
    module[2].bias.requires_grad_(False)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    optimizer = make_optimizer(module, 0.1, 0.5)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    # Without a gradient AdamW only decays: w (1 - rate * decay).
    share = {"0.weight": 0.95, "2.weight": 0.95}
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * share.get(name, 1.0), rtol=1e-6, atol=0)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == 5 and not any(p is module[2].bias for p in held)


def test_a_class_with_the_three_members_is_a_task() -> None:
    assert isinstance(Regression(), Task)


# --- parts, weights, averages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_weight", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2, 3, 10])
def test_accumulation_is_the_plain_mean_over_all_samples(tmp_path: Path, accumulate: int, by_weight: bool) -> None:
    """Against a loop written out with torch alone; 10 parts of 7 points leave some parts without any."""
    config = LoopConfig(**SETTINGS, accumulate=accumulate)
    task = OwnWeights() if by_weight else Points(skips=True)
    train(task, config, tmp_path, "run")

    plain = Points(skips=True)
    optimizer = make_optimizer(plain.module, config.learning_rate, config.weight_decay)
    for step in range(config.steps):
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = learning_rate_at(step, 12, 0.05, 0.05, 0.02)
        batch = plain.part(step, 0, 1)
        if batch is None:
            continue
        first, gelu, _, last, _ = plain.module
        error = (last(gelu(first(batch[2])))[:, 0] - batch[2].sin().sum(1)).square()
        weights = torch.tensor([1.0 + number if by_weight else 1.0 for number in batch[1]])
        optimizer.zero_grad()
        ((error * weights).sum() / weights.sum()).backward()
        torch.nn.utils.clip_grad_norm_(plain.module.parameters(), 0.5)
        optimizer.step()
    torch.testing.assert_close(task.module.state_dict(), plain.module.state_dict(), rtol=1e-5, atol=1e-6)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    if not by_weight:
        counts = [SAMPLES - sum(plain.is_bad(step, n) for n in range(SAMPLES)) for step in range(12)]
        assert [line.get("samples", 0) for line in lines] == counts
        points = plain.part(0, 0, 1)[2]
        assert lines[0]["largest"] == pytest.approx(float(points.abs().mean()), rel=1e-6)
    assert [line["loss"] is None for line in lines] == [step == 5 for step in range(12)]
    assert all("weight" not in line for line in lines)


class OwnWeights(Points):
    """Point n weighs n + 1, wherever it falls."""

    def __init__(self) -> None:
        super().__init__(skips=True)

    def loss(self, batch: tuple[int, list[int], Tensor]) -> tuple[Tensor, dict[str, int | float]]:
        _, mine, x = batch
        first, gelu, _, last, _ = self.module
        weights = torch.tensor([number + 1 for number in mine])
        error = (last(gelu(first(x)))[:, 0] - x.sin().sum(1)).square()
        return (error * weights).sum() / weights.sum(), {"weight": int(weights.sum()), "samples": len(mine)}


def test_average_follows_the_formula_and_is_what_the_module_ends_with(tmp_path: Path) -> None:
    class Watched(Regression):
        seen: list[Tensor] = []  # noqa: RUF012 (one test)

        def loss(self, batch: tuple[int, Tensor]) -> tuple[Tensor, dict[str, float]]:
            self.seen.append(self.module[1].weight.detach().clone())
            return super().loss(batch)

    task = Watched()
    last = train(task, CONFIG.model_copy(update={"ema_decay": 0.3}), tmp_path, "run")
    raw = load_file(last / "model.safetensors")["1.weight"]
    expected = Watched.seen[0]
    for step, weight in enumerate([*Watched.seen[1:], raw]):
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(task.module[1].weight.detach(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(raw, expected)
    for averaged, goal in ((None, task.module[1].weight), (True, task.module[1].weight), (False, raw)):
        other = Regression()
        load_weights(last, other.module, averaged)
        assert torch.equal(other.module[1].weight, goal)
    again = Regression()
    train(again, CONFIG.model_copy(update={"ema_decay": 0.3}), tmp_path, "again")  # is finished
    assert torch.equal(again.module[1].weight, task.module[1].weight)


def test_global_generator_is_seeded_a_step_and_left_as_it_was(tmp_path: Path) -> None:
    drawn: list[float] = []

    class Drawing(Regression):
        def loss(self, batch: tuple[int, Tensor]) -> tuple[Tensor, dict[str, float]]:
            drawn.append(float(torch.rand(())))
            return super().loss(batch)

    task = Drawing()
    torch.manual_seed(5)
    expected = float(torch.rand(()))
    torch.manual_seed(5)
    train(task, CONFIG.model_copy(update={"steps": 4}), tmp_path / "a", "a")
    assert float(torch.rand(())) == expected
    train(Drawing(), CONFIG.model_copy(update={"steps": 4}), tmp_path / "b", "b")
    train(Drawing(), CONFIG.model_copy(update={"steps": 4, "seed": 1}), tmp_path / "c", "c")
    assert drawn[:4] == drawn[4:8] and len(set(drawn)) == 8


@pytest.mark.parametrize(
    ("precision", "dtype"), [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_precision_is_of_the_arithmetic_not_of_the_weights(tmp_path: Path, precision: str, dtype: torch.dtype) -> None:
    seen: set[torch.dtype] = set()

    class Watched(Regression):
        def loss(self, batch: tuple[int, Tensor]) -> tuple[Tensor, dict[str, float]]:
            seen.add(self.module(batch[1]).dtype)
            return super().loss(batch)

    last = train(Watched(), CONFIG.model_copy(update={"precision": precision}), tmp_path, "run")
    assert seen == {dtype}
    assert {t.dtype for t in load_file(last / "model.safetensors").values()} == {torch.float32}


# --- what is told ----------------------------------------------------------------------------------------------------


def test_samples_of_a_bad_step_are_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step 3: loss nan.*\(in it: point 0, .*, point 6\)$"):
        train(Points(poison=2), LoopConfig(**SETTINGS), tmp_path / "whole", "run")
    with pytest.raises(TrainingError, match=r"\(in it: point 4, point 5, point 6\)$"):
        train(Points(poison=2), LoopConfig(**SETTINGS, accumulate=3), tmp_path / "parts", "run")


def test_infinite_gradient_of_a_finite_loss_stops_too(tmp_path: Path) -> None:
    class Steep(Regression):
        def loss(self, batch: tuple[int, Tensor]) -> tuple[Tensor, dict[str, float]]:
            # sqrt(0) is 0, its slope is not a number.
            return (self.module[1].weight * 0).sum().sqrt() * (batch[0] == 2) + super().loss(batch)[0], {}

    task = Steep()
    # 0 * inf: not finite from the first step, although every loss is.
    with pytest.raises(TrainingError, match=r"step 1: loss \d.*gradient norm nan; nothing was updated"):
        train(task, CONFIG, tmp_path, "run")
    assert torch.equal(task.module[1].weight, Steep().module[1].weight)


def test_log_has_null_for_what_is_no_number_and_seven_digits(tmp_path: Path) -> None:
    class Odd(Regression):
        def loss(self, batch: tuple[int, Tensor]) -> tuple[Tensor, dict[str, float]]:
            return super().loss(batch)[0], {"none": math.nan, "small": 1.23456789e-8}

    train(Odd(), CONFIG.model_copy(update={"steps": 1}), tmp_path, "run")
    line = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=pytest.fail)
    assert line["none"] is None and line["small"] == 1.234568e-8


def test_tensorboard_has_the_same_figures(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = CONFIG.model_copy(update={"tensorboard": True})
    with pytest.raises(KilledError):
        train(Regression(kill_loss=5), config, tmp_path, "killed")
    train(Regression(), config, tmp_path, "resumed")
    told = events.EventAccumulator(str(tmp_path / "tensorboard"))
    told.Reload()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(event.step, event.value) for event in told.Scalars("loss")] == [
        (line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in lines
    ]


def test_tensorboard_that_is_not_there_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("liteframe.training.trackers.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'liteframe-video\[train\]'"):
        train(Regression(), CONFIG.model_copy(update={"tensorboard": True}), tmp_path / "run", "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("data_seconds", "loss_seconds", "share"), [(0.3, 0.0, 1.0), (0.0, 0.3, 0.0)])
def test_log_tells_clips_a_second_and_the_share_of_the_step_that_waited_for_data(
    tmp_path: Path, data_seconds: float, loss_seconds: float, share: float
) -> None:
    class Slow(Points):
        def part(self, step: int, part: int, parts: int) -> tuple | None:
            time.sleep(data_seconds)
            return super().part(step, part, parts)

        def loss(self, batch: tuple) -> tuple[Tensor, dict]:
            time.sleep(loss_seconds)
            return super().loss(batch)

    train(Slow(), LoopConfig(**{**SETTINGS, "steps": 3}), tmp_path, "run")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all(line["samples"] / line["seconds"] == pytest.approx(line["clips_per_second"], rel=1e-3) for line in lines)
    # The machine may be busy; but it sleeps for most of the step.
    assert all(abs(line["data_wait"] - share) < 0.4 for line in lines[1:])
    assert all(line["data_wait"] * line["seconds"] < line["seconds"] for line in lines)


def test_a_figure_with_a_weight_of_its_own_is_averaged_by_it(tmp_path: Path) -> None:
    """The loss of points with a positive first coordinate, in parts that have some, one or none of them."""

    class Sided(Points):
        def loss(self, batch: tuple) -> tuple[Tensor, dict]:
            loss, figures = super().loss(batch)
            right = batch[2][batch[2][:, 0] > 0]
            return loss, {**figures, **({"right/x": (float(right[:, 0].mean()), len(right))} if len(right) else {})}

    train(Sided(), LoopConfig(**SETTINGS, accumulate=3), tmp_path, "run")
    for line in map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines()):
        points = Points().part(line["step"] - 1, 0, 1)[2][:, 0]
        assert line["right/x"] == pytest.approx(float(points[points > 0].mean()), rel=1e-5)


def test_curve_has_figures_that_some_steps_lack(tmp_path: Path) -> None:
    lines = [{"step": 1, "loss": 2.0, "seconds": 30.0}, {"step": 2, "loss": None, "loss/x": 3.0, "seconds": 30.0}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert curve(tmp_path / "log.jsonl") == {
        "minutes": 1.0,
        "curve": [{"step": 1, "loss": 2.0}, {"step": 2, "loss/x": 3.0}],
    }


def test_bar_shows_figures_and_speed() -> None:
    figures = {"step": 3, "loss": 0.5, "variance": 0.95, "rate": 1e-3, "norm": None, "seconds": 0.5}
    assert shown(figures) == "loss 0.5  variance 0.95  steps/s 2"
    assert shown({**figures, "samples": 8}) == "loss 0.5  variance 0.95  clips/s 16"
    more = {"samples": 8, "loss/films": 0.4, "data_wait": 0.034, "clips_per_second": 16.0}
    assert shown({**figures, **more}) == "loss 0.5  variance 0.95  data wait 3%  clips/s 16"
