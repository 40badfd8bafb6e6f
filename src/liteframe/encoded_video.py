"""What is left of a video once it has been watched."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from liteframe.language.video_llm import VisualTokens


@dataclass(frozen=True, eq=False)
class EncodedVideo:
    """A video that has been watched: ready for any number of questions.

    Attributes:
        visual: projected tokens and the frames that they stand for.
        seconds: float64 (t,), presentation times of the frames.
        timings: seconds spent in ``decode``, ``preprocess`` and ``encode`` (projection included), each while it was at
            work; or in ``load``, reading and projecting tokens that were kept on disk.
        path, model, encoder: what was watched, and by whom.
        wall_seconds: from the call to here: less than the sum of `timings` as far as stages ran side by side.
        key: the name of its entry in the model's `TokenCache`; None without one.
    """

    visual: VisualTokens
    seconds: np.ndarray
    timings: dict[str, float]
    path: str
    model: str
    encoder: str
    wall_seconds: float = 0.0
    key: str | None = None

    @property
    def num_frames(self) -> int:
        """Frames that were encoded."""
        return self.visual.slots.num_frames

    def with_notes(self, notes: tuple[str, ...]) -> EncodedVideo:
        """The same video with words between its groups of frames, such as subtitles; see `Slots`."""
        visual = self.visual
        return replace(self, visual=VisualTokens(visual.embeddings, replace(visual.slots, notes=notes)))

    def __repr__(self) -> str:
        return f"EncodedVideo({self.path}: {self.num_frames} frames by {self.encoder}, {self.visual!r})"
