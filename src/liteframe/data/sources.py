"""Where clips come from: one folder, list, set of tars or generator, or several of them with weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pydantic

from liteframe.config import Config
from liteframe.data.clip_sampler import ClipSampler
from liteframe.data.clips import ClipConfig, ClipSource
from liteframe.data.manifest import load_manifest
from liteframe.data.mixed_clips import MixedClips
from liteframe.data.needle_clips import NeedleClipConfig, NeedleClips
from liteframe.data.shard_clips import ShardClips, ShardCounts
from liteframe.data.shards import ShardConfig, find_shards
from liteframe.data.skipped import BadVideoPolicy, SkippedVideos
from liteframe.errors import ConfigError
from liteframe.tensor_store import KeptTensors

_SUFFIX = re.compile(r"(\.tar)?\.[a-z0-9]+$", re.IGNORECASE)
_PATTERN = re.compile(r"\{[^}]*\}|[*?\[\]]")


class SourceConfig(Config):
    """One of several sources."""

    path: str | None = None
    """A folder of videos, a list of them, or tars; none is the needle generator."""
    weight: float | int = pydantic.Field(1.0, gt=0, allow_inf_nan=False)
    """Its share of the clips is this over the sum of all weights, however many videos it has."""
    name: str | None = None
    """What the log calls it; none takes the last word of the path that is no pattern, or ``needles``."""

    def title(self) -> str:
        """What the log calls it."""
        if self.name is not None:
            return self.name
        if self.path is None:
            return "needles"
        *folders, last = self.path.partition("?")[0].rstrip("/").split("/")
        # A pattern for all tars of a folder leaves nothing of the file's name.
        for word in (_SUFFIX.sub("", last), *reversed(folders)):
            if name := _PATTERN.sub("", word).strip("-_."):
                return name
        return self.path


@dataclass(frozen=True)
class ClipOpener:
    """Opens sources of clips that are all read alike.

    Attributes:
        videos, needles, shards: how clips are drawn from files, made, and read from tars.
        lanes: clips of a step, over all processes.
        seed: of everything random.
        policy: how many unreadable videos each source may have.
        skipped_list: where they are listed; None: nowhere.
        pixel_store: keeps the pixels of clips.
        counts_folder: where is written down how many videos the tars hold; None: nowhere.
        rank: of this process.
    """

    videos: ClipConfig
    needles: NeedleClipConfig
    shards: ShardConfig
    lanes: int
    seed: int
    policy: BadVideoPolicy
    skipped_list: Path | None = None
    pixel_store: KeptTensors | None = None
    counts_folder: Path | None = None
    rank: int = 0

    def one(self, path: str | None) -> ClipSource:
        """The clips of one source.

        Raises:
            DataError: what is at `path` cannot be used.
        """
        if path is None:
            return NeedleClips(self.needles, self.seed, self.pixel_store)
        shards = find_shards(path)
        if shards is None:
            entries = load_manifest(path)
            account = SkippedVideos(len(entries), self.policy, self.skipped_list)
            return ClipSampler(entries, self.videos, self.seed, account, self.pixel_store)
        return ShardClips(
            shards,
            self.videos,
            self.lanes,
            self.seed,
            SkippedVideos(None, self.policy, self.skipped_list),
            self.shards,
            ShardCounts(self.counts_folder, self.rank),
            self.pixel_store,
        )

    def several(self, sources: Sequence[SourceConfig]) -> MixedClips:
        """The clips of several sources, mixed by weight.

        Raises:
            ConfigError: two of them have one name.
            DataError: see `one`.
        """
        names = [source.title() for source in sources]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"data.sources: two are called '{twice[0]}'; give each a name = \"...\" of its own")
        opened = {name: (self.one(source.path), source.weight) for name, source in zip(names, sources, strict=True)}
        return MixedClips(opened, self.lanes, self.seed)
