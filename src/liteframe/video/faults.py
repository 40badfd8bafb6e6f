"""What may be wrong with a file, in words: each kind once, with what is done about it.

A `VideoError` is a file that cannot be used; a `Fault` one that can, with a loss that reading warns of; a note one that
is merely unusual, and is read as a player shows it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from liteframe.errors import VideoError
from liteframe.types import Fault

# First bytes of containers; what of them a broken-off download leaves is still known for what it is.
_EBML, _RIFF, _SEGMENT = b"\x1a\x45\xdf\xa3", b"RIFF", b"\x18\x53\x80\x67"
_BOXES = (b"ftyp", b"mdat", b"moov", b"wide", b"free", b"skip", b"styp", b"moof")
_TS_PACKET = 188
_MAX_BOXES = 200_000
_HEAD_BYTES = 512
# The index is at the file's begin or end; the codec's name is near its start.
_TAG_BYTES = 1 << 20
# More than any camera makes: a larger picture is a damaged header that would take gigabytes.
MAX_PIXELS = 1 << 27

HDR_TRANSFERS = {16: "PQ", 18: "HLG"}


def read_head(path: str | PathLike[str]) -> bytes:
    """The file's first bytes.

    Raises:
        VideoError: what needs no decoder to be told: not found, folder, unreadable, empty.
    """
    file = Path(path)
    try:
        mode = file.stat().st_mode
        if stat.S_ISDIR(mode):
            raise VideoError(path, "folder", _what_folder_holds(file))
        if not stat.S_ISREG(mode):
            # Opening a pipe or a device could wait for ever.
            raise VideoError(path, "unreadable", "is no ordinary file (a pipe or device); write it to a file first")
        with file.open("rb") as opened:
            head = opened.read(_HEAD_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise VideoError(path, "not found", "no such file; check the name and the folder") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise VideoError(path, "unreadable", f"cannot be read ({why}); check its permissions") from None
    if not head:
        raise VideoError(path, "empty", "is empty (0 bytes); copy or download it again")
    return head


def _what_folder_holds(folder: Path) -> str:
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith("."))
    if not names:
        return "is an empty folder; give a video file, or a folder of numbered pictures"
    example = f"such as {folder / names[0]}"
    return f"is a folder of {len(names)} files, and not of numbered pictures; give one file, {example}"


def unopened(path: str | PathLike[str], head: bytes) -> VideoError:
    """Why FFmpeg found no stream: a container that broke off, or no container at all."""
    if head[4:8] in _BOXES or head[:4] in (_EBML, _RIFF):
        return VideoError(path, "truncated", "breaks off before its index (moov atom or header); download it again")
    if not head.strip(b"\0"):
        return VideoError(path, "truncated", "begins with zeros only: its download never finished; download it again")
    start = head.lstrip()[:64].lower()
    what = "is not a video that FFmpeg knows; give an mp4, mkv, webm, mov, avi or ts file"
    if start.startswith(b"version https://git-lfs"):
        what = "is not a video but a Git LFS pointer to one; run `git lfs pull`"
    elif start.startswith((b"<!doctype", b"<html", b"<?xml", b"{", b"[")):
        what = "is not a video but a page or message of a server, saved in its place; download it again"
    return VideoError(path, "not a video", what)


def undecodable(path: str | PathLike[str], faults: list[Fault]) -> VideoError:
    """Why no frame came out of a file that opens."""
    if any(fault.kind == "truncated" for fault in faults):
        return VideoError(path, "truncated", "breaks off before its first whole frame; download it again")
    return VideoError(path, "no frames", "no frame of its video can be decoded; the file is damaged, get a new copy")


def no_video_stream(path: str | PathLike[str]) -> VideoError:
    """Sound, subtitles or a cover picture only."""
    text = "holds no video, only sound, subtitles or a cover; give the file with the picture"
    return VideoError(path, "no video stream", text)


def no_decoder(path: str | PathLike[str], head: bytes) -> VideoError:
    """A codec that this FFmpeg lacks, or that nobody without the key can decode."""
    tag = _codec_tag(path, head)
    if tag in ("encv", "drmi"):
        return VideoError(path, "encrypted", "is encrypted (DRM); get a copy without protection")
    named = f" '{tag}'" if tag.isalnum() else ""
    text = f"this FFmpeg has no decoder for its codec{named}; convert it to H.264 first"
    return VideoError(path, "no decoder", text)


def _codec_tag(path: str | PathLike[str], head: bytes) -> str:
    """The four letters that MP4 names a codec by, '' where they cannot be found."""
    if head[4:8] not in _BOXES:
        return ""
    size = Path(path).stat().st_size
    with Path(path).open("rb") as file:
        data = file.read(_TAG_BYTES)
        file.seek(max(size - _TAG_BYTES, 0))
        data += file.read()
    at = data.find(b"stsd")
    return data[at + 16 : at + 20].decode("ascii", errors="replace").strip() if at >= 0 else ""


def too_large(path: str | PathLike[str], width: int, height: int) -> VideoError:
    """A picture size that only a damaged header names."""
    text = f"claims pictures of {width} x {height}, more than {MAX_PIXELS >> 20} megapixels; its header is damaged"
    return VideoError(path, "too large", text)


def out_of_memory(path: str | PathLike[str]) -> VideoError:
    """Decoding wanted more memory than there is, or than it was allowed."""
    return VideoError(path, "memory", "needs more memory to decode than it may have; give it a higher limit")


def missing_frames(num_promised: int, num_present: int) -> Fault:
    """The header knows of more frames than there are."""
    return Fault(
        "truncated",
        f"the header promises {num_promised} frames, {num_present} are there: the file was cut short; "
        "those that are there are read",
    )


def missing_seconds(promised: float, found: float) -> Fault:
    """The header knows of a longer video than there is."""
    text = (
        f"the header promises {promised:.1f} s, {found:.1f} s are there: the file was cut short; what is there is read"
    )
    return Fault("truncated", text)


def missing_bytes(path: str | PathLike[str], head: bytes) -> Fault | None:
    """A fault when the container's own sizes reach beyond the end of the file. Reads a few bytes a box."""
    size = Path(path).stat().st_size
    try:
        with Path(path).open("rb") as file:
            declared = _declared_bytes(file, head, size)
    except OSError:
        return None
    if declared is None or declared <= size:
        return None
    return Fault(
        "truncated",
        f"the file should have {declared:,} bytes or more and has {size:,}: it was cut short; what is there is read",
    )


