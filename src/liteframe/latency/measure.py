"""One question about one video, with a clock around every stage.

The same steps as `liteframe.pipeline` takes, one behind the other: there decoding runs beside encoding, here a stage
must not hide behind another one. The answer is greedy and of fixed length, so that every pass does the same work.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from liteframe.encoders.interface import frames_at_once, group_frames
from liteframe.errors import InputError
from liteframe.language.prefix import cache_argument, prefill
from liteframe.language.projector import project_grid
from liteframe.language.prompt import Prompt, Slots
from liteframe.latency.shapes import Subject
from liteframe.runtime import Stopwatch
from liteframe.video.decode import iter_frames
from liteframe.video.sample import Sampling
from liteframe.video.transform import normalize, resize


@dataclass(frozen=True)
class Pass:
    """One pass through all stages.

    Attributes:
        stages: seconds of each.
        wall_seconds: from the first to the last moment, what lies between the stages included.
        visual_tokens, positions: of the prompt.
        answer: ids of the tokens that came out.
    """

    stages: dict[str, float]
    wall_seconds: float
    visual_tokens: int
    positions: int
    answer: list[int]


@torch.inference_mode()
def time_question(
    subject: Subject, method: str, video: Path, num_frames: int, answer_tokens: int, batch_frames: int | None = None
) -> Pass:
    """Ask one question, with the device idle at both ends of every stage.

    Args:
        subject: what is timed.
        method: one of its encoders.
        video: a file of at least `num_frames` frames.
        num_frames: frames to look at.
        answer_tokens: tokens of the answer, whether or not one of them would end it.
        batch_frames: frames that are encoded together, whole groups of them; None takes what the pipeline takes.

    Raises:
        VideoError: the file cannot be used.
        InputError: it has fewer frames.
    """
    model, encoder, pixels = subject.model, subject.encoders[method], subject.shape.pixels
    core, projector = model.model, model.model.multi_modal_projector
    device = model.device
    factor = round(1 / model.config.downsample_ratio)
    batch_frames = batch_frames or frames_at_once(pixels.height, pixels.width, device_type=device.type)
    batch_frames = max(1, batch_frames // encoder.group_size) * encoder.group_size
    watch = Stopwatch(device)
    embeddings: list[torch.Tensor] = []
    seconds: list[float] = []
    watch.synchronize()
    begin = time.perf_counter()
    decoded = iter_frames(video, Sampling(num_frames=num_frames))
    while True:
        with watch.stage("decode"):
            batch = list(itertools.islice(decoded, batch_frames))
        if not batch:
            break
        with watch.stage("preprocess"):
            seconds += [second for second, _ in batch]
            pictures = np.stack([picture for _, picture in batch])
            small = resize(pictures, (pixels.height, pixels.width), device)
            normalized = normalize(small, pixels.mean, pixels.std, encoder.dtype)
            groups = group_frames(normalized, encoder.group_size)
        with watch.stage("encode"):
            tokens = encoder(groups, num_frames=len(batch))
        with watch.stage("project"):
            embeddings.append(project_grid(tokens.features, projector, factor))
    if len(seconds) != num_frames:
        raise InputError(f"{video}: holds {len(seconds)} frames, not {num_frames}")
    with watch.stage("prefill"):
        visual = torch.cat(embeddings)
        slots = Slots(num_frames, encoder.group_size, np.array(seconds))
        prompt = subject.shape.prompt(slots, visual.shape[1])
        cache = DynamicCache(config=model.config.text_config)
        how: dict[str, Any] = {cache_argument(core.language_model): cache, "use_cache": True}
        hidden = prefill(core.language_model, _splice(subject, visual, prompt), cache)[:, -1:]
    with watch.stage("first_token"):
        token = model.lm_head(hidden).argmax(-1)
        answer = [int(token)]
    with watch.stage("decode_tokens"):
        for _ in range(answer_tokens - 1):
            embedded = model.get_input_embeddings()(token)
            token = model.lm_head(core.language_model(inputs_embeds=embedded, **how).last_hidden_state).argmax(-1)
            answer.append(int(token))
    wall = time.perf_counter() - begin
    return Pass(watch.seconds, wall, visual.shape[0] * visual.shape[1], len(prompt.ids), answer)


def _splice(subject: Subject, visual: torch.Tensor, prompt: Prompt) -> torch.Tensor:
    """The prompt's embeddings, (1, p, d), with the visual tokens at their positions."""
    device = subject.model.device
    text = subject.model.get_input_embeddings()(prompt.ids.to(device))
    places = prompt.visual.to(device)[:, None].expand_as(text)
    return text.masked_scatter(places, visual.to(text.dtype))[None]
