"""Targets of clips that were computed before a run: a folder of shards, each written once, by one writer.

    shard-00000012.safetensors    targets (c, g, t, h, w, d), pixels uint8 (c, t, 3, H, W), seconds float64 (c, t)
    shard-00000012.json           which clips, their checksums, what was skipped; written last: the shard is whole
    manifest.json                 what all of it was made with and from, and a list of the shards

A clip is found by its key (`data.clips.Clip.key`), which names the video, the moments and every setting that its pixels
depend on. The shards lie in the order in which a run of the same seed draws its clips: it reads one after another.
"""

from __future__ import annotations

import hashlib
import json
import threading
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from liteframe.data.clips import Clip
from liteframe.errors import DataError
from liteframe.files import write_whole
from liteframe.tensor_store import CacheStats, KeptTensors, rounded

MANIFEST = "manifest.json"
_FORMAT = 1
_PIXELS = "pixels of "
_OPEN_SHARDS = 8
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class ShardClip:
    """One clip of a shard, with its target float (g, t, h, w, d); `pixels` None leaves them out."""

    index: int
    clip: Clip
    target: Float[Tensor, "g t h w d"]
    pixels: UInt8[Tensor, "f 3 H W"] | None


def shard_path(folder: Path, number: int) -> Path:
    """The tensors of a shard; its record lies beside it, as ``.json``."""
    return folder / f"shard-{number:08d}.safetensors"


def write_shard(folder: Path, number: int, clips: Sequence[ShardClip], skipped: Sequence[dict[str, str]]) -> dict:
    """Write a shard whole or not at all, and its record behind it.

    Args:
        skipped: what could not be read on the way: ``video``, ``reason``, ``message``.

    Returns:
        the record.

    Raises:
        OSError: it cannot be written.
    """
    path = shard_path(folder, number)
    targets = rounded(torch.stack([each.target for each in clips]), torch.float16)
    tensors = {"targets": targets, "seconds": torch.stack([torch.from_numpy(each.clip.seconds) for each in clips])}
    if clips[0].pixels is not None:
        tensors["pixels"] = torch.stack([each.pixels for each in clips if each.pixels is not None])
    data = save(tensors, {"format": str(_FORMAT)})
    write_whole(path, data)
    rows = []
    for row, each in enumerate(clips):
        sums = {name: _checksum(tensor[row]) for name, tensor in tensors.items()}
        about = {"index": each.index, "key": each.clip.key, "video": each.clip.video, "source": each.clip.source}
        seconds = each.clip.seconds.tolist()
        rows.append({**about, "seconds": seconds, "stands_in_for": each.clip.stands_in_for, "checksums": sums})
    record = {"shard": number, "file": path.name, "bytes": len(data), "clips": rows}
    record["sha256"] = hashlib.sha256(data).hexdigest()
    record["skipped"] = list(skipped)
    write_whole(path.with_suffix(".json"), json.dumps(record) + "\n")
    return record