def _declared_bytes(file: BinaryIO, head: bytes, size: int) -> int | None:
    """How long the container says that it is; None where it does not say."""
    if head[:4] == _RIFF:
        return 8 + int.from_bytes(head[4:8], "little")
    if head[:4] == _EBML:
        return _end_of_segment(head)
    if head[0] == 0x47 and head[_TS_PACKET : _TS_PACKET + 1] == b"\x47":
        return -(-size // _TS_PACKET) * _TS_PACKET
    return _end_of_boxes(file, size) if head[4:8] in _BOXES else None


def _end_of_boxes(file: BinaryIO, size: int) -> int | None:
    """Where the last box of an MP4 ends; None when it reaches to the end of the file, however long that is."""
    at = 0
    for _ in range(_MAX_BOXES):
        file.seek(at)
        box = file.read(16)
        length = int.from_bytes(box[:4], "big") if len(box) >= 8 else 0
        if length == 1:
            length = int.from_bytes(box[8:16], "big")
        # A name that is no text is no box, but rubbish behind the last one.
        if length < 8 or not box[4:8].isalnum():
            return None
        at += length
        if at >= size:
            return at
    return None


def _end_of_segment(head: bytes) -> int | None:
    """Where a Matroska file ends; None where it does not say, as a live recording does not."""
    length, after = _ebml_size(head, 4)
    segment = after + (length or 0)
    if length is None or head[segment : segment + 4] != _SEGMENT:
        return None
    length, after = _ebml_size(head, segment + 4)
    return None if length is None else after + length


def _ebml_size(head: bytes, at: int) -> tuple[int | None, int]:
    """(a Matroska element's length, where it begins); None where it is unknown, as in a live recording."""
    if at >= len(head) or head[at] == 0:
        return None, at
    width = 9 - head[at].bit_length()
    value = int.from_bytes(head[at : at + width], "big") & ((1 << 7 * width) - 1)
    return (None if value == (1 << 7 * width) - 1 else value), at + width


def no_timestamps(frames_per_second: float, is_backwards: bool) -> Fault:
    """Timestamps that are missing or of no use."""
    if is_backwards:
        what = "timestamps start again in the middle (recordings joined together)"
        return Fault("timestamps restart", f"{what}: times are estimated at {frames_per_second:g} frames/s")
    return Fault("no timestamps", f"no usable timestamps: times are estimated at {frames_per_second:g} frames/s")


def undecodable_start(count: int) -> Fault:
    """A recording that begins between two key frames."""
    return Fault(
        "late start",
        f"{count} pictures at the start need an earlier one that is not in the file: they are left out, and time "
        "counts from the first whole picture",
    )


def missing_pictures(count: int) -> Fault:
    """Numbers that are left out in a folder of pictures."""
    return Fault("gap", f"{count} numbers are left out among the pictures: the one before each is shown longer")


def notes_on_stream(num_streams: int, index: int, num_hidden: int, num_stored: int) -> Iterator[Fault]:
    """What is unusual about a file's make-up."""
    if num_streams > 1:
        yield Fault("several streams", f"{num_streams} video streams: stream {index} is read")
    if num_hidden > 0:
        text = f"an edit list leaves out {num_hidden} of {num_stored} stored frames, and so do we, as players do"
        yield Fault("edit list", text)


def notes_on_picture(
    *,
    is_mirrored: bool,
    stored: tuple[int, int],
    squared: tuple[int, int],
    is_interlaced: bool,
    has_alpha: bool,
    transfer: int,
) -> Iterator[Fault]:
    """What is unusual about a file's pictures besides their rotation; sizes are (width, height) before the turn."""
    if is_mirrored:
        yield Fault("mirrored", "the picture is stored mirrored: frames are mirrored back, left to right")
    if stored != squared:
        sizes = f"{stored[0]} x {stored[1]} is stretched to {squared[0]} x {squared[1]}"
        yield Fault("pixel aspect", f"pixels are not square: {sizes}")
    if is_interlaced:
        yield Fault("interlaced", "both fields of a frame are kept as one picture, as stored; moving edges show a comb")
    if has_alpha:
        yield Fault("transparent", "transparent parts are laid over white")
    if transfer in HDR_TRANSFERS:
        text = f"high dynamic range ({HDR_TRANSFERS[transfer]}): read without tone mapping, so colours look pale"
        yield Fault("high dynamic range", text)
