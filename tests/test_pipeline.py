"""From a file to an answer, with a tiny random model: the whole path, its promises and its refusals."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest
import torch

import liteframe
from liteframe import pipeline
from liteframe.encoders import ENCODERS, EncoderSource, build_encoder
from liteframe.errors import CheckpointError, ContextError, InputError, VideoError, VideoWarning
from liteframe.language.loading import load_checkpoint, save_checkpoint
from liteframe.language.prompt import Dialogue
from liteframe.pipeline import STAGES, VideoLLM
from liteframe.video import batches
from liteframe.video.decode import read_video
from liteframe.video.transform import normalize, resize
from tiny_internvl import make_checkpoint
from tiny_student import make_student

QUESTION = "Where is the bar?"


def make(encoder: str = "teacher", max_positions: int = 2048, prompt: str = "internvl") -> VideoLLM:
    checkpoint = make_checkpoint(max_positions=max_positions, prompt=prompt)
    if encoder == "liteframe":
        return VideoLLM(checkpoint, make_student())
    return VideoLLM(checkpoint, build_encoder(encoder, EncoderSource(checkpoint.model.model.vision_tower)))


@pytest.fixture(scope="module")
def model() -> VideoLLM:
    return make()


@pytest.mark.parametrize("encoder", list(ENCODERS))
@pytest.mark.parametrize("num_frames", [1, 6])
def test_an_answer_says_what_it_is(clip, encoder, num_frames):
    model = make(encoder)
    answer = model.ask(clip, QUESTION, num_frames=num_frames, max_new_tokens=5)
    assert answer.num_frames == num_frames == len(answer.seconds)
    slots = -(-num_frames // model.encoder.group_size)
    assert answer.num_visual_tokens == slots * (4 if encoder == "teacher" else 1)
    assert tuple(answer.timings) == STAGES
    assert all(seconds > 0 for stage, seconds in answer.timings.items() if stage != "generate")
    assert (answer.model, answer.encoder, answer.video) == ("tiny", encoder, str(clip))


def test_streaming_equals_all_at_once(clip, model, monkeypatch):
    """Frames resized one at a time and encoded in batches give what the whole clip at once gives."""
    monkeypatch.setattr(model, "batch_frames", 3)
    encoded = model.watch(clip, num_frames=8)
    frames = read_video(clip, num_frames=8)
    pixels = normalize(resize(frames.pixels, (56, 56)), model.checkpoint.pixels.mean, model.checkpoint.pixels.std)
    expected = model.language.visual(model.encoder.encode(pixels, frames.seconds))
    # 1e-4: batches of 3 and of 8 may be added up in another order; see tests/parity.
    torch.testing.assert_close(encoded.visual.embeddings, expected.embeddings, atol=1e-4, rtol=0)
    np.testing.assert_array_equal(encoded.seconds, frames.seconds)
    assert encoded.visual.slots.num_frames == 8


@pytest.mark.parametrize("num_frames", [5, 8])
def test_groups_do_not_straddle_batches(clip, monkeypatch, num_frames):
    model = make("pooled")
    whole = model.watch(clip, num_frames=num_frames).visual.embeddings
    monkeypatch.setattr(model, "batch_frames", 4)
    torch.testing.assert_close(model.watch(clip, num_frames=num_frames).visual.embeddings, whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("span", [(None, None), (0.2, 0.6)])
def test_a_short_videos_frames_fill_groups_of_their_own(clip, monkeypatch, span):
    """Against the frames read, repeated by hand and encoded at once; a teacher sees each of them once."""
    model = make("liteframe")
    monkeypatch.setattr(model, "batch_frames", 8)
    start, end = span
    frames = read_video(clip, start=start, end=end)
    count = len(frames.pixels)
    pixels = normalize(resize(frames.pixels, (56, 56)), model.checkpoint.pixels.mean, model.checkpoint.pixels.std)
    expected = model.language.visual(model.encoder.encode(pixels.repeat_interleave(4, 0)))
    encoded = model.watch(clip, num_frames=4 * count, start=start, end=end)
    assert encoded.num_frames == 4 * count == 4 * len(set(encoded.seconds.tolist()))
    np.testing.assert_array_equal(encoded.seconds, frames.seconds.repeat(4))
    torch.testing.assert_close(encoded.visual.embeddings, expected.embeddings, atol=1e-4, rtol=0)
    assert make().watch(clip, num_frames=4 * count, start=start, end=end).num_frames == count
    assert model.watch(clip, num_frames=4 * count - 1, start=start, end=end).num_frames == 2 * count


def test_memory_never_holds_the_whole_video(clip, model, monkeypatch):
    """Full-size frames are shrunk one by one, and no more small ones than a batch are encoded at once."""
    monkeypatch.setattr(model, "batch_frames", 4)
    resized, encoded = [], []
    forward = type(model.encoder).forward

    def spy_resize(frames, size, device):
        resized.append(len(frames))
        return resize(frames, size, device)

    def spy_forward(self, pixels, num_frames=None, seconds=None):
        encoded.append(len(pixels))
        return forward(self, pixels, num_frames, seconds)

    monkeypatch.setattr(batches, "resize", spy_resize)
    monkeypatch.setattr(type(model.encoder), "forward", spy_forward)
    model.watch(clip, num_frames=10)
    assert resized == [1] * 10
    assert encoded == [4, 4, 2]


def spied(monkeypatch, before=lambda index: None) -> list[int]:
    """Writes down the frames that are decoded, and calls `before` with the number of each. They count as large ones."""
    monkeypatch.setattr(batches, "_HANDFUL_BYTES", 1)
    decoded: list[int] = []
    iter_frames = pipeline.iter_frames

    def spy(*arguments, **options):
        for index, item in enumerate(iter_frames(*arguments, **options)):
            before(index)
            decoded.append(index)
            yield item

    monkeypatch.setattr(pipeline, "iter_frames", spy)
    return decoded


def decoders() -> list[str]:
    names = {"liteframe-decode", "liteframe-preprocess"}
    return [thread.name for thread in threading.enumerate() if thread.name in names]


def test_the_next_batch_is_decoded_while_this_one_is_encoded_and_no_more(clip, model, monkeypatch):
    monkeypatch.setattr(model, "batch_frames", 4)
    is_ahead, seen = threading.Event(), []
    decoded = spied(monkeypatch, lambda index: is_ahead.set() if index == 11 else None)
    forward = type(model.encoder).forward

    def slow_forward(self, pixels, num_frames=None, seconds=None):
        if not seen:
            # The third batch is read to its last frame while the first has not been encoded: two wait, one is made. Of
            # the fourth, one frame waits, and one is made.
            assert is_ahead.wait(20)
            threading.Event().wait(0.05)
        seen.append(len(decoded))
        return forward(self, pixels, num_frames, seconds)

    monkeypatch.setattr(type(model.encoder), "forward", slow_forward)
    assert model.watch(clip, num_frames=20).num_frames == 20
    assert seen[0] == 14
    assert all(ahead <= 4 * (batch + 3) + 2 for batch, ahead in enumerate(seen))
    assert not decoders()


def test_an_error_of_the_decoder_reaches_the_caller_unchanged(clip, model, monkeypatch):
    error = VideoError(clip, "truncated", "the rest is missing")

    def fail(index):
        if index == 5:
            raise error

    spied(monkeypatch, fail)
    with pytest.raises(VideoError) as raised:
        model.ask(clip, QUESTION, num_frames=8)
    assert raised.value is error
    assert not decoders()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["encode", "progress"])
def test_stopping_early_leaves_no_thread_and_reads_no_further(clip, model, monkeypatch, where, error):
    monkeypatch.setattr(model, "batch_frames", 2)
    decoded = spied(monkeypatch)

    def stop(*arguments, **named):
        raise error

    if where == "encode":
        monkeypatch.setattr(type(model.encoder), "forward", stop)
    with pytest.raises(error):
        model.watch(clip, num_frames=20, on_progress=stop)
    assert not decoders()
    assert len(decoded) <= 8


def test_a_warning_of_the_decoder_is_told_in_the_callers_thread(clip, model):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        encoded = model.watch(clip, num_frames=50)
    assert encoded.num_frames == 20
    assert [(str(w.message), w.category) for w in told] == [
        (f"{clip}: 50 frames were wanted, 20 different ones exist at those times", VideoWarning)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(VideoWarning):
            model.watch(clip, num_frames=50)
    assert not decoders()


def test_stages_are_counted_while_they_work_and_the_clock_beside_them(clip, model):
    encoded = model.watch(clip, num_frames=8)
    assert set(encoded.timings) == {"decode", "preprocess", "encode"}
    # Each of these runs in one thread, inside the call.
    assert 0 < encoded.timings["decode"] < encoded.wall_seconds
    assert 0 < encoded.timings["encode"] < encoded.wall_seconds
    answer = model.ask(encoded, QUESTION, max_new_tokens=3)
    assert answer.timings["prefill"] + answer.timings["generate"] < answer.wall_seconds
    assert list(answer.as_dict()) == [
        "text", "num_frames", "num_visual_tokens", "timings", "model", "encoder", "video", "seconds"
    ]  # fmt: skip


@pytest.mark.parametrize("encoder", ["teacher", "pooled"])
def test_two_questions_on_one_watch_equal_two_fresh_asks(clip, encoder):
    model = make(encoder)
    watched = model.watch(clip, num_frames=6)
    for question in (QUESTION, "What colour is it?"):
        again = model.ask(watched, question, max_new_tokens=10)
        fresh = model.ask(clip, question, num_frames=6, max_new_tokens=10)
        assert (again.text, again.seconds, again.num_visual_tokens) == (
            fresh.text,
            fresh.seconds,
            fresh.num_visual_tokens,
        )
        assert again.timings["decode"] == again.timings["preprocess"] == again.timings["encode"] == 0
        assert again.timings["prefill"] > 0


@pytest.mark.parametrize("prompt", ["internvl", "timestamps"])
@pytest.mark.parametrize("encoder", ["teacher", "pooled"])
def test_context_is_checked_before_decoding(clip, encoder, prompt, monkeypatch):
    model = make(encoder, max_positions=200 if encoder == "teacher" else 100, prompt=prompt)
    decoded = []

    def spy(*arguments, **options):
        decoded.append(arguments)
        return iter_frames(*arguments, **options)

    iter_frames = pipeline.iter_frames
    monkeypatch.setattr(pipeline, "iter_frames", spy)
    with pytest.raises(ContextError) as error:
        model.ask(clip, QUESTION, num_frames=20, max_new_tokens=8)
    assert not decoded
    fits = error.value.frames_that_fit
    assert 0 < fits < 20
    assert model.ask(clip, QUESTION, num_frames=fits, max_new_tokens=8).num_frames == fits
    with pytest.raises(ContextError):
        model.ask(clip, QUESTION, num_frames=fits + 1, max_new_tokens=8)
    with pytest.raises(ContextError):
        make(encoder, max_positions=64, prompt=prompt).watch(clip, num_frames=20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"question": " "}, "empty"),
        ({"question": "<IMG_CONTEXT>?"}, "marker"),
        ({"num_frames": 0}, "num_frames"),
        ({"num_frames": 2, "fps": 1.0}, "one of the two"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_bad_arguments_are_refused_before_decoding(clip, model, monkeypatch, arguments, message):
    monkeypatch.setattr(pipeline, "iter_frames", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(InputError, match=message):
        model.ask(clip, **{"question": QUESTION, **arguments})


def test_bad_files_are_named(model, tmp_path):
    with pytest.raises(VideoError) as error:
        model.ask(tmp_path / "nowhere.mp4", QUESTION)
    assert "nowhere.mp4" in str(error.value)


def test_an_encoded_video_keeps_its_frames_and_its_model(clip, model):
    watched = model.watch(clip, num_frames=2)
    assert repr(watched).endswith("clip.mp4: 2 frames by teacher, VisualTokens(2 slots of 4 tokens, width 48))")
    with pytest.raises(InputError, match=r"choose its frames in watch\(\)"):
        model.ask(watched, QUESTION, num_frames=4)
    with pytest.raises(InputError, match="was encoded for tiny by teacher"):
        make("pooled").ask(watched, QUESTION)


def test_sampling_arguments_reach_the_video(clip, model):
    assert model.watch(clip, fps=5.0).num_frames == 10
    assert model.watch(clip, fps=5.0, max_frames=4).num_frames == 4
    seconds = model.watch(clip, num_frames=3, start=1.0, end=1.6).seconds
    assert seconds.min() >= 1.0
    assert seconds.max() < 1.6


def test_progress_and_text_come_as_they_are_made(clip, model, monkeypatch):
    monkeypatch.setattr(model, "batch_frames", 4)
    pieces: list[str] = []
    progress: list[tuple[int, int]] = []
    answer = model.ask(
        clip,
        QUESTION,
        num_frames=6,
        temperature=1.0,
        seed=1,
        on_text=pieces.append,
        on_progress=lambda done, total: progress.append((done, total)),
    )
    assert "".join(pieces) == answer.text
    assert progress == [(4, 6), (6, 6)]
    assert model.ask(clip, QUESTION, num_frames=6, temperature=1.0, seed=1).text == answer.text


def test_save_and_load_keep_the_answer_and_the_encoder(clip, tmp_path):
    model = make("pooled")
    model.save_pretrained(tmp_path / "model")
    loaded = liteframe.VideoLLM.from_pretrained(tmp_path / "model", device="cpu", dtype="float32")
    assert loaded.encoder.name == "pooled"
    ours, theirs = (m.ask(clip, QUESTION, num_frames=5, max_new_tokens=10) for m in (model, loaded))
    assert ours.text == theirs.text
    other = VideoLLM.from_pretrained(tmp_path / "model", encoder="teacher", device="cpu", dtype="float32")
    assert other.encoder.name == "teacher"
    with pytest.raises(InputError, match="unknown; use one of"):
        VideoLLM.from_pretrained(tmp_path / "model", encoder="fast", device="cpu")
    with pytest.raises(CheckpointError, match="not empty"):
        model.save_pretrained(tmp_path / "model")


def test_save_and_load_keep_the_student(clip, tmp_path):
    model = make("liteframe")
    model.save_pretrained(tmp_path / "model")
    loaded = VideoLLM.from_pretrained(tmp_path / "model", device="cpu", dtype="float32")
    assert loaded.encoder.name == "liteframe"
    ours, theirs = (m.ask(clip, QUESTION, num_frames=5, max_new_tokens=10) for m in (model, loaded))
    assert ours.text == theirs.text
    assert oct((tmp_path / "model" / "liteframe" / "model.safetensors").stat().st_mode)[-3:] == "644"
    by_folder = VideoLLM.from_pretrained(
        tmp_path / "model", encoder=str(tmp_path / "model" / "liteframe"), device="cpu", dtype="float32"
    )
    assert by_folder.ask(clip, QUESTION, num_frames=5, max_new_tokens=10).text == ours.text


def test_frames_too_odd_for_the_encoder_are_refused_at_the_start(tmp_path):
    checkpoint = make_checkpoint()
    checkpoint.pixels = checkpoint.pixels.model_copy(update={"height": 60})
    save_checkpoint(checkpoint, tmp_path / "model")
    with pytest.raises(InputError, match="multiples of 14"):
        VideoLLM.from_pretrained(tmp_path / "model", device="cpu")


def test_an_adapter_is_merged_once_into_a_checkpoint_that_is_shared(mini):
    checkpoint = load_checkpoint(mini, "cpu")
    before = {name: value.clone() for name, value in checkpoint.model.state_dict().items()}
    unadapted = VideoLLM.from_pretrained(checkpoint, encoder="teacher")
    assert unadapted.checkpoint is checkpoint and not checkpoint.is_adapted
    assert all(torch.equal(value, before[name]) for name, value in checkpoint.model.state_dict().items())
    expected = VideoLLM.from_pretrained(mini, encoder="liteframe", device="cpu").checkpoint.model.state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in expected.items())
    for _ in range(2):
        adapted = VideoLLM.from_pretrained(checkpoint, encoder="liteframe")
        assert adapted.checkpoint.is_adapted and checkpoint.is_adapted
        assert all(torch.equal(value, expected[name]) for name, value in adapted.checkpoint.model.state_dict().items())


def test_the_miniature_answers(mini, clip):
    answer = VideoLLM.from_pretrained(mini, device="cpu").ask(clip, "What is shown?", num_frames=4)
    assert answer.model == "mini"


def test_isolated_files_are_opened_elsewhere_and_give_the_same(clip, model, monkeypatch):
    import av

    expected = model.watch(clip, num_frames=6)
    apart = VideoLLM(model.checkpoint, model.encoder, isolate=True)
    monkeypatch.setattr(av, "open", lambda *_, **__: pytest.fail("opened in this process"))
    watched = apart.watch(clip, num_frames=6)
    assert torch.equal(watched.visual.embeddings, expected.visual.embeddings)
    np.testing.assert_array_equal(watched.seconds, expected.seconds)


def test_isolated_files_that_do_not_tell_their_length_are_not_opened_to_count(clip, model, monkeypatch):
    from dataclasses import replace

    apart = VideoLLM(model.checkpoint, model.encoder, isolate=True)
    probe = pipeline.probe
    monkeypatch.setattr(pipeline, "probe", lambda *a, **o: replace(probe(*a, **o), num_frames=None))
    monkeypatch.setattr(pipeline, "expected_frames", lambda *_: pytest.fail("opened in this process"))
    told = []
    watched = apart.watch(clip, num_frames=6, on_progress=lambda *step: told.append(step))
    assert (watched.num_frames, told) == (6, [(6, 6)])


def test_what_will_be_asked_is_weighed_before_watching(clip, model, monkeypatch):
    decoded = spied(monkeypatch)
    with pytest.raises(ContextError):
        model.watch(clip, num_frames=4, question="What? " * 2000)
    with pytest.raises(ContextError):
        model.watch(clip, num_frames=4, question=QUESTION, max_new_tokens=2048)
    assert not decoded
    assert model.watch(clip, num_frames=4, question=QUESTION, max_new_tokens=8).num_frames == 4


def test_an_earlier_turn_changes_the_answers_logits_and_not_the_videos_tokens(clip, model):
    """The prompt of a dialogue begins with the same video, so that keys and values of it are used again."""
    watched = model.watch(clip, num_frames=4)
    fresh = model.language.generate(watched.visual, QUESTION, max_new_tokens=6)
    dialogue = Dialogue(QUESTION, (("What is shown?", "a bar"),))
    with_history = model.language.generate(watched.visual, dialogue, max_new_tokens=6)
    again = model.language.generate(watched.visual, QUESTION, max_new_tokens=6)
    assert again.text == fresh.text
    alone = VideoLLM(model.checkpoint, model.encoder)  # nothing kept of an earlier question
    assert alone.language.generate(watched.visual, dialogue, max_new_tokens=6).text == with_history.text
