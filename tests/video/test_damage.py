"""Files that broke off, were damaged, or are no video at all."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from clips import cut, each_backend, kinds, shown, steady, write

from liteframe.errors import VideoError
from liteframe.video import faults
from liteframe.video.decode import read_video
from liteframe.video.probe import probe


@each_backend
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.mkv", {}),
        ("a.ts", {"container": "mpegts"}),
        ("a.webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}),
        ("a.flv", {}),
        ("a.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}, "options": {"g": "5"}}),
    ],
)
def test_a_break_shows_in_every_container_and_what_is_there_is_read(tmp_path, name, settings, backend):
    whole = write(tmp_path / f"whole_{name}", steady(40), **settings)
    assert shown(whole, backend=backend) == (steady(40), list(range(40)), [])
    assert kinds(whole)[0] == []
    path = cut(whole, tmp_path / name, 0.55)
    seconds, indices, texts = shown(path, backend=backend)
    assert 5 <= len(indices) < 40
    assert (seconds, indices) == (steady(len(indices)), list(range(len(indices))))
    assert kinds(path)[0] == ["truncated"]
    assert any("cut short" in text for text in texts)


def test_half_a_picture_at_a_break_is_no_picture(tmp_path):
    """A JPEG decoder fills the rest with grey and finds nothing wrong."""
    path = write(tmp_path / "a.avi", steady(20), codec="mjpeg", pixel_format="yuvj420p", ticks=10)
    data = path.read_bytes()
    starts = [at for at in range(len(data)) if data[at : at + 3] == b"\xff\xd8\xff"]
    end = data.index(b"\xff\xd9", starts[10])
    path.write_bytes(data[: end - 40])
    seconds, indices, texts = shown(path)
    assert (seconds, indices) == (steady(10), list(range(10)))
    assert [text.split(": ")[1] for text in texts][-1] == "1 damaged packets or pictures were skipped"


def test_lost_frames_are_counted_whoever_swallowed_them(tmp_path):
    path = write(tmp_path / "a.avi", steady(20), codec="mjpeg", pixel_format="yuvj420p", ticks=10)
    data = bytearray(path.read_bytes())
    starts = [at for at in range(len(data)) if data[at : at + 3] == b"\xff\xd8\xff"]
    for at in starts[8:11]:
        data[at : at + 200] = bytes(200)
    path.write_bytes(data)
    _, indices, texts = shown(path)
    assert indices == [*range(8), *range(11, 20)]
    assert [text.split(": ")[1] for text in texts] == ["3 damaged packets or pictures were skipped"]


def _unusable(path: Path, kind: str) -> str:
    """Write a file of that kind; a word that the message must hold."""
    if kind in ("encrypted", "no decoder"):
        tag = {"encrypted": b"encv", "no decoder": b"zzzz"}[kind]
        path.write_bytes(write(path, steady(3)).read_bytes().replace(b"avc1", tag))
        return {"encrypted": "DRM", "no decoder": "zzzz"}[kind]
    if kind == "too large":
        avi = path.with_suffix(".avi")
        data = bytearray(write(avi, steady(3), codec="huffyuv", pixel_format="yuv422p", ticks=10).read_bytes())
        at = data.index(b"strf") + 12
        data[at : at + 8] = (12_000).to_bytes(4, "little") * 2
        path.write_bytes(data)
        return "megapixels"
    if kind == "unreadable":
        import os

        os.mkfifo(path)
        return "pipe"
    contents = {
        "truncated": (bytes(10_000), "zeros"),
        "not a video": (b"<!DOCTYPE html><html><body>403 Forbidden</body></html>" * 9, "page"),
    }
    path.write_bytes(contents[kind][0])
    return contents[kind][1]


@each_backend
@pytest.mark.parametrize("kind", ["encrypted", "no decoder", "too large", "unreadable", "truncated", "not a video"])
def test_what_cannot_be_used_is_told_by_its_kind(tmp_path, kind, backend):
    path = tmp_path / "a.mp4"
    word = _unusable(path, kind)
    for open_it in (probe, partial(read_video, backend=backend)):
        with pytest.raises(VideoError, match=word) as caught:
            open_it(path)
        assert caught.value.reason == kind


def test_a_git_pointer_in_place_of_a_file_is_told(tmp_path):
    (tmp_path / "a.mp4").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(VideoError, match="git lfs pull"):
        probe(tmp_path / "a.mp4")


def test_a_folder_of_other_files_names_one(tmp_path):
    (tmp_path / "holiday.mp4").write_bytes(b"x")
    with pytest.raises(VideoError, match="holiday") as caught:
        probe(tmp_path)
    assert caught.value.reason == "folder"


def test_every_note_says_what_is_done():
    notes = faults.notes_on_picture(
        is_mirrored=True, stored=(720, 576), squared=(1024, 576), is_interlaced=True, has_alpha=True, transfer=16
    )
    kinds = ["mirrored", "pixel aspect", "interlaced", "transparent", "high dynamic range"]
    assert [note.kind for note in notes] == kinds
