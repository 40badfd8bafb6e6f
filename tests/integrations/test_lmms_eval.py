"""The model that lmms-eval is given: what it makes of a request; and, where that is installed, in lmms-eval itself.

lmms-eval needs an environment of its own (docs/harnesses.md). In the usual one the second half is skipped by name.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from shutil import copy
from types import SimpleNamespace

import pytest

from liteframe.errors import InputError
from liteframe.evaluation.runner import evaluate
from liteframe.integrations.lmms_eval import LiteFrame, task_folder

in_lmms_eval = pytest.mark.skipif(
    find_spec("lmms_eval") is None, reason="lmms-eval is not installed: docs/harnesses.md says how to run these tests"
)


class Model:
    """Remembers what it watched and was asked."""

    def __init__(self) -> None:
        self.watched: list[tuple] = []
        self.asked: list[tuple] = []

    def watch(self, video: str, *, num_frames: int, start: float | None, end: float | None) -> str:
        self.watched.append((video, num_frames, start, end))
        return video

    def ask(self, video: str, question: str, **settings: float) -> SimpleNamespace:
        self.asked.append((video, question, settings))
        return SimpleNamespace(text=f"{question}! of {video}. More")


@pytest.fixture
def lite() -> LiteFrame:
    made = LiteFrame.__new__(LiteFrame)  # what loads a model is lmms-eval's part below
    made.model, made.num_frames = Model(), 8
    return made


def requests(lite: LiteFrame, *asked: tuple, settings: dict | None = None) -> list[SimpleNamespace]:
    """lmms-eval's: (context, doc_to_messages, settings, number of the document, task, split)."""
    lite.task_dict = {"t": {"test": [list(contents) for contents in asked]}}

    def messages(doc: list) -> list[dict]:
        return [{"role": "user", "content": doc}]

    return [SimpleNamespace(args=("", messages, settings or {}, number, "t", "test")) for number in range(len(asked))]


def video(url: object, **more: object) -> dict:
    return {"type": "video", "url": url, **more}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def test_answers_keep_their_order_and_each_part_of_a_video_is_watched_once(lite: LiteFrame) -> None:
    span = {"path": "b.mp4", "video_start": 2, "video_end": 3.5}
    asked = [
        (video("b.mp4"), text("one")),
        (video("a.mp4"), text("two")),
        (video("b.mp4"), text("three")),
        (video(span), text("four")),
        (text("five"), video("a.mp4", start_time=1.0, end_time=None), text("six")),
    ]
    answers = lite.generate_until(requests(lite, *asked))
    assert answers == [
        "one! of b.mp4. More", "two! of a.mp4. More", "three! of b.mp4. More", "four! of b.mp4. More",
        "five\nsix! of a.mp4. More",
    ]  # fmt: skip
    assert sorted(lite.model.watched, key=str) == [
        ("a.mp4", 8, 1.0, None), ("a.mp4", 8, None, None), ("b.mp4", 8, 2.0, 3.5), ("b.mp4", 8, None, None),
    ]  # fmt: skip


def test_settings_of_a_task_are_obeyed(lite: LiteFrame) -> None:
    def said(**settings: object) -> tuple[str, dict]:
        (answer,) = lite.generate_until(requests(lite, (video("a"), text("q")), settings=settings))
        return answer, lite.model.asked[-1][2]

    assert said(max_new_tokens=16, temperature=0, top_p=1.0, do_sample=False, until=["."]) == (
        "q! of a",
        {"max_new_tokens": 16, "temperature": 0.0, "top_p": 1.0},
    )
    assert said(temperature=0.7, top_p=0.9)[1] == {"max_new_tokens": 32, "temperature": 0.7, "top_p": 0.9}
    assert said(temperature=0.7, do_sample=False, until="!")[0] == "q"
    assert lite.model.asked[-1][2]["temperature"] == 0


def test_what_is_no_question_about_one_video_is_named(lite: LiteFrame) -> None:
    for contents, held in (
        ((text("q"),), "0 videos"),
        ((video("a"), video("b"), text("q")), "2 videos"),
        ((video("a"), {"type": "image", "url": "p"}, text("q")), "1 videos and image"),
    ):
        with pytest.raises(
            InputError, match=f"t, question 0: holds {held}; the model liteframe answers about one video"
        ):
            lite.generate_until(requests(lite, contents))
    with pytest.raises(NotImplementedError, match="computes no likelihood"):
        lite.loglikelihood([])
    with pytest.raises(InputError, match="one question at a time"):
        LiteFrame(batch_size=2)


# --- in lmms-eval -----------------------------------------------------------------------------------------------------


@in_lmms_eval
def test_the_registry_knows_the_model_and_takes_its_class() -> None:
    from lmms_eval.models import get_model, list_available_models

    assert "liteframe" in list_available_models()
    assert get_model("liteframe") is LiteFrame and not LiteFrame.is_simple


def hlvid(folder: Path, clip: Path) -> None:
    """Two questions in HLVid's layout."""
    letters = "A. red\nB. blue\nC. green\nD. white"
    rows = [
        {"question_id": number, "category": "sign", "video_path": f"videos/{number}.mp4", "answer": answer,
         "question": f"Which colour is {what}?\n{letters}"}
        for number, what, answer in ((1, "the bar", "D"), (2, "the bird", "A"))
    ]  # fmt: skip
    for part in ("data", "videos"):
        (folder / part).mkdir(parents=True)
    (folder / "data" / "test-00000-of-00001.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in rows:
        copy(clip, folder / row["video_path"])


@in_lmms_eval
def test_answers_and_accuracy_there_are_those_of_liteframe_evaluate(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    data = tmp_path / "HLVid"
    hlvid(data, clip)
    monkeypatch.setenv("HLVID_DIR", str(data))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text(
        f"include: {task_folder() / 'hlvid.yaml'}\ntask: hlvid_here\ndataset_path: {data}\n"
    )
    ours = evaluate("hlvid", data, "mini", ["pooled"], [8], out=tmp_path / "out", device="cpu", dtype="float32")
    theirs = simple_evaluate(
        model="liteframe",
        model_args="pretrained=mini,encoder=pooled,num_frames=8,device=cpu,dtype=float32",
        tasks=["hlvid_here"],
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), model_name="liteframe"),
        batch_size=1,
        bootstrap_iters=0,
    )
    lines = (tmp_path / "out" / "predictions-pooled-8.jsonl").read_text().splitlines()
    said = [json.loads(line)["text"] for line in lines]
    samples = sorted(theirs["samples"]["hlvid_here"], key=lambda sample: sample["doc_id"])
    assert [sample["filtered_resps"][0] for sample in samples] == said and len(said) == 2
    assert theirs["results"]["hlvid_here"]["hlvid_accuracy,none"] == ours["results"][0]["accuracy"]
