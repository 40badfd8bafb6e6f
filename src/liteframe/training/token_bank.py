"""Videos recomposed from a bank of encoded groups: what the miniature's language model is adapted on, without a file.

Needle clips are rendered and encoded once. Groups of frames are encoded independently of each other, so a clip may be
cut between groups and put together anew: any needles of it, in any order, between any of its background. A few minutes
of encoding then give more different videos, of any length, than are ever used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydantic
import torch
from jaxtyping import Float16, Int
from rich.console import Console
from rich.progress import track
from torch import Tensor

from liteframe.config import Config
from liteframe.data.haystacks import ProceduralHaystack
from liteframe.data.needle_frames import through_codec
from liteframe.data.needle_turns import flash_cards, make_turns
from liteframe.data.needles import NeedleConfig, NeedleVideo, plan_needles
from liteframe.data.questions import TASKS, Needle, TaskName
from liteframe.encoders.interface import PixelConfig, VideoEncoder, group_frames
from liteframe.language.prompt import Slots
from liteframe.training.bank_file import kept_features
from liteframe.training.packing import VideoTurns
from liteframe.training.turn_writer import TurnWriter
from liteframe.video.transform import normalize, resize

# First word of the random streams of bank clips and of what is made of them.
_CLIPS, _VIDEOS = 0xBC, 0xAD
# The settings of what is asked about the clips; all others decide what they show.
_ABOUT_QUESTIONS = {"most_needles", "turns", "tasks", "multiple_choice_share", "list_share", "card_share"}


class TokenBankConfig(Config):
    """The clips of the bank, and the lessons about what is made of them."""

    clips: int = pydantic.Field(250, ge=1)
    """Clips rendered and encoded; every second one went through H.264."""
    frames: int = pydantic.Field(192, ge=8)
    """Frames of a clip."""
    spans: tuple[int, ...] = (32, 64, 192)
    """Frames over which a clip's needles are spread, to choose from: in short ones they stand close together."""
    still_share: float | int = pydantic.Field(0.0, ge=0, le=1)
    """Share of clips whose every frame fills a group, as those of short videos do: `Sampling.shows_of_each`."""
    needles: tuple[int, int] = (4, 7)
    """Fewest and most needles of a clip, where so many fit."""
    needle_frames: tuple[int, int] = (1, 16)
    """Shortest and longest time that a needle is shown, frames; log-uniform from clip to clip."""
    most_needles: int = pydantic.Field(6, ge=1)
    """Most needles in a video."""
    turns: int = pydantic.Field(8, ge=1)
    """Questions about each video."""
    tasks: tuple[TaskName, ...] = pydantic.Field(TASKS, min_length=1)
    """What the questions are about, in turn; a task that stands there twice is asked twice as often."""
    multiple_choice_share: float | int = 0.35
    """Share of questions with options."""
    list_share: float | int = 0.1
    """Share of videos with the question for everything that was shown."""
    card_share: float | int = 0.1
    """Share of the decks of flash cards that are asked of a video."""


@dataclass(frozen=True)
class GroupComposition:
    """A video made of bank groups: int (g,) numbers of groups inside one bank clip, and its needles in their new order.

    `first_frame` of a needle counts from the new video's begin.
    """

    groups: Int[np.ndarray, " g"]
    needles: tuple[Needle, ...]


def compose_groups(
    rng: np.random.Generator,
    needles: Sequence[Needle],
    clip_groups: int,
    group_size: int,
    num_groups: int,
    most_needles: int,
) -> GroupComposition:
    """A random video of `num_groups` groups out of one clip's.

    Needles that share a group stay together as they are; of what is longer than the video, a part is taken.

    Args:
        needles: of the clip, in order of time; at least one group of the clip shows none.
        clip_groups: groups of the clip.
    """
    stretches = _stretches(needles, group_size)
    shown = {group for first, last, _ in stretches for group in range(first, last)}
    background = np.array([group for group in range(clip_groups) if group not in shown])
    wanted = int(rng.integers(0 if rng.random() < 0.05 else 1, most_needles + 1))
    chosen: list[tuple[int, int, list[Needle]]] = []
    for at in rng.permutation(len(stretches)).tolist():
        stretch = _part(rng, stretches[at], group_size, num_groups)
        count = sum(len(other) for _, _, other in chosen) + len(stretch[2])
        length = sum(other[1] - other[0] for other in chosen) + stretch[1] - stretch[0]
        if count <= wanted and length <= num_groups:
            chosen.append(stretch)
    lengths = [last - first for first, last, _ in chosen]
    slack = num_groups - sum(lengths)
    cuts = np.sort(rng.integers(0, slack + 1, len(chosen)))
    # Background keeps its order in time; with more places than groups some come twice, as in a still scene.
    fresh = rng.choice(len(background), num_groups, replace=num_groups > len(background))
    groups = background[np.sort(fresh)]
    placed: list[Needle] = []
    at = 0
    for cut, (first, last, inside), length in zip(cuts.tolist(), chosen, lengths, strict=True):
        start = cut + at
        groups[start : start + length] = np.arange(first, last)
        placed += [replace(n, first_frame=n.first_frame + (start - first) * group_size) for n in inside]
        at += length
    return GroupComposition(groups, tuple(placed))


def _part(
    rng: np.random.Generator, stretch: tuple[int, int, list[Needle]], group_size: int, most: int
) -> tuple[int, int, list[Needle]]:
    """A stretch of at most `most` groups, with what is seen of its needles in them."""
    first, last, needles = stretch
    if last - first <= most:
        return stretch
    first += int(rng.integers(last - first - most + 1))
    last = first + most
    seen = []
    for needle in needles:
        begin = max(needle.first_frame, first * group_size)
        end = min(needle.first_frame + needle.num_frames, last * group_size)
        if begin < end:
            seen.append(replace(needle, first_frame=begin, num_frames=end - begin))
    return first, last, seen


