"""The map: from a video file and a question to an answer.

1. probe       the file's headers: how long, how many frames                       video.probe
2. sample      which moments to look at; refuse now what the context cannot hold   video.sample, language.video_llm
3. decode      the frames shown at those moments, one at a time                    video.decode
4. transform   each to the model's size at once, then normalised                   video.transform
5. encode      batches of groups to a grid of features each                        encoders
6. project     pixel shuffle and the checkpoint's projector, to LLM embeddings     language.projector
7. answer      splice into the prompt, prefill, generate                           language.prompt, language.video_llm

Steps 3 to 6 stream (`video.batches`). One thread decodes and another shrinks (the first half of 4) the next batch while
this one is encoded, and they never run more than a batch ahead: at no time is more in memory than three full-size
frames, three batches of small ones, and the projected tokens of what has been seen, however long the video is.

`VideoLLM.watch` is steps 1 to 6, `VideoLLM.ask` all seven; what `watch` returns can be asked again and again. With a
`TokenCache` the features of step 5 are kept on disk, and steps 1 to 5 are left out where they are found.
"""

from __future__ import annotations

import dataclasses
import os
import time
import warnings
from collections import deque
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import torch

from liteframe.baselines import build_method, prefill_pruning
from liteframe.encoded_video import EncodedVideo
from liteframe.encoders import EncoderSource, student_folder
from liteframe.encoders.interface import STUDENT_FOLDER, VideoEncoder, group_frames
from liteframe.encoders.precision import faster
from liteframe.errors import InputError, VideoWarning
from liteframe.language.adapter import ADAPTER_FOLDER
from liteframe.language.loading import Checkpoint, load_checkpoint, save_checkpoint, with_adapter
from liteframe.language.prompt import Dialogue, Slots
from liteframe.language.video_llm import VideoLanguageModel, VisualTokens, check_sampling
from liteframe.prefetch import prefetched
from liteframe.runtime import Stopwatch
from liteframe.token_cache import CachedVideo, TokenCache
from liteframe.types import Answer, VideoInfo, VideoTokens
from liteframe.video.batches import small_batches
from liteframe.video.decode import expected_frames, expected_seconds, iter_frames
from liteframe.video.isolate import Limits
from liteframe.video.probe import examine, probe
from liteframe.video.sample import Sampling
from liteframe.video.source import Source
from liteframe.video.transform import normalize

DEFAULT_FRAMES = 32
STAGES = ("decode", "preprocess", "encode", "prefill", "generate")

Progress = Callable[[int, int], None]
"""Called with (frames encoded, frames expected)."""


