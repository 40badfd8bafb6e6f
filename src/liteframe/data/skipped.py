"""Videos that cannot be read: counted, listed, and, when there are too many of them, a reason to stop."""

from __future__ import annotations

import json
import threading
import warnings
from pathlib import Path

import pydantic

from liteframe.config import Config
from liteframe.errors import DataError, DataWarning, VideoError
from liteframe.files import write_whole

_NUM_NAMED = 3
_PAGE = 2048


class BadVideoPolicy(Config):
    """How many unreadable videos a run puts up with."""

    max_bad_share: float = pydantic.Field(0.05, ge=0, le=1)
    """Largest share of the videos tried that may be unreadable; above it the run stops."""
    min_tried: int = pydantic.Field(100, ge=1)
    """The share is taken of at least so many videos (or of all, where there are fewer): a bad one among the first few
    stops nothing."""


class _NumberSet:
    """A set of whole numbers, one bit each: of millions of videos as well as of a few."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}
        self._count = 0

    def add(self, number: int) -> None:
        page, place = divmod(number, _PAGE)
        bits = self._pages.setdefault(page, bytearray(_PAGE // 8))
        bit = 1 << place % 8
        if not bits[place // 8] & bit:
            bits[place // 8] |= bit
            self._count += 1

    def __len__(self) -> int:
        return self._count


class SkippedVideos:
    """Keeps account of which videos were tried and which were skipped. Safe to use from several threads.

    Its counts start anew with each process; they decide when a run stops, never which clip comes next.
    """

    def __init__(
        self, num_videos: int | None, policy: BadVideoPolicy | None = None, list_path: Path | None = None
    ) -> None:
        """Args:
        num_videos: how many videos there are in all; None: nobody knows.
        policy: when to stop.
        list_path: ``skipped.jsonl``, to which a line ``{"video", "reason", "message"}`` is appended for each video
            that is not in it yet. Of several processes only one should be given it. None: no list.
        """
        self.policy = policy or BadVideoPolicy()
        self.num_warnings = 0
        """Faults in files that could be used nevertheless: frames lost, times estimated."""
        self._num_videos = num_videos
        self._list_path = list_path
        self._listed = _already_listed(list_path) if list_path is not None else set()
        self._tried = _NumberSet()
        self._skipped: dict[int, VideoError] = {}
        self._damaged = _NumberSet()
        self._lock = threading.Lock()

    @property
    def num_tried(self) -> int:
        """Videos that were opened."""
        return len(self._tried)

    @property
    def num_skipped(self) -> int:
        """Videos among them that could not be read, wholly or at the place that was wanted."""
        return len(self._skipped)

    @property
    def num_damaged(self) -> int:
        """Videos that could be used although something is wrong with them."""
        return len(self._damaged)

    @property
    def names(self) -> frozenset[str]:
        """The skipped videos."""
        return frozenset(error.path for error in self._skipped.values())

    def summary(self) -> str:
        """One line for the end of a run."""
        line = f"{self.num_skipped} of {self.num_tried} videos skipped, {self.num_damaged} used although damaged"
        return line + (f"; see {self._list_path}" if self._skipped and self._list_path is not None else "")

    def note_readable(self, number: int) -> None:
        """Video `number` (its place in the manifest) gave a clip."""
        with self._lock:
            self._tried.add(number)

    def note_warning(self, number: int) -> None:
        """Something is wrong with video `number`, but it can be used."""
        with self._lock:
            self.num_warnings += 1
            self._damaged.add(number)

    def skip(self, number: int, error: VideoError) -> None:
        """Video `number` could not be read.

        Raises:
            DataError: they are too many now; the message names the first three.
        """
        with self._lock:
            self._tried.add(number)
            if number not in self._skipped:
                self._skipped[number] = error
                self._append(error)
            least = self.policy.min_tried
            base = max(self.num_tried, least if self._num_videos is None else min(least, self._num_videos))
            if self.num_skipped > self.policy.max_bad_share * base:
                raise DataError(self._too_many())

    def _too_many(self) -> str:
        errors = list(self._skipped.values())[:_NUM_NAMED]
        named = "; ".join(f"{error.path} ({error.reason})" for error in errors)
        more = "; ..." if self.num_skipped > _NUM_NAMED else ""
        where = f" (all in {self._list_path})" if self._list_path is not None else ""
        return (
            f"{self.num_skipped} of {self.num_tried} videos tried cannot be read, more than max_bad_share="
            f"{self.policy.max_bad_share:g} allows: {named}{more}. Mend or remove them{where}, or raise max_bad_share"
        )

    def _append(self, error: VideoError) -> None:
        if self._list_path is None or error.path in self._listed:
            return
        self._listed.add(error.path)
        record = {"video": error.path, "reason": error.reason, "message": str(error)}
        try:
            self._list_path.parent.mkdir(parents=True, exist_ok=True)
            # One short write to a file opened for appending: whole, whoever else appends.
            with self._list_path.open("ab", buffering=0) as file:
                file.write((json.dumps(record) + "\n").encode())
        except OSError as failure:
            warnings.warn(
                f"{self._list_path}: cannot be written ({failure.strerror or failure}); "
                "skipped videos are counted and no longer listed",
                DataWarning,
                stacklevel=3,
            )
            self._list_path = None


def _already_listed(path: Path) -> set[str]:
    """The videos that an earlier run of the same output listed; a last line that broke off is removed."""
    try:
        data = path.read_bytes()
    except OSError:
        return set()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        write_whole(path, whole)
    try:
        return {json.loads(line)["video"] for line in whole.splitlines()}
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path}: is no list of skipped videos; move it away") from None
