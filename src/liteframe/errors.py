"""The errors a user may meet.

Each message is one line: which file or value, what is wrong, what to do. The command line prints that line and exits
with status 1; a traceback therefore always means a fault of ours.
"""

from __future__ import annotations

from os import PathLike


class LiteFrameError(Exception):
    """Root of every error that the user, and not the program, can mend."""


class VideoError(LiteFrameError):
    """A video file that cannot be used.

    Attributes:
        path: the file as the caller named it.
        reason: the kind of fault in a few fixed words: ``"not found"``, ``"folder"``, ``"empty"``, ``"unreadable"``,
            ``"truncated"``, ``"not a video"``, ``"no video stream"``, ``"no decoder"``, ``"encrypted"``,
            ``"too large"``, ``"no frames"``, ``"range"``; of decoding that had to be stopped: ``"memory"``, ``"hang"``,
            ``"crash"``; and in training, where the teacher's features of it are NaN or infinite: ``"not finite"``.
    """

    def __init__(self, path: str | PathLike[str], reason: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = str(path)
        self.reason = reason


class VideoWarning(UserWarning):
    """A video that could be used, but not wholly as asked: frames lost, fewer frames than wanted, times estimated."""


class CheckpointError(LiteFrameError):
    """A model folder, hub id or file of a run that cannot be loaded or written; `path` is which."""

    def __init__(self, path: str | PathLike[str], message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = str(path)


class ContextError(LiteFrameError):
    """The video and the question need more tokens than the language model has positions.

    Attributes:
        needed: tokens that the request needs, the room for the answer included.
        limit: positions that the language model has.
        frames_that_fit: the largest number of frames for which the same request fits (0 when none does).
    """

    def __init__(self, message: str, *, needed: int, limit: int, frames_that_fit: int) -> None:
        super().__init__(message)
        self.needed = needed
        self.limit = limit
        self.frames_that_fit = frames_that_fit


class ConfigError(LiteFrameError):
    """A recipe or setting that cannot be used: an unknown key, a wrong type, an impossible value."""


class DataError(LiteFrameError):
    """Data that cannot be used: a bad manifest, too many unreadable videos, a cache of another run."""


class DataWarning(UserWarning):
    """Work goes on, but without something about its data: a cache or a list that can no longer be written."""


class InputError(LiteFrameError, ValueError):
    """An argument that cannot be used: no frames asked for, an empty question, an unknown encoder."""