class VideoLLM:
    """A Video LLM: an encoder in front of a language model.

    Args:
        checkpoint: a loaded checkpoint, for its language model and settings.
        encoder: what turns frames into tokens; its features must be in the space of the checkpoint's vision tower.
        cache: where tokens are kept for another question or another day; None keeps them only in what `watch` returns.
        isolate: open and decode files in a process of its own, for files that nobody vouches for: see `read_video`.
        backend: what decodes: see `read_video`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        encoder: VideoEncoder,
        cache: TokenCache | None = None,
        isolate: bool | Limits = False,
        backend: str = "pyav",
    ) -> None:
        self.checkpoint = checkpoint
        self.encoder = encoder
        self.cache = cache
        self.isolate = isolate
        self.backend = backend
        self._last: EncodedVideo | None = None
        size = (checkpoint.pixels.height, checkpoint.pixels.width)
        self.batch_frames = encoder.frames_at_once(*size)
        self.language = VideoLanguageModel(checkpoint, pruning=prefill_pruning(encoder))
        grid = encoder.grid(*size)
        self.tokens_per_slot = self.language.tokens_per_slot(grid)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str] | Checkpoint = "mini",
        *,
        encoder: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        cache: TokenCache | None = None,
        precision: str | None = None,
        compile_encoder: bool = False,
    ) -> VideoLLM:
        """Load a model by name ("mini", a folder, a hub id).

        Args:
            name: see `liteframe.language.loading.load_checkpoint`; or a checkpoint that is loaded, which several
                encoders can share, unless it was adapted to one of them (`Checkpoint.is_adapted`): that is done in
                place, so the one that was given must not be used any more.
            encoder: see `liteframe.baselines.build_method`: an encoder's name, the folder of a LiteFrame student, or a
                baseline; None takes the encoder that the checkpoint names. Where an adapter of the language model lies
                in the student's folder, as in the miniature's, it is used with that student, and with no other encoder.
            device, dtype: ``auto`` takes what this machine is best at; a loaded checkpoint has its own.
            cache: see `VideoLLM`.
            precision, compile_encoder: see `liteframe.encoders.precision.faster`; of the encoder alone.

        Raises:
            CheckpointError: the model cannot be loaded.
            InputError: an unknown encoder, device, dtype or precision, or an encoder that cannot be compiled.
        """
        checkpoint = name if isinstance(name, Checkpoint) else load_checkpoint(name, device, dtype)
        encoder = encoder or checkpoint.encoder
        source = EncoderSource.of(checkpoint.model, checkpoint.folder)
        student = student_folder(encoder, source)
        if student is not None and (student / ADAPTER_FOLDER).is_dir() and not checkpoint.is_adapted:
            checkpoint = with_adapter(checkpoint, student / ADAPTER_FOLDER)
        method = faster(build_method(encoder, source), checkpoint.pixels, precision, compile_encoder)
        return cls(checkpoint, method, cache)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write model, tokenizer, settings and a student, if any, to a new folder, which `from_pretrained` reads."""
        from liteframe.encoders.student import LiteFrameEncoder

        if self.encoder.precision is not None:
            raise InputError(f"{folder}: an encoder of {self.encoder.precision} is not saved; load it as it was")

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
        question: str | Dialogue = "?",
        max_new_tokens: int = 1,
        on_progress: Progress | None = None,
    ) -> EncodedVideo:
        """Steps 1 to 6: watch a video once, for several questions.

        Args:
            video: a file.
            num_frames: frames, evenly spread (32 where neither this nor `fps` is given).
            fps: frames per second instead, at most `max_frames`.
            start, end: the part to look at, in seconds from the first frame.
            question, max_new_tokens: what will be asked first, where that is known: what would not fit is refused now.
            on_progress: called with (frames encoded, frames expected).

        Raises:
            VideoError: the file cannot be used.
            InputError: settings that contradict each other or are out of range.
            ContextError: more frames than the language model can hold with this question, or with any.
        """
        sampling = _sampling(num_frames, fps, max_frames, start, end)
        return self._watch(video, sampling, question, max_new_tokens, on_progress)

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
        begin = time.perf_counter()
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
        prefill = paid.get("load", 0.0) + generation.prefill_seconds
        paid = {**paid, "prefill": prefill, "generate": generation.generate_seconds}
        return Answer(
            text=generation.text,
            num_frames=encoded.num_frames,
            num_visual_tokens=self.language.visual_tokens(encoded.visual),
            timings={stage: paid.get(stage, 0.0) for stage in STAGES},
            model=self.language.name,
            encoder=self.encoder.name,
            video=encoded.path,
            seconds=encoded.seconds.tolist(),
            wall_seconds=time.perf_counter() - begin,
        )

    def _watch(
        self,
        video: str | os.PathLike[str],
        sampling: Sampling,
        question: str | Dialogue,
        max_new_tokens: int,
        on_progress: Progress | None,
    ) -> EncodedVideo:
        begin = time.perf_counter()
        path = os.fspath(video)
        key = self._key(path, sampling)
        found = self._recall(key, path)
        if found is not None:
            self.language.check_fits(question, found.visual.slots, self.tokens_per_slot, max_new_tokens)
        else:
            opening = Stopwatch()
            with opening.stage("decode"):
                source = None if self.isolate else examine(path)
                info = probe(path, isolate=self.isolate) if source is None else source.info
            share = sampling.share(info.duration_seconds)
            shows = sampling.shows_of_each((info.num_frames or 0) * share, self.encoder.group_size)
            expected = shows * self._expected_frames(info, sampling)
            slots = Slots(expected, self.encoder.group_size, expected_seconds(info, sampling, expected))
            self.language.check_fits(question, slots, self.tokens_per_slot, max_new_tokens)
            found = self._stream(source or path, sampling, shows, expected, key, on_progress)
            found.timings["decode"] += opening.seconds["decode"]
        encoded = dataclasses.replace(found, wall_seconds=time.perf_counter() - begin)
        if key is not None:
            # The same object for the next question, which then finds the language model's part done as well.
            self._last = encoded
        return encoded

    def _expected_frames(self, info: VideoInfo, sampling: Sampling) -> int:
        asked = sampling.num_asked
        if self.isolate and asked and (info.num_frames is None or info.duration_seconds is None):
            return asked  # to count them, this process would have to open the file
        return expected_frames(info, sampling)

    def _stream(
        self, video: str | Source, sampling: Sampling, shows: int, expected: int, key: str | None, tell: Progress | None
    ) -> EncodedVideo:
        """Steps 3 to 6; step 3 and the first half of step 4 each in a thread of its own."""
        path = video if isinstance(video, str) else video.info.path
        reading, watch = Stopwatch(), Stopwatch(self.language.device)
        faults: deque[str] = deque()
        told: list[str] = []
        seconds: list[float] = []
        embeddings: list[torch.Tensor] = []
        features: list[torch.Tensor] = []
        # Its warnings are told here: Python's filters and hooks for them belong to the thread that set them.
        decode = partial(iter_frames, video, sampling, faults.append, isolate=self.isolate, backend=self.backend)
        size, place = (self.checkpoint.pixels.height, self.checkpoint.pixels.width), self.encoder.device
        prepare = partial(small_batches, decode, size, place, self.batch_frames, shows, reading)
        with closing(prefetched(prepare, name="liteframe-preprocess")) as batches:
            for times, pixels in batches:
                with watch.stage("preprocess"):
                    mean, std = self.checkpoint.pixels.mean, self.checkpoint.pixels.std
                    normalized = normalize(pixels, mean, std, self.encoder.dtype)
                with watch.stage("encode"), torch.inference_mode():
                    groups = group_frames(normalized, self.encoder.group_size)
                    tokens = self.encoder(groups, num_frames=len(pixels))
                    embeddings.append(self.language.project(tokens))
                    if key is not None:
                        features.append(tokens.features.cpu())
                seconds += times
                told += _tell(path, faults)
                if tell is not None:
                    tell(len(seconds), max(expected, len(seconds)))
        told += _tell(path, faults)
        times_seen = np.asarray(seconds, dtype=np.float64)
        if key is not None:
            self._keep(key, path, sampling, torch.cat(features), times_seen, told)
        timings = {stage: reading.seconds.get(stage, 0.0) + watch.seconds.get(stage, 0.0) for stage in STAGES[:3]}
        return self._encoded(path, torch.cat(embeddings), times_seen, timings, key)

    def _encoded(
        self, path: str, embeddings: torch.Tensor, seconds: np.ndarray, timings: dict[str, float], key: str | None
    ) -> EncodedVideo:
        visual = VisualTokens(embeddings, Slots(len(seconds), self.encoder.group_size, seconds))
        return EncodedVideo(visual, seconds, timings, path, self.language.name, self.encoder.name, key=key)

    def _key(self, path: str, sampling: Sampling) -> str | None:
        """The name of the video's entry in the cache; None without a cache, or where `probe` will say what is wrong."""
        if self.cache is None:
            return None
        try:
            return self.cache.key(path, sampling, self.encoder, self.checkpoint.pixels, self.backend)
        except OSError:
            return None

    def _recall(self, key: str | None, path: str) -> EncodedVideo | None:
        """The video that was watched last, or the cache's entry, if it is this one."""
        if key is None or self.cache is None:
            return None
        if self._last is not None and self._last.key == key:
            return dataclasses.replace(self._last, path=path, timings={})
        watch = Stopwatch(self.language.device)
        with watch.stage("load"):
            entry = self.cache.get(key)
            if entry is None:
                return None
            # In the batches of the first time, so that not even rounding differs.
            group_size = entry.tokens.group_size
            step = self.batch_frames // group_size
            with torch.inference_mode():
                parts = [
                    self.language.project(VideoTokens(part, len(part) * group_size, group_size))
                    for part in entry.tokens.features.split(step)
                ]
        _tell(path, deque(entry.warnings))
        assert entry.tokens.seconds is not None
        return self._encoded(path, torch.cat(parts), entry.tokens.seconds, watch.seconds, key)

    def _keep(
        self, key: str, path: str, sampling: Sampling, features: torch.Tensor, seconds: np.ndarray, told: list[str]
    ) -> None:
        """Put tokens into the cache, unless the file is another one by now."""
        if self.cache is not None and self._key(path, sampling) == key:
            tokens = VideoTokens(features, len(seconds), self.encoder.group_size, seconds)
            self.cache.put(key, CachedVideo(tokens, tuple(told)))

    def _check_encoded(self, video: EncodedVideo, sampling: tuple[int | float | None, ...]) -> None:
        if any(value is not None for value in sampling):
            raise InputError(f"{video.path}: is encoded already; choose its frames in watch(), not in ask()")
        if (video.model, video.encoder) != (self.language.name, self.encoder.name):
            raise InputError(
                f"{video.path}: was encoded for {video.model} by {video.encoder}, and this is {self.language.name} "
                f"with {self.encoder.name}; watch it again"
            )


def _tell(path: str, faults: deque[str]) -> list[str]:
    """Empty `faults`, each as a VideoWarning of whoever called `watch` or `ask`; what was told is returned."""
    told = []
    while faults:
        told.append(faults.popleft())
        warnings.warn(f"{path}: {told[-1]}", VideoWarning, stacklevel=5)
    return told


def _sampling(
    num_frames: int | None, fps: float | None, max_frames: int | None, start: float | None, end: float | None
) -> Sampling:
    if num_frames is None and fps is None:
        num_frames = DEFAULT_FRAMES
    return Sampling(num_frames=num_frames, fps=fps, max_frames=max_frames, start=start, end=end)
