"""The synthetic long-video benchmark: needles shown for a fraction of a second in a long moving haystack.

In the manner of VideoNIAH / VNBench (arXiv 2406.09367): the answers are exact, the difficulty is dialled (length,
duration, number and size of needles), and any video can be the haystack. It is drawn by code, so it needs no download;
what it says about real video is only that a model finds, orders and counts short events in many frames.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from jaxtyping import UInt8

from liteframe.config import Config
from liteframe.data.haystacks import ProceduralHaystack, find_videos, video_haystack
from liteframe.data.needle_art import COLOURS, DIGITS, NAMES, SHAPES, digit_variants, needle_masks, paint
from liteframe.data.questions import TASKS, Needle, Question, make_question
from liteframe.errors import InputError
from liteframe.files import replacing, write_whole

MAX_FRAMES = 4096
# A video's needles all differ; this many do even where all are shapes.
_MOST_NEEDLES = len(COLOURS) * len(SHAPES)
# Random streams of training and of the benchmark start from different words: whatever the seeds, they never meet.
_BENCHMARK, _TRAINING = 0xBE, 0x7A


class NeedleConfig(Config):
    """How hard the needles are to find."""

    frames: int = pydantic.Field(32, ge=1, le=MAX_FRAMES)
    """Frames of a video, 1 to 4,096."""
    needle_frames: tuple[int, int] = (1, 4)
    """Shortest and longest time that a needle is shown, frames."""
    needles: tuple[int, int] = (1, 6)
    """Fewest and most needles in a video."""
    needle_size: tuple[float, float] = (0.43, 0.57)
    """Side of a needle's card as a share of the picture's shorter side."""
    digit_share: float = pydantic.Field(0.2, ge=0, le=1)
    """Share of needles that are handwritten digits; the others are shapes."""
    multiple_choice: bool = False
    """Ask with four options."""
    fps: float = pydantic.Field(10.0, gt=0)
    """Frames a second of the written videos."""
    size: int = pydantic.Field(128, ge=32)
    """Height and width of a procedural video, and the shorter side of one with the user's haystack; pixels, even."""
    tasks: tuple[str, ...] = TASKS
    """Which tasks are asked."""
    questions_per_video: int = pydantic.Field(3, ge=1)
    """Questions about each video; they go round the tasks."""
    haystack: str | None = None
    """A folder of videos to hide the needles in; None draws procedural haystacks."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> NeedleConfig:
        for name in ("needle_frames", "needles", "needle_size"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}: the range {low} to {high} is empty or not positive")
        if self.needles[1] > _MOST_NEEDLES:
            raise ValueError(f"needles: at most {_MOST_NEEDLES}, so that no two look the same")
        if self.needle_size[1] > 0.9:
            raise ValueError("needle_size: at most 0.9 of the shorter side")
        if self.size % 2:
            raise ValueError("size: must be even (H.264 stores colour at half the resolution)")
        if unknown := set(self.tasks) - set(TASKS):
            raise ValueError(f"tasks: unknown {', '.join(sorted(unknown))}; known: {', '.join(TASKS)}")
        if self.needle_frames[0] > self.frames:
            raise ValueError(f"needle_frames: a needle of {self.needle_frames[0]} frames does not fit in {self.frames}")
        return self


@dataclass(frozen=True)
class NeedleVideo:
    """A planned video: its needles in order of time and the haystack that `draw` moves past them."""

    needles: tuple[Needle, ...]
    num_frames: int
    height: int
    width: int
    haystack: ProceduralHaystack | Path

    def frames(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """Every frame in order, one at a time."""
        if isinstance(self.haystack, ProceduralHaystack):
            background: Iterator[np.ndarray] = (self.haystack.frame(i) for i in range(self.num_frames))
        else:
            background = video_haystack(self.haystack, self.height, self.width)
        for index, picture in zip(range(self.num_frames), background, strict=False):
            yield self._with_needle(picture, index)

    def frame(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """One frame of a procedural video, without the ones before it."""
        if not isinstance(self.haystack, ProceduralHaystack):
            raise TypeError("frames of the user's own haystack come in order: use frames()")
        return self._with_needle(self.haystack.frame(index), index)

    def needle_at(self, index: int) -> Needle | None:
        """The needle that frame `index` shows."""
        for needle in self.needles:
            if needle.first_frame <= index < needle.first_frame + needle.num_frames:
                return needle
        return None

    def _with_needle(self, picture: np.ndarray, index: int) -> np.ndarray:
        needle = self.needle_at(index)
        if needle is None:
            return picture
        picture = np.array(picture)
        paint_needle(picture, needle)
        return picture


def needle_box(needle: Needle, height: int, width: int) -> tuple[int, int, int]:
    """The needle's card in a picture: top, left, side, in pixels."""
    side = max(4, round(needle.size * min(height, width)))
    top, left = (min(round(share * n), n - side) for share, n in zip(needle.corner, (height, width), strict=True))
    return top, left, side