def read_record(folder: Path, number: int, thorough: bool = False) -> dict[str, Any] | None:
    """The record of a shard that is there and whole; None where it has to be made.

    Args:
        thorough: read all of it and compare its SHA-256, and not its size alone.
    """
    path = shard_path(folder, number)
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        is_whole = path.stat().st_size == record["bytes"] and (not thorough or _file_digest(path) == record["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if is_whole else None


def claim(folder: Path, about: Mapping[str, Any]) -> None:
    """Begin a folder for what `about` says, or see that it was begun for the same.

    Raises:
        DataError: it was begun for something else, or holds other files.
    """
    path = folder / "precompute.json"
    about = json.loads(json.dumps({"format": _FORMAT, **about}))
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        if any(not each.name.startswith(".") for each in folder.iterdir()):
            raise DataError(f"{folder}: holds other files and no {path.name}; give an empty folder")
        write_whole(path, json.dumps(about, indent=1) + "\n")
        return
    _compare(folder, _load(path), about)


def write_manifest(folder: Path, identity: Mapping[str, Any], records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Write and return the list of all shards; its presence says that the work is complete."""
    shards = [{name: record[name] for name in ("shard", "file", "bytes", "sha256")} for record in records]
    for shard, record in zip(shards, records, strict=True):
        shard["clips"] = len(record["clips"])
    skipped = {each["video"]: each for record in records for each in record["skipped"]}
    manifest = {
        "format": _FORMAT,
        "identity": dict(identity),
        "clips": sum(shard["clips"] for shard in shards),
        "bytes": sum(shard["bytes"] for shard in shards),
        "skipped": [skipped[video] for video in sorted(skipped)],
        "shards": shards,
    }
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


class TargetShards:
    """Reads what `liteframe precompute` wrote. A `KeptTensors`; threads may share it.

    Args:
        folder: with a manifest.
        identity: what the targets have to be made with, see `TensorStore`; None takes any.

    Attributes:
        stats: clips that were found, were not there, and were damaged, in this process.

    Raises:
        DataError: there is no manifest, it is damaged, or its targets were made otherwise; the message says what
            differs.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        if not path.is_file():
            raise DataError(f"{path}: no such file; make the targets by liteframe precompute, or let it finish")
        manifest = _load(path)
        if identity is not None:
            _compare(self.folder, manifest["identity"], json.loads(json.dumps(dict(identity))))
        self._places: dict[str, tuple[int, int]] = {}
        self._rows: dict[int, list[dict[str, Any]]] = {}
        for shard in manifest["shards"]:
            number = shard["shard"]
            record = _load(shard_path(self.folder, number).with_suffix(".json"))
            self._rows[number] = record["clips"]
            for row, clip in enumerate(record["clips"]):
                self._places.setdefault(clip["key"], (number, row))
        self._open: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._hits = self._misses = self._damaged = 0

    def __len__(self) -> int:
        """Different clips in the shards."""
        return len(self._places)

    @property
    def stats(self) -> CacheStats:
        """A snapshot of the counts."""
        return CacheStats(hits=self._hits, misses=self._misses, damaged=self._damaged)

    def get(self, key: str, source: str = "") -> dict[str, Tensor] | None:
        """``target`` of the clip `key`, or ``pixels`` and ``seconds`` of ``pixels of KEY``; None where it is not there.

        Args:
            source: the video's size now; a clip of another file is not used.
        """
        names = ("pixels", "seconds") if key.startswith(_PIXELS) else ("targets",)
        place = self._places.get(key.removeprefix(_PIXELS))
        found = self._read(*place, names, source) if place is not None else None
        with self._lock:
            self._hits += found is not None
            self._misses += found is None
        return {"target": found["targets"]} if found is not None and "targets" in found else found

    def put(self, key: str, tensors: Mapping[str, Tensor], source: str = "", exact: bool = False) -> dict[str, Tensor]:
        """Nothing is kept, but `tensors` come back rounded, as those of the shards are."""
        return {name: rounded(tensor, None if exact else torch.float16) for name, tensor in tensors.items()}

    def beyond(self, other: KeptTensors | None) -> KeptTensors:
        """These shards, and `other` for the clips that they do not hold."""
        return self if other is None else _Both(self, other)

    def _read(self, number: int, row: int, names: Sequence[str], source: str) -> dict[str, Tensor] | None:
        about = self._rows[number][row]
        if source and about["source"] and source != about["source"]:
            return None
        if any(name not in about["checksums"] for name in names):
            return None
        try:
            with self._lock:
                tensors = {name: self._shard(number).get_slice(name)[row] for name in names}
            is_whole = all(_checksum(tensor) == about["checksums"][name] for name, tensor in tensors.items())
        except (OSError, SafetensorError, RuntimeError):
            is_whole = False
        if not is_whole:
            with self._lock:
                self._damaged += 1
            return None
        return tensors

    def _shard(self, number: int) -> Any:
        """An open shard, mapped into memory; only what is read of it is loaded. Needs the lock."""
        if number in self._open:
            self._open.move_to_end(number)
        else:
            self._open[number] = safe_open(shard_path(self.folder, number), framework="pt")
            while len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        return self._open[number]


class _Both:
    """Shards in front of a store that can be written to."""

    def __init__(self, shards: TargetShards, store: KeptTensors) -> None:
        self._shards, self._store = shards, store

    def get(self, key: str, source: str = "") -> dict[str, Tensor] | None:
        found = self._shards.get(key, source)
        return found if found is not None else self._store.get(key, source)

    def put(self, key: str, tensors: Mapping[str, Tensor], source: str = "", exact: bool = False) -> dict[str, Tensor]:
        return self._store.put(key, tensors, source, exact)


def _checksum(tensor: Tensor) -> str:
    return f"{zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data):08x}"


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
    return digest.hexdigest()


def _load(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); run liteframe precompute again") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: is damaged; run liteframe precompute again")
    return found


def _compare(folder: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for name in sorted({*theirs, *ours}):
        if theirs.get(name) != ours.get(name):
            raise DataError(
                f"{folder}: was made with another '{name}' ({json.dumps(theirs.get(name)):.60}, this run has "
                f"{json.dumps(ours.get(name)):.60}); give another folder"
            )
