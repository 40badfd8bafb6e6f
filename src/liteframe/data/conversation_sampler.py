"""Conversations with the frames of their videos, each a function of the seed and its number alone.

The sibling of `data.clips`: the epoch's order says which conversation comes, its videos are decoded at evenly spread
moments, and one whose video cannot be read is counted and replaced by another. Conversations of similar length come
in the same batch, so that little of it is padding.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64, Int, UInt8
from torch import Tensor

from liteframe.data.clip_frames import file_size
from liteframe.data.conversations import Conversation, VideoRef
from liteframe.data.json_records import BadRecord
from liteframe.data.order import epoch_order
from liteframe.data.skipped import BadVideoPolicy, SkippedVideos
from liteframe.errors import DataError, InputError, VideoError
from liteframe.tensor_store import TensorStore
from liteframe.video.decode import iter_frames
from liteframe.video.sample import Sampling
from liteframe.video.transform import resize

# First words of the random streams of batches and of stand-ins.
_BATCHES, _STAND_IN = 0xB7, 0x52
_MAX_ORDERS_KEPT = 4


@dataclass(frozen=True)
class WatchedConversation:
    """A conversation and what is to be seen of its videos.

    Attributes:
        number: its place in the file, from 0.
        conversation: as it stands there.
        pixels: uint8 (t, 3, H, W), RGB, not normalised; the frames of all its videos, one video behind the other, each
            filled up with its last frame to a multiple of the group. None where `features` are known.
        features: what an encoder made of these frames in an earlier epoch or run; else None.
        seconds: float64 (t,), times of the frames, each video's from its own beginning.
        key: names the videos, their parts and every setting that the pixels depend on.
        source: sizes of the files in bytes: tells when one was replaced.
        stands_in_for: ``FILE:LINE`` of the conversation that should have come; None nearly always.
    """

    number: int
    conversation: Conversation
    pixels: UInt8[Tensor, "t 3 H W"] | None
    features: Tensor | None
    seconds: Float64[np.ndarray, " t"]
    key: str
    source: str
    stands_in_for: str | None = None


class ConversationSampler:
    """Conversations by number, epoch by epoch, each as often as its weight says, in a new order every time."""

    def __init__(
        self,
        conversations: Sequence[Conversation],
        size: tuple[int, int],
        group: int,
        batch: int,
        seed: int = 0,
        skipped: SkippedVideos | None = None,
        window: int = 16,
        isolate: bool = True,
        tokens: TensorStore | None = None,
    ) -> None:
        """Args:
        conversations: at least one.
        size: height and width that frames are squashed to, pixels.
        group: frames that the encoder makes one group of.
        batch: conversations of a step: so many in a row are of similar length.
        seed: 0 or more.
        skipped: the account of unreadable videos; None begins one with the default policy and no list.
        window: batches among which conversations are exchanged to that end; 1 leaves them in random order.
        isolate: decode in a process of its own, so that a decoder that hangs or dies costs one video and not the run.
        tokens: what `keep` stored; a conversation that is found there is not decoded again. None: every one is.
        """
        if not conversations:
            raise DataError("no conversation to learn from; check the file with liteframe data check")
        for name, value, least in (("seed", seed, 0), ("group", group, 1), ("batch", batch, 1), ("window", window, 1)):
            if value < least:
                raise InputError(f"{name}={value}: give {least} or more")
        self.skipped = skipped or SkippedVideos(len(conversations))
        self._conversations = tuple(conversations)
        self._size, self._group, self._batch, self._seed, self._window = size, group, batch, seed, window
        self._isolate = isolate
        self._tokens = tokens
        self._weights = [conversation.weight for conversation in conversations]
        self._length = len(epoch_order(seed, 0, self._weights, 1)[0])
        self._orders: dict[int, Int[np.ndarray, " n"]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Conversations in an epoch."""
        return self._length

    @property
    def num_conversations(self) -> int:
        """Different conversations."""
        return len(self._conversations)

    def watch(self, index: int, num_frames: int, refused: int = 0) -> WatchedConversation:
        """Conversation `index`, counted through all epochs, with at most `num_frames` frames, or one in its place.

        Args:
            refused: how many of those that may come were read and turned down by `refuse`.

        Raises:
            DataError: too many videos cannot be read.
        """
        epoch, place = divmod(index, self._length)
        number = int(self._order(epoch)[place])
        first = self._conversations[number]
        for other in self._candidates(number, epoch):
            try:
                watched = self._read(other, num_frames, None if other == number else first.source)
            except VideoError as error:
                self.skipped.skip(other, error)
                continue
            if refused == 0:
                return watched
            refused -= 1
        raise DataError(
            f"none of the {len(self._conversations)} conversations has a video that can be used; the first: "
            f"{first.source}: {first.videos[0].path}"
        )

    def _candidates(self, number: int, epoch: int) -> Iterator[int]:
        """The conversation itself, then all others in an order that it and the seed decide."""
        yield number
        word = int.from_bytes(hashlib.sha256(self._conversations[number].source.encode()).digest()[:8], "little")
        rng = np.random.default_rng([_STAND_IN, self._seed, word, epoch])
        yield from (other for other in rng.permutation(len(self._conversations)).tolist() if other != number)

    def refuse(self, watched: WatchedConversation, reason: str, message: str) -> None:
        """Count a conversation that was read and cannot be used, as if its video could not be read.

        Raises:
            DataError: there are too many of those now.
        """
        self.skipped.skip(watched.number, VideoError(watched.conversation.source, reason, message))

    def keep(self, watched: WatchedConversation, features: Tensor) -> Tensor:
        """Store what the frozen encoder made of a conversation's frames; returns the features as they will come again.

        They are rounded; a resumed run must not see other values, so it is these that are to be used.
        """
        if self._tokens is None:
            return features
        # Times as integers of the same bits: the store rounds what is floating.
        times = torch.from_numpy(watched.seconds.view(np.int64))
        return self._tokens.put(watched.key, {"features": features.cpu(), "seconds": times}, watched.source)["features"]

    def _order(self, epoch: int) -> Int[np.ndarray, " n"]:
        """The epoch's order, with the conversations of each batch of similar length."""
        with self._lock:
            if epoch not in self._orders:
                while len(self._orders) >= _MAX_ORDERS_KEPT:
                    self._orders.pop(next(iter(self._orders)))
                order = epoch_order(self._seed, epoch, self._weights, 1)[0]
                self._orders[epoch] = self._bucketed(order, np.random.default_rng([_BATCHES, self._seed, epoch]))
            return self._orders[epoch]

    def _bucketed(self, order: Int[np.ndarray, " n"], rng: np.random.Generator) -> Int[np.ndarray, " n"]:
        """Each window sorted by length, cut into batches, the batches shuffled; what is left over comes at the end."""
        if self._window == 1 or self._batch == 1:
            return order
        parts = []
        for start in range(0, len(order), self._window * self._batch):
            window = order[start : start + self._window * self._batch]
            lengths = [num_letters(self._conversations[int(number)]) for number in window]
            window = window[np.argsort(lengths, kind="stable")]
            whole = len(window) // self._batch * self._batch
            batches = window[:whole].reshape(-1, self._batch)
            parts += [batches[rng.permutation(len(batches))].ravel(), window[whole:]]
        return np.concatenate(parts)

    def _read(self, number: int, num_frames: int, stands_in_for: str | None = None) -> WatchedConversation:
        conversation = self._conversations[number]
        share = max(1, num_frames // len(conversation.videos) // self._group) * self._group
        parts = " ".join(f"{video.path} {video.start} {video.end}" for video in conversation.videos)
        # "filled": a short video's frames come several times; tokens kept from before they did are not these.
        key = f"{parts} {share} frames filled {self._size[0]}x{self._size[1]}"
        source = " ".join(file_size(video.path) for video in conversation.videos)
        kept = self._tokens.get(key, source) if self._tokens is not None else None
        if kept is not None:
            self.skipped.note_readable(number)
            times = kept["seconds"].numpy().view(np.float64)
            return WatchedConversation(number, conversation, None, kept["features"], times, key, source, stands_in_for)
        pixels, seconds = [], []
        for video in conversation.videos:
            its_pixels, its_seconds = self._decode(number, video, share)
            pixels.append(its_pixels)
            seconds.append(its_seconds)
        self.skipped.note_readable(number)
        times = np.concatenate(seconds)
        return WatchedConversation(number, conversation, torch.cat(pixels), None, times, key, source, stands_in_for)

    def _decode(
        self, number: int, video: VideoRef, num_frames: int
    ) -> tuple[UInt8[Tensor, "t 3 H W"], Float64[np.ndarray, " t"]]:
        times, pictures = [], []
        faults: list[str] = []
        sampling = Sampling(num_frames=num_frames, start=video.start, end=video.end)
        for time, picture in iter_frames(video.path, sampling, on_warning=faults.append, isolate=self._isolate):
            times.append(time)
            pictures.append(resize(picture[None], self._size))
        if any("frames were wanted" not in fault for fault in faults):
            self.skipped.note_warning(number)
        if not pictures:
            raise VideoError(video.path, "no frames", "no frame could be decoded")
        # As the model will be given them in use.
        shows = sampling.shows_of_each(len(pictures), self._group)
        pictures = [picture for picture in pictures for _ in range(shows)]
        times = [time for time in times for _ in range(shows)]
        filling = -len(pictures) % self._group
        pictures += [pictures[-1]] * filling
        times += [times[-1]] * filling
        return torch.cat(pictures), np.array(times, np.float64)


def num_letters(conversation: Conversation) -> int:
    """How long a conversation's words are."""
    words = [text for turn in conversation.turns for text in (turn.question, turn.answer)]
    return sum(map(len, words)) + len(conversation.system or "")


def usable(
    records: Iterable[Conversation | BadRecord], skipped_list: Path | None, max_bad_share: float | int
) -> tuple[list[Conversation], int]:
    """The conversations among `records`, and how many others there are: they are listed, and too many stop the run.

    Args:
        records: what `read_conversations` gives.
        skipped_list: ``skipped.jsonl``, to which the bad records are added; None: no list.
        max_bad_share: largest share of the records that may be bad.

    Raises:
        DataError: more are bad; the message names the first three by file and line.
    """
    good: list[Conversation] = []
    bad: list[BadRecord] = []
    for record in records:
        if isinstance(record, BadRecord):
            bad.append(record)
        else:
            good.append(record)
    num_records = sum(conversation.num_records for conversation in good) + len(bad)
    if len(bad) > max_bad_share * num_records:
        first = "; ".join(str(record) for record in bad[:3]) + ("; ..." if len(bad) > 3 else "")
        raise DataError(
            f"{len(bad)} of {num_records} records cannot be used, more than max_bad_share={max_bad_share:g} allows: "
            f"{first}. Mend them (liteframe data check FILE shows all), or raise max_bad_share"
        )
    listed = SkippedVideos(num_records, BadVideoPolicy(max_bad_share=1.0), skipped_list)
    for number, record in enumerate(bad):
        listed.skip(number, VideoError(record.source, "bad record", record.reason))
    return good, len(bad)