def _stretches(needles: Sequence[Needle], group_size: int) -> list[tuple[int, int, list[Needle]]]:
    """First group, group behind the last, and needles of each stretch of groups that cannot be cut."""
    stretches: list[tuple[int, int, list[Needle]]] = []
    for needle in needles:
        first = needle.first_frame // group_size
        last = (needle.first_frame + needle.num_frames - 1) // group_size + 1
        if stretches and first < stretches[-1][1]:
            begin, end, inside = stretches[-1]
            stretches[-1] = (begin, max(end, last), [*inside, needle])
        else:
            stretches.append((first, last, [needle]))
    return stretches


@dataclass(frozen=True)
class BankVideo:
    """A composed video: float16 (g, 1, h, w, d) features in the teacher's space, and its lessons."""

    features: Float16[Tensor, "g 1 h w d"]
    turns: VideoTurns
    needles: tuple[Needle, ...]


class TokenBank:
    """Encoded groups of needle clips, and the videos made of them."""

    def __init__(
        self,
        config: TokenBankConfig,
        encoder: VideoEncoder,
        pixels: PixelConfig,
        seed: int,
        cache: Path | None = None,
        may_write: bool = True,
    ) -> None:
        """Render and encode the clips, or take them from `cache` if they are those of this encoder, config and seed.

        Args:
            encoder: frozen; its groups must not depend on each other.
            pixels: what it expects.
            cache: a file to keep the features in; None keeps none.
            may_write: false where another process writes that file.
        """
        self.config = config
        self._seed = seed
        self._group_size = encoder.group_size
        self._needles = [
            tuple(
                replace(needle, first_frame=needle.first_frame * shows, num_frames=needle.num_frames * shows)
                for needle in needles
            )
            for needles, shows in (self._plan(index)[1:] for index in range(config.clips))
        ]
        clips = config.model_dump(mode="json", exclude=_ABOUT_QUESTIONS)
        made_from = {"clips": clips, "pixels": pixels.model_dump(mode="json"), "seed": seed}
        self._features: Float16[Tensor, "c g 1 h w d"] = kept_features(
            cache, encoder.weights(), made_from, lambda: self._encode(encoder.eval(), pixels), may_write
        )

    @property
    def tokens_shape(self) -> tuple[int, ...]:
        """(1, h, w, d) of a group."""
        return tuple(self._features.shape[2:])

    def video(self, index: int, num_frames: int, writer: TurnWriter, tokens_per_slot: int) -> BankVideo:
        """Video `index` of the endless stream, with its lessons; depends on its arguments and the seed alone."""
        config, size = self.config, self._group_size
        rng = np.random.default_rng([_VIDEOS, self._seed, index, num_frames])
        num_groups = max(1, num_frames // size)
        clip = int(rng.integers(config.clips))
        made = compose_groups(rng, self._needles[clip], self._features.shape[1], size, num_groups, config.most_needles)
        lessons = make_turns(
            rng, made.needles, config.turns, config.multiple_choice_share, config.list_share, tasks=config.tasks
        )
        lessons += [deck for deck in flash_cards(rng, made.needles) if rng.random() < config.card_share]
        turns = writer.lessons(lessons, Slots(num_groups * size, size), tokens_per_slot)
        return BankVideo(self._features[clip, torch.from_numpy(made.groups)], turns, made.needles)

    def _plan(self, index: int) -> tuple[np.random.Generator, tuple[Needle, ...], int]:
        """What draws clip `index`, its needles, and how often each of its frames is shown."""
        config = self.config
        rng = np.random.default_rng([_CLIPS, self._seed, index])
        shows = self._group_size if config.still_share and rng.random() < config.still_share else 1
        frames = config.frames // shows
        low, high = config.needle_frames
        longest = round(float(np.exp(rng.uniform(np.log(low), np.log(max(low, high // shows))))))
        span = min(frames, config.spans[int(rng.integers(len(config.spans)))])
        # Half of a clip at least is background.
        most = max(1, min(config.needles[1], frames // (2 * longest)))
        planned = NeedleConfig(
            frames=span,
            needles=(min(config.needles[0], most), most),
            needle_frames=(min(span, max(low, longest // 2)), min(span, max(low, longest))),
        )
        needles = plan_needles(rng, planned, training=True)
        later = int(rng.integers(frames - span + 1))
        return rng, tuple(replace(needle, first_frame=needle.first_frame + later) for needle in needles), shows

    def _encode(self, encoder: VideoEncoder, pixels: PixelConfig) -> Float16[Tensor, "c g 1 h w d"]:
        parts = []
        side = NeedleConfig().size
        with torch.inference_mode():
            for index in track(range(self.config.clips), "token bank", console=Console(stderr=True)):
                rng, needles, shows = self._plan(index)
                frames_shown = self.config.frames // shows
                video = NeedleVideo(needles, frames_shown, side, side, ProceduralHaystack(rng, side, side))
                pictures = list(video.frames())
                if index % 2:
                    pictures = through_codec(pictures, crf=int(rng.integers(18, 27)))
                frames = resize(np.stack(pictures), (pixels.height, pixels.width))
                normalized = normalize(frames.to(encoder.device), pixels.mean, pixels.std, torch.float32)
                groups = group_frames(normalized.repeat_interleave(shows, 0), encoder.group_size)
                parts.append(encoder(groups).features.half().cpu())
        return torch.stack(parts)