def paint_needle(picture: UInt8[np.ndarray, "h w 3"], needle: Needle) -> None:
    """Draw `needle` into `picture` in place."""
    top, left, side = needle_box(needle, *picture.shape[:2])
    masks = needle_masks(needle.name, side, needle.angle, needle.variant)
    paint(picture, masks, COLOURS[needle.colour], top, left)


def random_needle(
    rng: np.random.Generator, config: NeedleConfig, training: bool, first_frame: int = 0, num_frames: int = 1
) -> Needle:
    """A needle of random looks and place.

    Cards are whole sixteenths of the shorter side wide, where `needle_size` holds one, and their corners lie on eighths
    of the picture. A figure then falls on few different alignments with a model's patches, and the miniature can learn
    it on two cores; what is searched for is *when* it is shown.
    """
    names = DIGITS if rng.random() < config.digit_share else SHAPES
    name = names[int(rng.integers(len(names)))]
    variants = digit_variants(name, training) if name in DIGITS else np.zeros(1, int)
    low, high = config.needle_size
    sizes = [n / 16 for n in range(1, 16) if low <= n / 16 <= high] or [low]
    size = sizes[int(rng.integers(len(sizes)))]
    places = int((1 - size) * 8 + 1e-9) + 1
    return Needle(
        name=name,
        colour=list(COLOURS)[int(rng.integers(len(COLOURS)))],
        first_frame=first_frame,
        num_frames=num_frames,
        corner=(int(rng.integers(places)) / 8, int(rng.integers(places)) / 8),
        size=size,
        angle=int(rng.integers(-1, 2)) * 6,
        variant=int(variants[rng.integers(len(variants))]),
    )


def plan_needles(rng: np.random.Generator, config: NeedleConfig, training: bool) -> tuple[Needle, ...]:
    """Needles at random times that never overlap and are a frame apart; no two look the same.

    Fewer than asked for when the video is too short to hold them.
    """
    count = int(rng.integers(config.needles[0], config.needles[1] + 1))
    longest = min(config.needle_frames[1], config.frames)
    durations = rng.integers(config.needle_frames[0], longest + 1, count)
    while count > 1 and durations.sum() + count - 1 > config.frames:
        count, durations = count - 1, durations[:-1]
    slack = config.frames - int(durations.sum()) - (count - 1)
    # Uniform over all ways to share the free frames out before, between and behind the needles.
    cuts = np.sort(rng.integers(0, slack + 1, count))
    starts = cuts + np.concatenate([[0], np.cumsum(durations[:-1] + 1)])
    needles: list[Needle] = []
    for start, duration in zip(starts, durations, strict=True):
        needle = random_needle(rng, config, training, int(start), int(duration))
        while needle.what in {other.what for other in needles}:
            needle = random_needle(rng, config, training, int(start), int(duration))
        needles.append(needle)
    return tuple(needles)


