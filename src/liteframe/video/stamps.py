"""What the timestamps of a file's packets tell, all in ticks."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import MutableSequence, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import numpy as np
from jaxtyping import Shaped

# Stamps further apart than this many ticks are nonsense, and no longer exact in floating point.
_MAX_TICKS = 1 << 53
# Pictures are stored in another order than shown, but never further apart than this.
_MAX_REORDERED = 16
# More wild stamps than this are no slips, but recordings joined together.
_MAX_WILD_SHARE = 0.05


@dataclass
class Walk:
    """What a walk through packets gathers."""

    stamps: MutableSequence[int | None]
    keys: list[tuple[int, int]]  # presentation stamp, what to seek to
    latest: int | None = None
    last_duration: int = 0
    durations: list[int] | None = None

    def note(self, stamp: int | None, duration: int | None) -> None:
        """Count a packet; the one shown last tells how long it is shown."""
        self.stamps.append(stamp)
        if self.durations is not None and duration:
            self.durations.append(duration)
        if stamp is not None and (self.latest is None or stamp >= self.latest):
            self.latest, self.last_duration = stamp, duration or 0

    def forget_wild(self) -> frozenset[int]:
        """Drop the stamps that many later packets come before: a flipped bit, years ahead. Returns them."""
        wild = _wild(self.stamps)
        if wild:
            self.stamps = [None if stamp in wild else stamp for stamp in self.stamps]
            self.keys = [key for key in self.keys if key[0] not in wild]
        return wild

    def known(self) -> Shaped[np.ndarray, " t"]:
        """The stamps that are there, in increasing order."""
        try:
            return np.sort(np.array(self.stamps, dtype=np.int64))
        except TypeError:  # some are not, which is rare: an hour's stamps are not gone through for it
            return np.array(sorted(stamp for stamp in self.stamps if stamp is not None), dtype=np.int64)
        except OverflowError:  # sums of damaged numbers; `is_timed` will not take them
            return np.array(sorted(stamp for stamp in self.stamps if stamp is not None), dtype=object)

    def before_unknown(self) -> list[int]:
        """For each packet without a stamp the one before it that has one."""
        found: list[int] = []
        last = None
        if None not in self.stamps:
            return found
        for stamp in self.stamps:
            if stamp is not None:
                last = stamp
            elif last is not None:
                found.append(last)
        return found


def is_timed(walk: Walk, known: Shaped[np.ndarray, " t"]) -> tuple[bool, bool]:
    """(whether the timestamps can be used, whether they run backwards): nearly all there, nearly all different."""
    is_forward = all(a <= b for a, b in itertools.pairwise(stamp for stamp, _ in walk.keys))
    is_known = len(known) > 0.9 * len(walk.stamps)
    num_different = 1 + np.count_nonzero(np.diff(known))
    is_sane = is_known and bool(num_different > 0.5 * len(known)) and int(known[-1]) - int(known[0]) < _MAX_TICKS
    return is_sane and is_forward, is_known and not is_forward


def as_fraction(rational: Any) -> Fraction | None:
    """A rational of PyAV as Python's; None where it is not set.

    PyAV 19 has a type of its own, which rounds products to 32 bits and may be 0/1 (not set), 1/0 or 0/0.
    """
    if not rational or not rational.denominator:
        return None
    return Fraction(rational.numerator, rational.denominator)


def are_apart(stamps: Sequence[int | None], ticks: float | Fraction) -> bool:
    """Whether every packet has a stamp, so far from all others that each must be a whole frame."""
    known = sorted(stamp for stamp in stamps if stamp is not None)
    return len(known) == len(stamps) and all(b - a >= ticks for a, b in itertools.pairwise(known))


def shown_from_index(times: Shaped[np.ndarray, " t"], delay: int, end: list[int]) -> MutableSequence[int | None]:
    """When the frames of an index are shown: all but the last ones are known by their decoding times.

    Args:
        times: int64 decoding times, in order.
        delay: from a key frame's decoding time to its presentation time.
        end: presentation times of the file's last packets, in order.
    """
    if not len(times):
        return []
    if abs(delay) + max(-int(times.min()), int(times.max())) >= 1 << 63:
        return [time + delay for time in times.tolist()]  # sums of damaged numbers; `is_timed` will not take them
    begin = int(times[0]) + delay
    num_early = int(np.searchsorted(times, begin))
    if delay and num_early <= len(end) and times[num_early : num_early + 1].tolist() == [begin]:
        # Most encoders take the n-th frame's presentation time as a decoding time some frames later.
        shown = np.append(times[num_early:], np.array(end[len(end) - num_early :], dtype=np.int64))
    else:
        shown = times + delay
    # Of hours, a list of them takes megabytes.
    return cast("MutableSequence[int | None]", array("q", shown.tobytes()))


def _wild(stamps: Sequence[int | None]) -> frozenset[int]:
    """Stamps after which, further on than pictures are reordered, at least two smaller ones come."""
    wild = set()
    least, second = _MAX_TICKS << 10, _MAX_TICKS << 10
    for index in range(len(stamps) - 1, -1, -1):
        beyond = index + _MAX_REORDERED
        ahead = stamps[beyond] if beyond < len(stamps) else None
        if ahead is not None and ahead < second:
            least, second = min(least, ahead), max(least, ahead)
        stamp = stamps[index]
        if stamp is not None and stamp > second:
            wild.add(stamp)
    return frozenset(wild) if len(wild) <= _MAX_WILD_SHARE * len(stamps) else frozenset()
