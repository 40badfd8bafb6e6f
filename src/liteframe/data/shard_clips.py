"""Clips of videos in tars, read as streams: shuffled, dealt to processes and resumed without an index.

Each clip of a step has a lane of its own, which reads one tar behind the other:

- The tars stand in a row, epoch behind epoch, each epoch in an order of its own (`Permutation`). Of N lanes, lane l
  reads those at the places l, l + N, l + 2 N, ... of the row. So processes, which share a step's clips, share the
  tars, and which tar a clip is from does not hang on how many processes there are.
- Within a tar, the videos are shuffled among each other in blocks of `ShardConfig.buffer`.
- Which video comes at a place of a lane follows from how many videos the tars before it hold. That is known when they
  were read, and written down (`ShardCounts`), so that a resumed run goes straight to its place.
"""

from __future__ import annotations

import json
import tempfile
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from liteframe.data.clip_frames import ClipReader
from liteframe.data.clips import Clip, ClipConfig
from liteframe.data.manifest import VideoEntry
from liteframe.data.order import Permutation, word_of
from liteframe.data.shards import ShardConfig, ShardReader, ShardVideo, common_root
from liteframe.data.skipped import SkippedVideos
from liteframe.errors import DataError, InputError, VideoError
from liteframe.tensor_store import KeptTensors

# First words of the random streams of clips, of the order of tars and of the order in blocks.
_CLIP, _SHARDS, _BLOCK = 0xC2, 0x5A, 0x5B
# Numbers of a tar's videos in the account; the last one is the tar's own.
_PER_SHARD = 1 << 24
_BLOCKS_KEPT = 3


class ShardCounts:
    """How many videos each tar holds: learned by reading it, kept in a file a process, read by all at the start."""

    def __init__(self, folder: Path | None = None, rank: int = 0) -> None:
        """Args:
        folder: where ``shards-RANK.jsonl`` are; None keeps nothing.

        Raises:
            DataError: a file that is something else.
        """
        self._counts: dict[str, int] = {}
        self._path = None if folder is None else folder / f"shards-{rank}.jsonl"
        self._lock = threading.Lock()
        for path in sorted(folder.glob("shards-*.jsonl")) if folder is not None else ():
            # The last line may be half written: by a process that died, or one that writes now.
            lines = path.read_bytes().split(b"\n")[:-1]
            try:
                self._counts.update((record["shard"], int(record["videos"])) for record in map(json.loads, lines))
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{path}: is no list of tars and their counts; delete it") from None
        if self._path is not None and self._path.exists():
            with self._path.open("r+b") as file:
                file.truncate(file.read().rfind(b"\n") + 1)

    def get(self, shard: str) -> int | None:
        """How many videos it holds, if that is known."""
        return self._counts.get(shard)

    def put(self, shard: str, count: int, keep: bool) -> None:
        """Learn it; with `keep` for the next run, too."""
        with self._lock:
            if shard in self._counts:
                return
            self._counts[shard] = count
            if keep and self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                # A run that cannot write it reads more when it is resumed, that is all.
                with suppress(OSError), self._path.open("ab", buffering=0) as file:
                    file.write((json.dumps({"shard": shard, "videos": count}) + "\n").encode())


@dataclass(frozen=True)
class _Block:
    """Some consecutive videos of a tar, unpacked; they go when nobody holds the block any more."""

    videos: Sequence[ShardVideo]
    folder: tempfile.TemporaryDirectory[str]


@dataclass(frozen=True)
class _Found:
    """A video and where it is from.

    Attributes:
        which: which of the video's clips of this epoch, from 0.
        block: holds the file.
    """

    shard: int
    epoch: int
    video: ShardVideo
    which: int
    block: _Block


