"""Encoded videos on disk: a video is decoded and encoded once, whoever asks and whenever.

An entry holds the encoder's features before the projector, so that a language model that was trained further still
finds them. How entries are written, checked, shared and removed: `liteframe.tensor_store`.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from liteframe.encoders.interface import PixelConfig, VideoEncoder
from liteframe.files import content_digest
from liteframe.tensor_store import CacheStats, TensorStore, tensors_digest
from liteframe.types import VideoTokens
from liteframe.version import __version__
from liteframe.video.sample import Sampling

DEFAULT_GIGABYTES = 20.0

# Raised when decoding, resizing or encoding gives other values for the same file and weights.
_ENCODING_VERSION = 3


@dataclass(frozen=True, eq=False)
class CachedVideo:
    """What an entry holds.

    Attributes:
        tokens: on the CPU, in the dtype they were computed in, with the seconds of their frames.
        warnings: what was told when the video was decoded: it is as true of the tokens.
    """

    tokens: VideoTokens
    warnings: tuple[str, ...]


class TokenCache:
    """A folder of encoded videos, of limited size; several encoders, threads and processes may share it.

    Args:
        folder: made if it is not there; an empty one, or one of a `TokenCache`.
        gigabytes: 10^9 bytes of entries, at most; those not used for longest go first.

    Raises:
        DataError: the folder holds something else or cannot be used.
        InputError: no room at all.
    """

    def __init__(self, folder: str | os.PathLike[str], gigabytes: float | int = DEFAULT_GIGABYTES) -> None:
        # Floating values are kept as they come: an answer from the cache is the answer without it.
        self._store = TensorStore(
            Path(folder).expanduser(), {"holds": "video tokens"}, int(gigabytes * 1e9), dtype=None
        )
        self._digests: weakref.WeakKeyDictionary[VideoEncoder, tuple[Any, str]] = weakref.WeakKeyDictionary()

    @property
    def folder(self) -> Path:
        """Where the entries are."""
        return self._store.folder

    @property
    def stats(self) -> CacheStats:
        """What was found, written and removed since the cache was opened, in this process."""
        return self._store.stats

    def key(
        self,
        video: str | os.PathLike[str],
        sampling: Sampling,
        encoder: VideoEncoder,
        pixels: PixelConfig,
        backend: str = "pyav",
    ) -> str:
        """The name of an entry: a hash of all that its tokens depend on.

        That is the file (`files.content_digest`, which says what it reads), the sampling as it was asked for, frame
        size and normalisation, the encoder's settings and the digest of its weights (dtype included), what decodes, and
        the version of this package. Not the device: another one rounds differently, and that is all.

        Raises:
            OSError: the file cannot be read.
        """
        about = {
            "file": content_digest(video),
            "sampling": _plain(sampling),
            "pixels": pixels.model_dump(mode="json"),
            "encoder": encoder.settings(),
            "weights": self._weights_digest(encoder),
            "version": [__version__, _ENCODING_VERSION],
        }
        if backend != "pyav":  # its colours may be rounded otherwise
            about["backend"] = backend
        return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()

    def has(self, key: str) -> bool:
        """Whether there is an entry; it is not read, and may turn out to be damaged."""
        return self._store.has(key)

    def get(self, key: str) -> CachedVideo | None:
        """The entry, or None; a damaged one is removed and counted in `stats`."""
        found = self._store.get(key)
        if found is None:
            return None
        about = json.loads(bytes(found["about"].tolist()))
        seconds = found["seconds"].numpy()
        tokens = VideoTokens(found["features"], len(seconds), about["group_size"], seconds)
        return CachedVideo(tokens, tuple(about["warnings"]))

    def put(self, key: str, video: CachedVideo) -> None:
        """Store an entry whole or not at all; `stats` and a DataWarning tell of a full disk or an entry too large.

        Raises:
            ValueError: tokens without seconds.
        """
        tokens = video.tokens
        if tokens.seconds is None:
            raise ValueError("tokens without the seconds of their frames cannot be asked about")
        about = json.dumps({"group_size": tokens.group_size, "warnings": video.warnings}).encode()
        self._store.put(
            key,
            {
                "features": tokens.features,
                "seconds": torch.from_numpy(tokens.seconds),
                "about": torch.tensor(list(about), dtype=torch.uint8),
            },
        )

    def _weights_digest(self, encoder: VideoEncoder) -> str:
        """Computed once, and again where weights were replaced or written to since."""
        weights = encoder.weights()
        marks = [(name, tensor.data_ptr(), _changes(tensor)) for name, tensor in weights.items()]
        known = self._digests.get(encoder)
        if known is None or known[0] != marks:
            known = marks, tensors_digest(weights)
            self._digests[encoder] = known
        return known[1]


def _changes(tensor: torch.Tensor) -> int:
    """How often torch has written to it; tensors made under inference mode do not count, and cannot be trained."""
    return 0 if tensor.is_inference() else tensor._version


def _plain(sampling: Sampling) -> dict[str, Any]:
    """The same for 8 and 8.0, and for a start at 0 and none."""
    values = {name: None if value is None else float(value) for name, value in asdict(sampling).items()}
    return {**values, "start": values["start"] or 0.0}
