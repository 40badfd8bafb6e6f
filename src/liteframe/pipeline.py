"""The map: from a video file and a question to an answer.

1. probe       the file's headers: how long, how many frames                       video.probe
2. sample      which moments to look at; refuse now what the context cannot hold   video.sample, language.video_llm
3. decode      the frames shown at those moments, one at a time                    video.decode
4. transform   each to the model's size at once, then normalised                   video.transform
5. encode      batches of groups to a grid of features each                        encoders
6. project     pixel shuffle and the checkpoint's projector, to LLM embeddings     language.projector
7. answer      splice into the prompt, prefill, generate                           language.prompt, language.video_llm

Steps 3 to 6 stream: at no time is more in memory than one full-size frame, one batch of small frames, and the projected
tokens of what has been seen. `VideoLLM.watch` is steps 1 to 6, `VideoLLM.ask` all seven; what `watch` returns can be
asked again and again.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from liteframe.encoders import STUDENT_FOLDER, EncoderSource, build_encoder
from liteframe.encoders.interface import VideoEncoder, group_frames
from liteframe.errors import InputError
from liteframe.language.loading import Checkpoint, load_checkpoint, save_checkpoint
from liteframe.language.prompt import Slots
from liteframe.language.video_llm import VideoLanguageModel, VisualTokens, check_sampling
from liteframe.runtime import Stopwatch
from liteframe.types import Answer, VideoInfo
from liteframe.video.decode import expected_frames, iter_frames
from liteframe.video.probe import probe
from liteframe.video.sample import Sampling, uniform_middles
from liteframe.video.transform import normalize, resize

DEFAULT_FRAMES = 32
BATCH_FRAMES = 16
"""Frames that go through the encoder at once: bounds memory, and is enough to keep a GPU busy."""

STAGES = ("decode", "preprocess", "encode", "prefill", "generate")

Progress = Callable[[int, int], None]
"""Called with (frames encoded, frames expected)."""


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedVideo:
    """A video that has been watched: ready for any number of questions.

    Attributes:
        visual: projected tokens and the frames that they stand for.
        seconds: float64 (t,), presentation times of the frames.
        timings: seconds spent in ``decode``, ``preprocess`` and ``encode`` (projection included).
        path, model, encoder: what was watched, and by whom.
    """

    visual: VisualTokens
    seconds: np.ndarray
    timings: dict[str, float]
    path: str
    model: str
    encoder: str

    @property
    def num_frames(self) -> int:
        """Frames that were encoded."""
        return self.visual.slots.num_frames

    def __repr__(self) -> str:
        return f"EncodedVideo({self.path}: {self.num_frames} frames by {self.encoder}, {self.visual!r})"


class VideoLLM:
    """A Video LLM: an encoder in front of a language model.

    Args:
        checkpoint: a loaded checkpoint, for its language model and settings.
        encoder: what turns frames into tokens; its features must be in the space of the checkpoint's vision tower.
    """

    def __init__(self, checkpoint: Checkpoint, encoder: VideoEncoder) -> None:
        self.checkpoint = checkpoint
        self.encoder = encoder
        self.language = VideoLanguageModel(checkpoint)
        grid = encoder.grid(checkpoint.pixels.height, checkpoint.pixels.width)
        self.tokens_per_slot = self.language.tokens_per_slot(grid)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str] = "mini",
        *,
        encoder: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> VideoLLM:
        """Load a model by name ("mini", a folder, a hub id).

        Args:
            name: see `liteframe.language.loading.load_checkpoint`.
            encoder: a name from `liteframe.encoders.ENCODERS`, or the folder of a LiteFrame student; None takes the
                one that the checkpoint names.
            device, dtype: ``auto`` takes what this machine is best at.

        Raises:
            CheckpointError: the model cannot be loaded.
            InputError: an unknown encoder, device or dtype.
        """
        checkpoint = load_checkpoint(name, device, dtype)
        config = checkpoint.model.config
        source = EncoderSource(
            vision_tower=checkpoint.model.model.vision_tower,
            feature_layer=config.vision_feature_layer,
            select_strategy=config.vision_feature_select_strategy,
            folder=checkpoint.folder,
        )
        return cls(checkpoint, build_encoder(encoder or checkpoint.encoder, source))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write model, tokenizer, settings and a student, if any, to a new folder, which `from_pretrained` reads."""
        from liteframe.encoders.student import LiteFrameEncoder

        def add_student(work: Path) -> None:
            if isinstance(self.encoder, LiteFrameEncoder):
                self.encoder.save_pretrained(work / STUDENT_FOLDER)  # type: ignore[operator]

        save_checkpoint(dataclasses.replace(self.checkpoint, encoder=self.encoder.name), folder, also=add_student)

    def watch(
        self,
        video: str | os.PathLike[str],
        *,
        num_frames: int | None = None,
        fps: float | None = None,
        max_frames: int | None = None,
        start: float | None = None,
        end: float | None = None,
        on_progress: Progress | None = None,
    ) -> EncodedVideo:
        """Steps 1 to 6: watch a video once, for several questions.

        Args:
            video: a file.
            num_frames: frames, evenly spread (32 where neither this nor `fps` is given).
            fps: frames per second instead, at most `max_frames`.
            start, end: the part to look at, in seconds from the first frame.
            on_progress: called with (frames encoded, frames expected).

        Raises:
            VideoError: the file cannot be used.
            InputError: settings that contradict each other or are out of range.
            ContextError: more frames than the language model can hold with any question.
        """
        sampling = _sampling(num_frames, fps, max_frames, start, end)
        return self._watch(video, sampling, question="?", max_new_tokens=1, on_progress=on_progress)

    def ask(
        self,
        video: str | os.PathLike[str] | EncodedVideo,
        question: str,
        *,
        num_frames: int | None = None,
        fps: float | None = None,
        max_frames: int | None = None,
        start: float | None = None,
        end: float | None = None,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        on_text: Callable[[str], None] | None = None,
        on_progress: Progress | None = None,
    ) -> Answer:
        """All seven steps: answer a question about a video, or about what `watch` returned.

        Args:
            video: a file, or an `EncodedVideo` (then the sampling arguments must be left out).
            question: plain words.
            num_frames, fps, max_frames, start, end, on_progress: see `watch`.
            max_new_tokens, temperature, top_p, seed, on_text: see `VideoLanguageModel.generate`.

        Raises:
            VideoError, InputError: see `watch`; also an empty question or one with the model's markers.
            ContextError: the request needs more positions than the model has; raised before anything is decoded.
        """
        check_sampling(max_new_tokens, temperature, top_p)
        paid: dict[str, float] = {}
        if isinstance(video, EncodedVideo):
            self._check_encoded(video, (num_frames, fps, max_frames, start, end))
            encoded = video
        else:
            sampling = _sampling(num_frames, fps, max_frames, start, end)
            encoded = self._watch(video, sampling, question, max_new_tokens, on_progress)
            paid = encoded.timings
        generation = self.language.generate(
            encoded.visual,
            question,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            on_text=on_text,
        )
        paid = {**paid, "prefill": generation.prefill_seconds, "generate": generation.generate_seconds}
        return Answer(
            text=generation.text,
            num_frames=encoded.num_frames,
            num_visual_tokens=encoded.visual.num_tokens,
            timings={stage: paid.get(stage, 0.0) for stage in STAGES},
            model=self.language.name,
            encoder=self.encoder.name,
            video=encoded.path,
            seconds=encoded.seconds.tolist(),
        )

    def _watch(
        self,
        video: str | os.PathLike[str],
        sampling: Sampling,
        question: str,
        max_new_tokens: int,
        on_progress: Progress | None,
    ) -> EncodedVideo:
        path = os.fspath(video)
        info = probe(path)
        expected = expected_frames(info, sampling)
        slots = Slots(expected, self.encoder.group_size, _expected_seconds(info, sampling, expected))
        self.language.check_fits(question, slots, self.tokens_per_slot, max_new_tokens)

        watch = Stopwatch(self.language.device)
        seconds: list[float] = []
        embeddings: list[torch.Tensor] = []
        for times, pixels in self._batches(path, sampling, watch):
            with watch.stage("preprocess"):
                mean, std = self.checkpoint.pixels.mean, self.checkpoint.pixels.std
                normalized = normalize(pixels.to(self.encoder.device), mean, std, self.language.model.dtype)
            with watch.stage("encode"), torch.inference_mode():
                groups = group_frames(normalized, self.encoder.group_size)
                embeddings.append(self.language.project(self.encoder(groups, num_frames=len(pixels))))
            seconds += times
            if on_progress is not None:
                on_progress(len(seconds), max(expected, len(seconds)))
        times_seen = np.asarray(seconds, dtype=np.float64)
        visual = VisualTokens(torch.cat(embeddings), Slots(len(seconds), self.encoder.group_size, times_seen))
        return EncodedVideo(visual, times_seen, watch.seconds, path, self.language.name, self.encoder.name)

    def _batches(self, path: str, sampling: Sampling, watch: Stopwatch) -> Iterator[tuple[list[float], torch.Tensor]]:
        """Whole groups of decoded frames at the model's size: (seconds, uint8 (t, 3, H, W)); only the last is short."""
        size = (self.checkpoint.pixels.height, self.checkpoint.pixels.width)
        batch = max(1, BATCH_FRAMES // self.encoder.group_size) * self.encoder.group_size
        frames = iter_frames(path, sampling)
        seconds: list[float] = []
        pixels: list[torch.Tensor] = []
        while True:
            with watch.stage("decode"):
                item = next(frames, None)
            if item is not None:
                with watch.stage("preprocess"):
                    seconds.append(float(item[0]))
                    pixels.append(resize(item[1][None], size))
            if pixels and (item is None or len(pixels) == batch):
                yield seconds, torch.cat(pixels)
                seconds, pixels = [], []
            if item is None:
                return

    def _check_encoded(self, video: EncodedVideo, sampling: tuple[int | float | None, ...]) -> None:
        if any(value is not None for value in sampling):
            raise InputError(f"{video.path}: is encoded already; choose its frames in watch(), not in ask()")
        if (video.model, video.encoder) != (self.language.name, self.encoder.name):
            raise InputError(
                f"{video.path}: was encoded for {video.model} by {video.encoder}, and this is {self.language.name} "
                f"with {self.encoder.name}; watch it again"
            )


def _sampling(
    num_frames: int | None, fps: float | None, max_frames: int | None, start: float | None, end: float | None
) -> Sampling:
    if num_frames is None and fps is None:
        num_frames = DEFAULT_FRAMES
    return Sampling(num_frames=num_frames, fps=fps, max_frames=max_frames, start=start, end=end)


def _expected_seconds(info: VideoInfo, sampling: Sampling, num_frames: int) -> np.ndarray | None:
    """About when the frames will be, to measure time labels before decoding; None where the file does not say."""
    if info.duration_seconds is None or num_frames < 1:
        return None
    start, end = sampling.span(info.duration_seconds)
    return uniform_middles(start, end, num_frames)