class ShardClips:
    """Clips of the videos in tars; a `ClipSource`.

    A video that cannot be read leaves its place empty (`clip` gives None), and so do the videos of a tar that was there
    and is gone; a tar that breaks off is used as far as it goes. All of them are named in the account.
    """

    def __init__(
        self,
        shards: Sequence[str],
        config: ClipConfig,
        lanes: int,
        seed: int = 0,
        account: SkippedVideos | None = None,
        reading: ShardConfig | None = None,
        counts: ShardCounts | None = None,
        pixel_store: KeptTensors | None = None,
    ) -> None:
        """Args:
        shards: what `find_shards` gives; at least one. More than `lanes` are read best: each tar by one lane at a time.
        lanes: clips of a step, over all processes.
        """
        if not shards or lanes < 1 or seed < 0:
            raise InputError(
                f"{len(shards)} tars, lanes={lanes}, seed={seed}: give one or more, and a seed of 0 or more"
            )
        self.shards = tuple(shards)
        self.config = config
        self.seed = seed
        self.skipped = account or SkippedVideos(None)
        self.reading = reading or ShardConfig()
        self.counts = counts or ShardCounts()
        self.reader = ClipReader(config, self.skipped, pixel_store)
        self._root = common_root(self.shards)
        self._lanes = [_Lane(self, number, lanes) for number in range(lanes)]

    @property
    def accounts(self) -> tuple[SkippedVideos, ...]:
        """The one account, for `clips.accounts`."""
        return (self.skipped,)

    def clip(self, index: int) -> Clip | None:
        """Clip `index`, 0 or more: place ``index // lanes`` of lane ``index % lanes``.

        Raises:
            DataError: too many videos cannot be read, no tar holds any, or a server cannot be reached.
        """
        place, lane = divmod(index, len(self._lanes))
        found = self._lanes[lane].video(place)
        if found is None:
            return None
        address = f"{self.shards[found.shard]}/{found.video.name}"
        name = address.removeprefix(self._root)
        draw = found.epoch if self.config.repeat_after is None else found.epoch % self.config.repeat_after
        words = [_CLIP, self.seed, word_of(name), draw, found.which]
        number = found.shard * _PER_SHARD + found.video.number
        try:
            return self.reader.clip(VideoEntry(found.video.video, name), number, words, video=address)
        except VideoError as error:
            # It was read from a temporary file, whose name says nothing.
            self.skipped.skip(number, VideoError(address, error.reason, str(error).removeprefix(f"{error.path}: ")))
            return None

    def shard_at(self, place: int) -> tuple[int, int]:
        """The tar at a place of the row, and its epoch."""
        epoch, rest = divmod(place, len(self.shards))
        return Permutation(len(self.shards), [_SHARDS, self.seed, epoch])[rest], epoch

    def report(self, shard: int, reason: str, message: str) -> None:
        """Enter a tar that cannot be read, or not wholly."""
        self.skipped.skip((shard + 1) * _PER_SHARD - 1, VideoError(self.shards[shard], reason, message))

    def close(self) -> None:
        """Give up all connections and unpacked videos."""
        for lane in self._lanes:
            lane.close()


