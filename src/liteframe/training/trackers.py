"""Where the figures of a run go besides ``log.jsonl``: tensorboard, W&B, trackio. None is imported unasked.

A tracker is told of every step. What one shows after a resumed run is its own affair: ``log.jsonl`` is the account that
is always right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from liteframe.config import Config
from liteframe.errors import ConfigError


class TrackerConfig(Config):
    """Services that get the figures; each needs its own package, and reads its own environment variables."""

    wandb: str | None = None
    """A project of Weights & Biases; none: it is not used. ``WANDB_MODE=offline`` sends nothing."""
    trackio: str | None = None
    """A project of trackio, which keeps its figures on this machine; none: it is not used."""
    name: str | None = None
    """Of the run there; none: the name of the output folder."""


@runtime_checkable
class Tracker(Protocol):
    """Whatever takes the figures of a step."""

    def log(self, step: int, figures: Mapping[str, int | float]) -> None:
        """The figures that are numbers, after step `step` (from 1)."""

    def close(self) -> None:
        """No more will come."""


def require_trackers(config: TrackerConfig, tensorboard: bool) -> None:
    """Raise ConfigError if one that is asked for is not installed."""
    wanted = {
        "tensorboard = true": ("tensorboard", "train", tensorboard),
        f'track.wandb = "{config.wandb}"': ("wandb", "wandb", config.wandb is not None),
        f'track.trackio = "{config.trackio}"': ("trackio", "trackio", config.trackio is not None),
    }
    for setting, (package, extra, is_wanted) in wanted.items():
        if is_wanted and find_spec(package) is None:
            raise ConfigError(
                f"{setting}: {package} is not installed; "
                f"pip install 'liteframe-video[{extra}]', or leave it out: log.jsonl has the same figures"
            )


def open_trackers(
    config: TrackerConfig, output: Path, label: str, tensorboard: bool, start: int, settings: Mapping[str, Any]
) -> list[Tracker]:
    """Those that are asked for.

    Args:
        output: folder of the run, which is known to a service by it: a resumed run goes on there.
        label: what the run does, in a word.
        start: steps that are done.
        settings: shown beside the figures.
    """
    name = config.name or output.name
    identity = hashlib.sha256(str(output.resolve()).encode()).hexdigest()[:16]
    trackers: list[Tracker] = [_Tensorboard(output / "tensorboard", start)] if tensorboard else []
    if config.wandb is not None:
        import wandb

        with _refusals_of(f'track.wandb = "{config.wandb}"'):
            run = wandb.init(
                project=config.wandb,
                name=name,
                id=identity,
                resume="allow",
                dir=str(output),
                job_type=label,
                config=dict(settings),
            )
        trackers.append(_Service(run.log, run.finish))
    if config.trackio is not None:
        import trackio

        with _refusals_of(f'track.trackio = "{config.trackio}"'):
            trackio.init(project=config.trackio, name=name, resume="allow", config=dict(settings))
        trackers.append(_Service(trackio.log, trackio.finish))
    return trackers


@contextmanager
def _refusals_of(setting: str) -> Iterator[None]:
    """A service that does not let us in (no key, no network) is the user's affair, and one line."""
    try:
        yield
    except Exception as error:  # each has its own kinds
        told = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(f"{setting}: it cannot be used ({told}); mend that, or leave it out") from error


class _Tensorboard:
    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(folder), purge_step=start + 1)

    def log(self, step: int, figures: Mapping[str, int | float]) -> None:
        """See `Tracker`."""
        for name, value in figures.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """See `Tracker`."""
        self._board.close()


class _Service:
    """W&B and trackio have the same two functions."""

    def __init__(self, log: Callable[..., Any], finish: Callable[[], Any]) -> None:
        self._log, self._finish = log, finish

    def log(self, step: int, figures: Mapping[str, int | float]) -> None:
        """See `Tracker`."""
        self._log(dict(figures), step=step)

    def close(self) -> None:
        """See `Tracker`."""
        self._finish()
