"""Uploads and forms: limits, expiry, what is in use, what a killed server leaves."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from liteframe.integrations.server import media
from liteframe.integrations.server.faults import ApiError
from liteframe.integrations.server.forms import UploadForm
from liteframe.integrations.server.media import Uploads

BODY = (
    b"--b0und\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nvision\r\n"
    b"--b0und\r\nContent-Disposition: form-data; name=\"file\"; filename=\"..\\..\\etc/my talk.mp4\"\r\n"
    b"Content-Type: video/mp4\r\n\r\n\r\n--b0un\r\n\x00\xff\r\n--b0und--\r\nepilogue"
)  # fmt: skip
CONTENT = b"\r\n--b0un\r\n\x00\xff"


@pytest.fixture
def now() -> list[float]:
    return [1000.0]


@pytest.fixture
def uploads(now):
    uploads = Uploads(100, 60, clock=lambda: now[0])
    yield uploads
    uploads.close()
    assert not uploads.folder.exists()


def put(uploads: Uploads, content: bytes):
    with uploads.receiving() as receiver:
        receiver.write(content)
        return receiver.keep("a.mp4")


def files(uploads: Uploads) -> int:
    return sum(path.name != ".lock" for path in uploads.folder.iterdir())


def refused(action, *arguments) -> ApiError:
    with pytest.raises(ApiError) as caught:
        action(*arguments)
    return caught.value


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_a_form_is_read_however_it_is_cut(uploads, step):
    with uploads.receiving() as receiver:
        form = UploadForm("multipart/form-data; boundary=b0und", receiver)
        for start in range(0, len(BODY), step):
            form.write(BODY[start : start + step])
        upload = receiver.keep(form.finish())
    assert upload.path.read_bytes() == CONTENT
    assert (upload.name, upload.num_bytes) == ("my talk.mp4", len(CONTENT))
    assert upload.digest == hashlib.sha256(CONTENT).hexdigest()
    assert form.fields == {"purpose": "vision"}


def test_a_form_that_breaks_off_leaves_nothing(uploads):
    for length in (0, 20, 120, len(BODY) - 20):
        with uploads.receiving() as receiver:
            form = UploadForm("multipart/form-data; boundary=b0und", receiver)
            form.write(BODY[:length])
            assert refused(form.finish).status == 400
    assert (files(uploads), uploads.num_bytes) == (0, 0)


def test_two_files_in_a_form_are_refused(uploads):
    part = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n'
    with uploads.receiving() as receiver:
        form = UploadForm("multipart/form-data; boundary=b", receiver)
        assert "more than one file" in str(refused(form.write, part + part))


def test_one_video_and_all_of_them_have_a_limit(uploads):
    with uploads.receiving() as receiver:
        receiver.write(bytes(60))
        receiver.write(bytes(40))
        assert refused(receiver.write, b"x").status == 413
    assert (files(uploads), uploads.num_bytes) == (0, 0)
    stored = [put(uploads, bytes(100)) for _ in range(4)]
    full = refused(put, uploads, b"x")
    assert (full.status, full.code, "Retry-After" in full.headers) == (429, "uploads_full", True)
    uploads.delete(stored[0].id)
    assert put(uploads, bytes(100)).num_bytes == 100
    assert (files(uploads), uploads.num_bytes) == (4, 400)


def test_what_nobody_asks_about_expires(uploads, now):
    first, second = put(uploads, b"first"), put(uploads, b"second")
    now[0] += 59
    with uploads.in_use(second.id):
        now[0] += 2
        assert refused(uploads.get, first.id).status == 404
        now[0] += 1000
        uploads.expire()
        assert second.path.read_bytes() == b"second"  # in use
    now[0] += 59
    assert uploads.get(second.id) is second  # used a moment ago
    now[0] += 1
    assert refused(uploads.get, second.id).code == "file_not_found"
    assert (files(uploads), uploads.num_bytes) == (0, 0)


def test_what_is_in_use_is_removed_afterwards(uploads):
    upload = put(uploads, b"video")
    with uploads.in_use(upload.id), uploads.in_use(upload.id):
        uploads.delete(upload.id)
        assert refused(uploads.get, upload.id).status == 404
        assert refused(uploads.delete, upload.id).status == 404
        assert upload.path.exists()
    assert (files(uploads), uploads.num_bytes) == (0, 0)


def test_a_full_disk_is_503(uploads, monkeypatch):
    with uploads.receiving() as receiver:

        class Full:
            def write(self, data):
                raise OSError(28, "No space left on device", "/secret")

            def close(self):
                pass

        receiver._file = Full()
        error = refused(receiver.write, b"x")
    assert (error.status, "secret" in str(error)) == (503, False)
    assert uploads.num_bytes == 0


def test_others_may_not_read_uploads(uploads):
    assert uploads.folder.stat().st_mode & 0o077 == 0


def test_what_a_killed_server_left_is_removed(tmp_path, monkeypatch):
    """And not what a living one has, nor what only looks like it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = (
        "import os, sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from liteframe.integrations.server.media import Uploads\n"
        "uploads = Uploads(100, 60)\n"
        "(uploads.folder / 'video').write_bytes(b'x'); print(uploads.folder, flush=True); os._exit(9)\n"
    )
    run = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=False)
    left = Path(run.stdout.strip())
    assert (left / "video").exists()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".lock").touch()
    (tmp_path / "liteframe-serve-link").symlink_to(elsewhere)
    (tmp_path / "liteframe-serve-nolock").mkdir()
    living = Uploads(100, 60)
    assert not left.exists()
    other = Uploads(100, 60)
    assert living.folder.exists()
    assert (elsewhere / ".lock").exists()
    assert (tmp_path / "liteframe-serve-nolock").exists()
    descriptor = os.open(living.folder / ".lock", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)
    for uploads in (living, other):
        uploads.close()


def test_a_data_url_is_there_only_while_it_is_open(uploads):
    with media.opened("data:video/mp4;codecs=avc1;base64,dmlkZW8=", uploads, ()) as source:
        assert source.path.read_bytes() == b"video"
        assert source.key == hashlib.sha256(b"video").hexdigest()
    assert (files(uploads), uploads.num_bytes) == (0, 0)
