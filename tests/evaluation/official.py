"""Tiny hand-made copies of the benchmarks' official layouts: their files and field names, made-up rows, true videos."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
from PIL import Image

SECONDS, FPS = 2.0, 4


@cache
def _video_bytes() -> bytes:
    """8 frames of 64 x 48, 4 a second, each a little brighter."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=FPS)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for index in range(int(SECONDS * FPS)):
                pixels = np.full((48, 64, 3), 30 * index, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode(None))
        return path.read_bytes()


def video(path: Path) -> None:
    """The same frames everywhere, but no two files alike: a box that players skip holds the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.encode()
    path.write_bytes(_video_bytes() + (8 + len(name)).to_bytes(4, "big") + b"free" + name)


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def lines(path: Path, records: list[dict]) -> None:
    write(path, "".join(json.dumps(record) + "\n" for record in records))


def parquet(path: Path, records: list[dict]) -> None:
    import pyarrow
    from pyarrow import parquet as parquet_files

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet_files.write_table(pyarrow.Table.from_pylist(records), path)


VIDEO_MME = [
    {
        "video_id": f"00{number + 1}", "duration": duration, "domain": domain, "sub_category": "Astronomy",
        "url": "https://example.org", "videoID": name, "question_id": f"00{number + 1}-{number % 2 + 1}",
        "task_type": task, "question": f"What is shown at {number}?",
        "options": ["A. A star.", "B. A ring.", "C. A cross.", "D. Nothing."], "answer": answer,
    }
    for number, (name, duration, domain, task, answer) in enumerate(
        [
            ("fFjv93ACGo8", "short", "Knowledge", "Counting Problem", "C"),
            ("fFjv93ACGo8", "short", "Knowledge", "Object Recognition", "A"),
            ("a-B_9", "long", "Life Record", "Counting Problem", "D"),
        ]
    )
]  # fmt: skip

SRT = """1
00:00:00,000 --> 00:00:00,600
<font color="white" size=".72c">hello there</font>

2
00:00:01,500 --> 00:00:02,000
<font color="white" size=".72c">good</font>
<font color="white" size=".72c">bye</font>