def plan_video(
    seed: int, index: int, config: NeedleConfig, training: bool = False, haystacks: list[Path] | None = None
) -> tuple[NeedleVideo, np.random.Generator]:
    """Video `index` of `seed`, and the random stream from which its questions are drawn.

    Deterministic; the streams of training and of the benchmark differ for every pair of seeds.
    """
    rng = np.random.default_rng([_TRAINING if training else _BENCHMARK, seed, index])
    needles = plan_needles(rng, config, training)
    if haystacks:
        path = haystacks[int(rng.integers(len(haystacks)))]
        height, width = _display_size(path, config.size)
        return NeedleVideo(needles, config.frames, height, width, path), rng
    haystack = ProceduralHaystack(rng, config.size, config.size)
    return NeedleVideo(needles, config.frames, config.size, config.size, haystack), rng


def _display_size(path: Path, shorter: int) -> tuple[int, int]:
    """Height and width with the file's aspect, the given shorter side, both even."""
    from liteframe.video.probe import probe

    info = probe(path)
    scale = shorter / min(info.width, info.height)
    height, width = (max(2, round(length * scale / 2) * 2) for length in (info.height, info.width))
    return height, width


def ask_questions(
    needles: tuple[Needle, ...], rng: np.random.Generator, count: int, tasks: tuple[str, ...], multiple_choice: bool
) -> list[Question]:
    """At most `count` distinct questions, going round the tasks; fewer if the needles allow fewer."""
    questions: dict[str, Question] = {}
    start = int(rng.integers(len(tasks)))
    for attempt in range(4 * count + 8):
        if len(questions) == count:
            break
        question = make_question(needles, tasks[(start + attempt) % len(tasks)], rng, multiple_choice)
        if question is not None:
            questions.setdefault(question.question, question)
    return list(questions.values())


def encode_video(target: Any, frames: Iterator[np.ndarray], height: int, width: int, fps: float, crf: int = 20) -> None:
    """Encode RGB frames as H.264 in an mp4 (`target`: a path, or a file opened for bytes).

    One thread: the bytes are then the same on every run.
    """
    import av

    with av.open(target if hasattr(target, "write") else str(target), "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(crf), "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count = 1
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_benchmark(
    out: str | Path,
    videos: int,
    seed: int = 0,
    config: NeedleConfig | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write `videos` mp4 files and ``questions.jsonl`` into `out`.

    A line of the JSONL is one question: ``id, video (relative to out), task, question, options (list or null), answer
    (for multiple choice: the text of the right option), needles: [{start_seconds, end_seconds, what}]``. Same seed and
    settings: same bytes of JSONL and same pixels.

    Returns:
        a summary: ``out, videos, questions, by_task``.

    Raises:
        InputError: nothing to write, or a haystack folder without videos.
        VideoError: a haystack video that cannot be read.
    """
    config = config or NeedleConfig()
    if videos < 1:
        raise InputError(f"--videos {videos}: ask for at least one video")
    haystacks = find_videos(config.haystack) if config.haystack else None
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    for index in range(videos):
        video, rng = plan_video(seed, index, config, haystacks=haystacks)
        name = f"needles-s{seed}-{index:05d}.mp4"
        with replacing(out / name) as part:
            encode_video(part, video.frames(), video.height, video.width, config.fps)
        questions = ask_questions(video.needles, rng, config.questions_per_video, config.tasks, config.multiple_choice)
        lines += [
            _record(f"s{seed}-{index:05d}-{i}", name, q, video.needles, config.fps) for i, q in enumerate(questions)
        ]
        if on_progress:
            on_progress(index + 1, videos)
    write_whole(out / "questions.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    by_task = {task: sum(line["task"] == task for line in lines) for task in config.tasks}
    return {"out": str(out), "videos": videos, "questions": len(lines), "by_task": by_task, "seed": seed}


def _record(identifier: str, video: str, question: Question, needles: tuple[Needle, ...], fps: float) -> dict[str, Any]:
    return {
        "id": identifier,
        "video": video,
        "task": question.task,
        "question": question.question,
        "options": list(question.options) if question.options else None,
        "answer": question.answer,
        "needles": [
            {
                "start_seconds": round(needle.first_frame / fps, 6),
                "end_seconds": round((needle.first_frame + needle.num_frames) / fps, 6),
                "what": needle.what,
            }
            for needle in needles
        ],
    }


__all__ = ["NAMES", "NeedleConfig", "NeedleVideo", "encode_video", "plan_video", "write_benchmark"]
