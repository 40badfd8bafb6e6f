"""Encoded videos on disk: what is found again, what is not, and that answers do not change."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from liteframe import pipeline
from liteframe.encoders import EncoderSource, build_encoder
from liteframe.encoders.pooling import PooledEncoder
from liteframe.encoders.precision import with_precision
from liteframe.errors import ContextError, DataError, VideoError
from liteframe.files import content_digest
from liteframe.pipeline import VideoLLM
from liteframe.token_cache import TokenCache
from liteframe.video.sample import Sampling
from tiny_internvl import make_checkpoint
from tiny_student import make_student

QUESTION = "Where is the bar?"


def make(
    folder: Path | None, encoder: str = "pooled", max_positions: int = 2048, batch_frames: int | None = None
) -> VideoLLM:
    checkpoint = make_checkpoint(max_positions=max_positions)
    built = (
        make_student()
        if encoder == "liteframe"
        else build_encoder(encoder, EncoderSource(checkpoint.model.model.vision_tower))
    )
    model = VideoLLM(checkpoint, built, TokenCache(folder) if folder is not None else None)
    model.batch_frames = batch_frames or model.batch_frames
    return model


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


@pytest.fixture
def nothing_is_read(monkeypatch):
    """Call it, and from then on neither probing, decoding nor encoding is allowed."""

    def forbid(model: VideoLLM) -> None:
        for name in ("probe", "iter_frames"):
            monkeypatch.setattr(pipeline, name, lambda *_, **__: pytest.fail("the video was read"))
        monkeypatch.setattr(type(model.encoder), "forward", lambda *_, **__: pytest.fail("the video was encoded"))

    return forbid


@pytest.mark.parametrize("encoder", ["teacher", "pooled", "liteframe"])
def test_a_video_is_read_once_whoever_asks(clip, tmp_path, encoder, nothing_is_read):
    plain = make(None, encoder, batch_frames=4).watch(clip, num_frames=7)
    first = make(tmp_path / "c", encoder, batch_frames=4)
    answer = first.ask(clip, QUESTION, num_frames=7, max_new_tokens=8)
    assert answer.timings["decode"] > 0
    assert len(entries(tmp_path)) == 1
    later = make(tmp_path / "c", encoder, batch_frames=4)
    nothing_is_read(later)
    for model in (first, later):
        again = model.ask(clip, QUESTION, num_frames=7, max_new_tokens=8)
        assert again.text == answer.text and again.seconds == answer.seconds
        assert again.num_visual_tokens == answer.num_visual_tokens
        assert [again.timings[stage] for stage in ("decode", "preprocess", "encode")] == [0, 0, 0]
        assert torch.equal(model.watch(clip, num_frames=7).visual.embeddings, plain.visual.embeddings)
    assert later.cache.stats.hits == 1  # the second time it was in memory


def test_every_precision_has_its_own_entries(clip, tmp_path):
    exact = make(tmp_path)
    answers = {}
    for precision in ("fp32", "bf16", "int8"):
        encoder = with_precision(exact.encoder, precision)
        for turn in range(2):  # the second finds what the first one left
            model = VideoLLM(exact.checkpoint, encoder, TokenCache(tmp_path))
            embeddings = model.watch(clip, num_frames=6).visual.embeddings
            assert model.cache.stats.hits == turn
            assert turn == 0 or torch.equal(embeddings, answers[precision])
            answers[precision] = embeddings
    assert len(entries(tmp_path)) == 3
    for precision in ("bf16", "int8"):
        assert not torch.equal(answers[precision], answers["fp32"])
        torch.testing.assert_close(answers[precision], answers["fp32"], atol=0.5, rtol=0.5)


def test_the_second_question_by_name_computes_only_its_own_positions(clip, tmp_path):
    model = make(tmp_path)
    positions = []
    model.language.model.model.language_model.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: positions.append((args[0] if args else kwargs["hidden_states"]).shape[1]),
        with_kwargs=True,
    )
    for question in (QUESTION, "And now, after a while?"):
        positions.clear()
        model.ask(clip, question, num_frames=8, max_new_tokens=1)
        prompt = model.language.prompt(model.watch(clip, num_frames=8).visual, question)
        whole = len(prompt.ids)
        last_visual = int(prompt.visual.nonzero()[-1])
        assert positions == [whole if question == QUESTION else whole - last_visual - 1]


def test_a_key_is_the_file_the_sampling_the_pixels_and_the_encoder(clip, tmp_path):
    checkpoint = make_checkpoint()
    tower = checkpoint.model.model.vision_tower
    cache = TokenCache(tmp_path / "c")
    teacher = build_encoder("teacher", EncoderSource(tower))
    copy = tmp_path / "copy of it.mp4"
    shutil.copyfile(clip, copy)
    changed = tmp_path / "changed.mp4"
    data = bytearray(clip.read_bytes())
    data[len(data) // 2] ^= 1
    changed.write_bytes(data)

    def key(video=clip, encoder=teacher, pixels=checkpoint.pixels, **sampling):
        return cache.key(video, Sampling(**{"num_frames": 8, **sampling}), encoder, pixels)

    first = key()
    assert len(first) == 64
    assert key(copy) == key(start=0.0) == key(num_frames=8) == first
    assert key(encoder=build_encoder("teacher", EncoderSource(tower))) == first
    keys = [
        first,
        key(changed),
        key(num_frames=9),
        key(num_frames=None, fps=8.0),
        key(start=0.5),
        key(end=1.0),
        key(max_frames=8),
        key(pixels=checkpoint.pixels.model_copy(update={"height": 112})),
        key(pixels=checkpoint.pixels.model_copy(update={"mean": (0.5, 0.5, 0.5)})),
        key(encoder=build_encoder("teacher", EncoderSource(tower, feature_layer=-2))),
        key(encoder=PooledEncoder(teacher)),
        key(encoder=PooledEncoder(teacher, method="average")),
        key(encoder=PooledEncoder(teacher, alpha=2.0)),
        key(encoder=PooledEncoder(teacher, window=(2, 2, 2))),
        key(encoder=make_student()),
    ]
    with torch.no_grad():
        tower.embeddings.cls_token.add_(1.0)
    keys.append(key())
    tower.to(torch.bfloat16)
    keys.append(key())
    assert len(set(keys)) == len(keys)


def test_a_damaged_entry_is_made_again(clip, tmp_path):
    answer = make(tmp_path).ask(clip, QUESTION, num_frames=6)
    (entry,) = entries(tmp_path)
    data = bytearray(entry.read_bytes())
    data[-100] ^= 0xFF
    entry.write_bytes(data)
    model = make(tmp_path)
    again = model.ask(clip, QUESTION, num_frames=6)
    assert again.text == answer.text
    assert again.timings["decode"] > 0
    assert (model.cache.stats.damaged, model.cache.stats.written) == (1, 1)
    assert make(tmp_path).ask(clip, QUESTION, num_frames=6).timings["decode"] == 0


def test_what_was_told_of_a_video_is_told_again(clip, tmp_path):
    told = []
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make(tmp_path).watch(clip, num_frames=50)
        told.append([(str(warning.message), warning.filename) for warning in caught])
    assert told[0] == told[1]
    assert "20 different ones exist" in told[0][0][0]


def test_a_file_that_changes_while_it_is_watched_is_not_kept(clip, tmp_path):
    video = tmp_path / "growing.mp4"
    shutil.copyfile(clip, video)

    def grow(done, total):
        with video.open("ab") as file:
            file.write(b"more")

    make(tmp_path / "c").watch(video, num_frames=4, on_progress=grow)
    assert not entries(tmp_path / "c")


def test_an_entry_larger_than_the_cache_is_answered_all_the_same(clip, tmp_path):
    model = make(None)
    model.cache = TokenCache(tmp_path, gigabytes=1e-7)
    assert model.ask(clip, QUESTION, num_frames=4).text == make(None).ask(clip, QUESTION, num_frames=4).text
    assert not entries(tmp_path) and model.cache.stats.refused == 1


def test_what_cannot_be_asked_is_refused_with_a_cache_as_without(clip, tmp_path):
    make(tmp_path / "c", "teacher").watch(clip, num_frames=20)
    for folder in (None, tmp_path / "c"):
        model = make(folder, "teacher", max_positions=200)
        with pytest.raises(ContextError):
            model.watch(clip, num_frames=20)
        with pytest.raises(VideoError) as error:
            model.watch(tmp_path / "none.mp4", num_frames=2)
        assert error.value.reason == "not found"


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(DataError, match="holds other files"):
        TokenCache(tmp_path)


def test_the_digest_of_a_small_file_is_of_every_byte(tmp_path):
    path = tmp_path / "small.bin"
    data = bytes(range(256)) * 4096  # 1 MiB
    path.write_bytes(data)
    assert content_digest(path) == hashlib.sha256(len(data).to_bytes(8, "little") + data).hexdigest()


def test_the_digest_of_a_large_file_is_of_64_places(tmp_path):
    path = tmp_path / "large.bin"
    size = 50 * 10**9  # a hole: it takes no room
    with path.open("wb") as file:
        file.truncate(size)
    before = content_digest(path)
    chunk = 64 * 1024
    assert before == hashlib.sha256(size.to_bytes(8, "little") + bytes(64 * chunk)).hexdigest()
    for place in (0, size - 1, (size - chunk) * 31 // 63):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"x")
        after = content_digest(path)
        assert after != before
        before = after


def test_the_digest_of_numbered_pictures_is_of_names_and_contents(tmp_path):
    for index in range(3):
        (tmp_path / f"{index:03}.jpg").write_bytes(bytes([index]) * 9000)
    digests = [content_digest(tmp_path)]
    (tmp_path / "001.jpg").write_bytes(b"\0" * 9000)
    digests.append(content_digest(tmp_path))
    (tmp_path / "002.jpg").rename(tmp_path / "004.jpg")
    digests.append(content_digest(tmp_path))
    assert len(set(digests)) == 3