3
00:00:05,000 --> 00:00:06,000
never on screen
"""


def video_mme(folder: Path) -> None:
    lines(folder / "videomme" / "test-00000-of-00001.jsonl", VIDEO_MME)
    for name in ("fFjv93ACGo8", "a-B_9"):
        video(folder / "data" / f"{name}.mp4")
    write(folder / "subtitle" / "fFjv93ACGo8.srt", SRT)


def mlvu_dev(folder: Path) -> None:
    names = ("1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning")
    for at, name in enumerate(names):
        records = [
            {"video": f"{name}_{i}.mp4", "duration": 480.0, "question": f"What of {name}?",
             "candidates": ["one", "two", "three", "four"], "answer": "three", "question_type": "plotQA"}
            for i in range(1 + at % 2)
        ]  # fmt: skip
        write(folder / "json" / f"{name}.json", records)
        for record in records:
            video(folder / "video" / name / record["video"])


def mlvu_test(folder: Path) -> None:
    records = [
        {"video": f"test_{i}.mp4", "duration": 400, "question": "Which?", "candidates": list("uvwxyz"),
         "answer": "z", "question_type": kind, "question_id": f"Q_{i}"}
        for i, kind in enumerate(("tutorialQA", "sportsQA", "sportsQA"))
    ]  # fmt: skip
    write(folder / "test-ground-truth" / "test_mcq_gt.json", records)
    for record in records:
        video(folder / "MLVU_Test" / "video" / record["video"])


def longvideobench(folder: Path) -> None:
    records = [
        {"video_id": f"v{i}", "question": "What is said?", "question_wo_referring_query": "What?",
         "candidates": candidates, "correct_choice": right, "position": [1], "topic_category": "T",
         "question_category": category, "level": "L1-Perception", "id": f"v{i}_0", "video_path": f"v{i}.mp4",
         "subtitle_path": f"v{i}_en.json", "duration_group": group, "starting_timestamp_for_subtitles": offset,
         "duration": SECONDS, "view_count": 1}
        for i, (candidates, right, category, group, offset) in enumerate(
            [(["a", "b", "c", "d", "e"], 4, "S2E", 15, 0), (["yes", "no"], 0, "E2O", 3600, 10.0)]
        )
    ]  # fmt: skip
    write(folder / "lvb_val.json", records)
    for i in range(2):
        video(folder / "videos" / f"v{i}.mp4")
    clock = [{"start": "00:00:00.000", "end": "00:00:01.000", "line": "first words"}]
    stamps = [{"timestamp": [11.0, 11.2], "text": "short words"}, {"timestamp": [11.5, None], "text": "last words"}]
    write(folder / "subtitles" / "v0_en.json", clock)
    write(folder / "subtitles" / "v1_en.json", stamps)


def lvbench(folder: Path) -> None:
    question = "What colour?\n(A) red\n(B) blue\n(C) green\n(D) black"
    records = [
        {"key": "Cm73ma6Ibcs", "type": "cartoon", "video_info": {"duration_minutes": 61},
         "qa": [
             {"uid": "0", "question": question, "answer": "B", "question_type": ["entity recognition", "reasoning"],
              "time_reference": "00:10-00:20"},
             {"uid": "1", "question": question, "answer": "D", "question_type": ["reasoning"], "time_reference": "all"},
         ]},
        {"key": "TiQBTesZUJQ", "type": "live", "video_info": {},
         "qa": [{"uid": "2", "question": question, "answer": "A", "question_type": ["summarization"]}]},
    ]  # fmt: skip
    lines(folder / "video_info.meta.jsonl", records)
    for record in records:
        video(folder / "videos" / f"{record['key']}.mp4")


def mvbench(folder: Path) -> None:
    star = [
        {"video": "ZS9XR.mp4", "question": "What happened?", "candidates": ["sat", "ran", "ate", "hid"],
         "answer": "ate", "start": 0.5, "end": 1.5},
        {"video": "ZS9XR.mp4", "question": "And then?", "candidates": ["sat", "ran", "ate"], "answer": "sat",
         "start": 1.0, "end": 2.0},
    ]  # fmt: skip
    write(folder / "json" / "action_sequence.json", star)
    video(folder / "video" / "star" / "Charades_v1_480" / "ZS9XR.mp4")
    tvqa = [{"video": "s01e02_clip_00", "question": "Why?", "candidates": ["love", "fear"], "answer": "fear",
             "start": 0.0, "end": 1.0, "subtitle": ""}]  # fmt: skip
    write(folder / "json" / "episodic_reasoning.json", tvqa)
    frames = folder / "video" / "tvqa" / "frames_fps3_hq" / "s01e02_clip_00"
    frames.mkdir(parents=True)
    for number in range(1, 7):
        Image.new("RGB", (32, 24), (40 * number, 0, 0)).save(frames / f"{number:05d}.jpg")
    clevrer = [{"video": "video_10009.mp4", "question": "How many?", "candidates": ["1", "2"], "answer": "2"}]
    write(folder / "json" / "moving_count.json", clevrer)
    video(folder / "video" / "clevrer" / "video_validation" / "video_10009.mp4")


def hlvid(folder: Path) -> None:
    after = "Please answer directly with the letter of the correct answer."
    records = [
        {"question_id": 1, "category": "sign", "video_path": "videos/clip_1.mp4",
         "question": f"What does it say?\nA. Main St\nB. Oak St\nC. Elm St\nD. Ash St\n{after}", "answer": "B"},
        {"question_id": 2, "category": "plate", "video_path": "videos/clip_2.mp4",
         "question": "Which plate, A: 7X, B: 8Y, C: 9Z or D: 1Q?", "answer": "D"},
    ]  # fmt: skip
    lines(folder / "data" / "test-00000-of-00001.jsonl", records)
    for record in records:
        video(folder / record["video_path"])


def egoschema(folder: Path) -> None:
    names = ("0074f737-11cb", "001934bb-81bd", "00b9a0de-c59e")
    records = [
        {"q_uid": name, "google_drive_id": "x", "question": f"What does C do in {name}?",
         **{f"option {i}": f"C does {i}." for i in range(5)}}
        for name in names
    ]  # fmt: skip
    write(folder / "questions.json", records)
    write(folder / "subset_answers.json", {names[0]: 3, names[2]: 4})
    for name in (names[0], names[2]):
        video(folder / "videos" / f"{name}.mp4")


NEXT_QA = ("video", "frame_count", "width", "height", "question", "answer", "qid", "type", "a0", "a1", "a2", "a3", "a4")


def next_qa(folder: Path, name: str = "test.csv") -> None:
    rows = [
        (
            4010069381,
            369,
            640,
            480,
            "how do they play, if at all",
            0,
            6,
            "CH",
            "roll",
            "tap",
            "strum",
            "hit, hard",
            "pat",
        ),
        (4010069381, 369, 640, 480, "what before", 3, 7, "TP", "roll", "tap", "strum", "hit", "pat"),
        (4882821564, 2697, 640, 480, "what after", 2, 6, "TN", "share", "go", "open", "play", "point"),
        (4882821564, 2697, 640, 480, "how many", 4, 2, "DC", "one", "two", "three", "four", "five"),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w", newline="") as file:
        csv.writer(file).writerows([NEXT_QA, *rows])
    places = {"4010069381": "1164/4010069381", "4882821564": "1008/4882821564"}
    write(folder / "map_vid_vidorID.json", places)
    for place in places.values():
        video(folder / "NExTVideo" / f"{place}.mp4")


LAYOUTS: dict[str, tuple[Callable[[Path], None], int, int]] = {
    # what makes it, questions, videos
    "videomme": (video_mme, 3, 2),
    "videomme_w_subtitle": (video_mme, 3, 2),
    "mlvu_dev": (mlvu_dev, 10, 10),
    "mlvu_test": (mlvu_test, 3, 3),
    "longvideobench": (longvideobench, 2, 2),
    "longvideobench_w_subtitle": (longvideobench, 2, 2),
    "lvbench": (lvbench, 3, 2),
    "mvbench": (mvbench, 4, 3),
    "hlvid": (hlvid, 2, 2),
    "egoschema": (egoschema, 2, 2),
    "nextqa": (next_qa, 4, 2),
    "nextqa_val": (lambda folder: next_qa(folder, "val.csv"), 4, 2),
}
