"""Random clips of the videos of a manifest, each a function of the seed and its number alone.

A clip is drawn in three steps: the epoch's order says which video (`EpochOrder`), the video's length and a random
stride say at which moments (`choose_moments`), and the frames shown at those moments are decoded and squashed.
"""

from __future__ import annotations

from collections.abc import Sequence

from liteframe.data.clip_frames import ClipReader
from liteframe.data.clips import Clip, ClipConfig
from liteframe.data.manifest import VideoEntry, weights_of
from liteframe.data.order import EpochOrder, Permutation, word_of
from liteframe.data.skipped import SkippedVideos
from liteframe.errors import DataError, InputError, VideoError
from liteframe.tensor_store import KeptTensors

# First words of the random streams of clips and of the choice of stand-ins.
_CLIP, _STAND_IN = 0xC1, 0x51


class ClipSampler:
    """Clips of the videos of a manifest.

    Epoch by epoch, each video comes `clips_per_video` times its weight, in a new order. A video that cannot be read is
    recorded in `skipped`, and another video of the manifest, drawn from the seed and the unreadable one's name, gives a
    clip in its place, marked by ``Clip.stands_in_for``: batches keep their size, every clip is of real video, and which
    clip comes depends on the files alone and not on what was read before.
    """

    def __init__(
        self,
        entries: Sequence[VideoEntry],
        config: ClipConfig,
        seed: int = 0,
        skipped: SkippedVideos | None = None,
        pixel_store: KeptTensors | None = None,
    ) -> None:
        """Args:
        entries: what `load_manifest` gives; at least one.
        seed: 0 or more.
        skipped: the account of unreadable videos; None begins one with the default policy and no list.
        pixel_store: keeps the clips' pixels, so that a clip that comes again is not decoded again, nor its video
            needed. May be the cache of the targets, or one of its own, which then serves every teacher.
        """
        if not entries:
            raise DataError("no videos to draw clips from; check the manifest")
        if seed < 0:
            raise InputError(f"seed={seed}: give 0 or a positive number")
        self.config = config
        self.skipped = skipped or SkippedVideos(len(entries))
        self._entries = entries
        self._seed = seed
        self._order = EpochOrder(seed, len(entries), config.clips_per_video, weights_of(entries))
        self._reader = ClipReader(config, self.skipped, pixel_store)

    @property
    def accounts(self) -> tuple[SkippedVideos, ...]:
        """The one account, for `clips.accounts`."""
        return (self.skipped,)

    def __len__(self) -> int:
        """Clips in an epoch."""
        return len(self._order)

    def clip(self, index: int) -> Clip:
        """Clip `index`, counted through all epochs, 0 or more.

        Raises:
            DataError: too many videos cannot be read.
        """
        epoch, place = divmod(index, len(self._order))
        number, which = self._order.at(epoch, place)
        draw = (epoch if self.config.repeat_after is None else epoch % self.config.repeat_after, which)
        try:
            return self._read(number, draw)
        except VideoError as error:
            self.skipped.skip(number, error)
        missing = self._entries[number]
        for other in Permutation(len(self._entries), [_STAND_IN, self._seed, _word(missing), *draw]):
            if other == number:
                continue
            try:
                return self._read(other, draw, missing)
            except VideoError as error:
                self.skipped.skip(other, error)
        raise DataError(f"none of the {len(self._entries)} videos can be read; the first: {missing.video}")

    def _read(self, number: int, draw: tuple[int, int], missing: VideoEntry | None = None) -> Clip:
        """Draw `draw` (epoch, which of its clips) of video `number`."""
        entry = self._entries[number]
        words = [_CLIP, self._seed, _word(entry), *draw, *([] if missing is None else [_word(missing)])]
        stands_in_for = None if missing is None else str(missing.video)
        return self._reader.clip(entry, number, words, stands_in_for=stands_in_for)


def _word(entry: VideoEntry) -> int:
    """The same wherever the data set lies and whatever else is in it."""
    return word_of(entry.name, entry.start, entry.end)
