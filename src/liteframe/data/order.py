"""In which order things come, by arithmetic: no list is shuffled and none is held.

A shuffled list of n things is a permutation of 0 ... n - 1. Here it is a function (`Permutation`) that computes the
thing at any place, so that ten million videos are shuffled in no memory, each process and thread finds its own places
without asking another, and a resumed run begins in the middle of an epoch at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float64, Int

# First words of the random streams of epochs' orders and of permutations.
_ORDER, _PERMUTATION = 0x0D, 0xFE
_ROUNDS = 6
_MASK = (1 << 64) - 1


class Permutation:
    """A pseudo-random permutation of ``range(length)``: item `place` in a few microseconds, nothing stored.

    A balanced Feistel network (Luby and Rackoff 1988) over the next power of four, and the numbers beyond `length` are
    walked past (cycle walking: Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). It shuffles; it keeps
    no secrets.
    """

    def __init__(self, length: int, words: Sequence[int]) -> None:
        """Args:
        length: how many things, 1 or more.
        words: whole numbers of 0 or more that choose the permutation.
        """
        if length < 1:
            raise ValueError(f"length={length}: a permutation needs 1 thing or more")
        self._length = length
        self._half = max(1, ((length - 1).bit_length() + 1) // 2)
        seeds = np.random.SeedSequence([_PERMUTATION, *words]).generate_state(_ROUNDS, np.uint64)
        self._keys = [int(seed) for seed in seeds]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: int) -> int:
        """Which of the things comes at `place`, 0 ... length - 1."""
        if not 0 <= place < self._length:
            raise IndexError(place)
        half, low = self._half, (1 << self._half) - 1
        while True:
            left, right = place >> half, place & low
            for key in self._keys:
                left, right = right, left ^ (_mixed(right, key) & low)
            place = left << half | right
            if place < self._length:
                return place

    def __iter__(self) -> Iterator[int]:
        return (self[place] for place in range(self._length))


def _mixed(value: int, key: int) -> int:
    """64 well-mixed bits of both: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    value = (value + key) & _MASK
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _MASK
    return value ^ value >> 31


class EpochOrder:
    """In which order videos come in each epoch, and which of its clips of that epoch each is.

    A video of weight w comes w * clips_per_video times; where that is no whole number, one time more or less from epoch
    to epoch, by systematic sampling, so that every epoch is equally long. Holds 8 bytes a video where weights differ,
    nothing where all are 1.
    """

    def __init__(
        self, seed: int, num_videos: int, clips_per_video: int = 1, weights: Float64[np.ndarray, " n"] | None = None
    ) -> None:
        self._seed, self._clips_per_video = seed, clips_per_video
        self._edges: Float64[np.ndarray, " n"] | None = None
        if weights is None:
            self._length = num_videos * clips_per_video
        else:
            edges = np.cumsum(weights * clips_per_video)
            self._length = max(1, round(float(edges[-1])))
            self._edges = edges * (self._length / edges[-1])
        self._epoch: tuple[int, Permutation, float] | None = None

    def __len__(self) -> int:
        """Clips in an epoch."""
        return self._length

    def at(self, epoch: int, place: int) -> tuple[int, int]:
        """The video at a place of an epoch, and which of its clips it is, from 0; any place, in any order."""
        kept = self._epoch
        if kept is None or kept[0] != epoch:
            shift = float(np.random.default_rng([_ORDER, self._seed, epoch]).random())
            kept = self._epoch = (epoch, Permutation(self._length, [_ORDER, self._seed, epoch]), shift)
        _, permutation, shift = kept
        mark = permutation[place]
        if self._edges is None:
            return divmod(mark, self._clips_per_video)
        # Marks lie one apart, from `shift` on; a video has those between its edges.
        video = min(int(np.searchsorted(self._edges, mark + shift, side="right")), len(self._edges) - 1)
        begin = float(self._edges[video - 1]) if video else 0.0
        first = max(0, int(np.ceil(begin - shift)))
        # The sums above are rounded; the comparison that chose the video is what counts.
        first += 1 if first + shift < begin else -1 if first > 0 and first - 1 + shift >= begin else 0
        return video, mark - first


def epoch_order(
    seed: int, epoch: int, weights: Sequence[float | int], clips_per_video: int
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """The order of one epoch as lists: what `EpochOrder` says, for those who sort in it; another shuffle.

    Returns:
        for each place of the epoch the video's number, and which of that video's clips it is, from 0.
    """
    edges = np.cumsum(np.asarray(weights, np.float64) * clips_per_video)
    count = max(1, round(float(edges[-1])))
    rng = np.random.default_rng([_ORDER, seed, epoch])
    marks = np.arange(count) + rng.random()
    videos = np.searchsorted(edges * (count / edges[-1]), marks, side="right").clip(max=len(edges) - 1)
    which = np.arange(count) - np.searchsorted(videos, videos, side="left")
    order = rng.permutation(count)
    return videos[order], which[order]


def word_of(*parts: object) -> int:
    """A number of 64 bits for a name and what belongs to it: the same on every machine and in every run."""
    text = " ".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:8], "little")