class _Lane:
    """One lane: which video is at each of its places, and the blocks of videos around the place asked for last.

    Its tars are numbered by turns, 0 the first; a turn has as many places as the tar has clips.
    """

    def __init__(self, clips: ShardClips, number: int, lanes: int) -> None:
        self._clips, self._number, self._lanes = clips, number, lanes
        self._size = clips.reading.buffer
        self._block_places = self._size * clips.config.clips_per_video
        self._ends: list[int] = []  # the place behind each turn, as far as known
        self._blocks: OrderedDict[tuple[int, int], _Block] = OrderedDict()
        self._reader: ShardReader | None = None
        self._reader_turn = -1
        self._reading = threading.RLock()  # held while a tar is read
        self._state = threading.Lock()  # held for moments
        self._is_fetching = False

    def video(self, place: int) -> _Found | None:
        """The video at a place; None where it was and is gone."""
        with self._state:
            found = self._look(place)
        if found is None:
            found = self._wait_for(place)
        turn, at, block = found
        number, inside = divmod(at, self._block_places)
        self._fetch(place - inside + self._block_places, turn)
        shard, epoch = self._shard(turn)
        known = self._clips.counts.get(self._clips.shards[shard])
        size = len(block.videos) if known is None else min(self._size, known - number * self._size)
        order = Permutation(size * self._clips.config.clips_per_video, [_BLOCK, self._clips.seed, epoch, shard, number])
        video, which = divmod(order[inside], self._clips.config.clips_per_video)
        if video >= len(block.videos):
            return None
        return _Found(shard, epoch, block.videos[video], which, block)

    def close(self) -> None:
        """Give up what is there; a tar that is being read by another thread is left to it."""
        with self._state:
            self._blocks.clear()
        if self._reading.acquire(blocking=False):
            try:
                self._leave()
            finally:
                self._reading.release()

    def _shard(self, turn: int) -> tuple[int, int]:
        return self._clips.shard_at(turn * self._lanes + self._number)

    def _turn(self, place: int) -> tuple[int, int]:
        """Turn of a place and the place within it; of the first unknown turn, where all known ones end before it."""
        turn = bisect_right(self._ends, place)
        return turn, place - (self._ends[turn - 1] if turn else 0)

    def _look(self, place: int) -> tuple[int, int, _Block] | None:
        """Turn, place within it, and block of a place, if the block is there. Needs the state's lock."""
        turn, at = self._turn(place)
        number, inside = divmod(at, self._block_places)
        block = self._blocks.get((turn, number))
        # Of a turn that nobody knows the end of, what is not in the block may belong to the next.
        is_sure = turn < len(self._ends) or (
            block is not None and inside < len(block.videos) * self._clips.config.clips_per_video
        )
        return (turn, at, block) if block is not None and is_sure else None

    def _wait_for(self, place: int) -> tuple[int, int, _Block]:
        """Read until the block of a place is there."""
        with self._reading:
            while True:
                with self._state:
                    found = self._look(place)
                if found is not None:
                    return found
                turn, at = self._turn(place)
                count = self._clips.counts.get(self._clips.shards[self._shard(turn)[0]])
                if turn == len(self._ends) and count is not None:
                    self._learn_end(turn, count)
                else:
                    self._load(turn, at // self._block_places)

    def _learn_end(self, turn: int, count: int) -> None:
        begin = self._ends[-1] if self._ends else 0
        with self._state:
            self._ends.append(begin + count * self._clips.config.clips_per_video)
        shards, counts = self._clips.shards, self._clips.counts
        if not count and turn + 1 >= len(shards) and all(counts.get(shard) == 0 for shard in shards):
            raise DataError(f"{shards[0]}: neither this tar nor the other {len(shards) - 1} hold a video")

    def _load(self, turn: int, number: int) -> None:
        """Unpack a block; at the end of its tar, note how many videos that holds. Needs the reading lock."""
        shard, _ = self._shard(turn)
        name = self._clips.shards[shard]
        known = self._clips.counts.get(name)
        folder = tempfile.TemporaryDirectory(prefix="liteframe-shard-", ignore_cleanup_errors=True)
        videos: list[ShardVideo] = []
        try:
            reader = self._open(turn, number * self._size)
            reader.pass_over(number * self._size - reader.position)
            videos = reader.take(self._size, Path(folder.name))
            if reader.is_at_end:
                if known is None:
                    self._clips.counts.put(name, reader.position, keep=reader.fault is None)
                why = reader.fault or "it held more when it was first read"
                if reader.fault is not None or (known is not None and reader.position < known):
                    self._clips.report(
                        shard, "truncated", f"breaks off behind {reader.position} videos ({why}); get a new copy"
                    )
        except VideoError as error:
            self._leave()
            if known is None:
                self._clips.counts.put(name, number * self._size, keep=False)
            self._clips.report(shard, error.reason, str(error).removeprefix(f"{error.path}: "))
        except BaseException:
            self._leave()
            raise
        with self._state:
            self._blocks[turn, number] = _Block(videos, folder)
            gone = [self._blocks.popitem(last=False)[1] for _ in range(len(self._blocks) - _BLOCKS_KEPT)]
        for video in (video for block in gone for video in block.videos):
            self._clips.reader.forget(video.video)

    def _open(self, turn: int, position: int) -> ShardReader:
        if self._reader is None or self._reader_turn != turn or self._reader.position > position:
            self._leave()
            self._reader = ShardReader(self._clips.shards[self._shard(turn)[0]], self._clips.reading)
            self._reader_turn = turn
        return self._reader

    def _leave(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader, self._reader_turn = None, -1

    def _fetch(self, place: int, turn: int) -> None:
        """Begin to read the block behind the one in use, in a thread of its own."""
        with self._state:
            if turn < len(self._ends):
                place = min(place, self._ends[turn])
            if self._is_fetching or self._look(place) is not None:
                return
            self._is_fetching = True

        def fetch() -> None:
            try:
                # Whatever is wrong is told to the one who needs the block: it is read again for him.
                with suppress(Exception):
                    self._wait_for(place)
            finally:
                self._is_fetching = False

        # A daemon: a server that does not answer must not keep the program from ending.
        threading.Thread(target=fetch, name="shards", daemon=True).start()
