"""MVBench (arXiv 2311.17005): twenty tasks of 200 questions on short clips, some on a part of a clip.

Rows and folders follow the official notebook (github.com/OpenGVLab/Ask-Anything, mvbench.ipynb), the prompt is
lmms-eval's wording of it. The score is the mean of the tasks. Every question stays in the denominator, empty answers
too. TVQA's clips are folders of pictures, three a second.
"""

from __future__ import annotations

from pathlib import Path

from liteframe.errors import InputError
from liteframe.evaluation.benchmarks.item import Item, lettered
from liteframe.evaluation.benchmarks.rows import Row, rows_of, video_at

NAME = "MVBench"
QUESTIONS = 4000
# Where each task's clips are below video/, and whether its rows have start and end.
TASKS = {
    "action_sequence": ("star/Charades_v1_480", True),
    "action_prediction": ("star/Charades_v1_480", True),
    "action_antonym": ("ssv2_video", False),
    "fine_grained_action": ("Moments_in_Time_Raw/videos", False),
    "unexpected_action": ("FunQA_test/test", False),
    "object_existence": ("clevrer/video_validation", False),
    "object_interaction": ("star/Charades_v1_480", True),
    "object_shuffle": ("perception/videos", False),
    "moving_direction": ("clevrer/video_validation", False),
    "action_localization": ("sta/sta_video", True),
    "scene_transition": ("scene_qa/video", False),
    "action_count": ("perception/videos", False),
    "moving_count": ("clevrer/video_validation", False),
    "moving_attribute": ("clevrer/video_validation", False),
    "state_change": ("perception/videos", False),
    "fine_grained_pose": ("nturgbd", False),
    "character_order": ("perception/videos", False),
    "egocentric_navigation": ("vlnqa", False),
    "episodic_reasoning": ("tvqa/frames_fps3_hq", True),
    "counterfactual_inference": ("clevrer/video_validation", False),
}
_AFTER = "Only give the best option."


def load_mvbench(folder: Path) -> list[Item]:
    """The questions of all tasks whose file is there; all twenty make the official score.

    Raises:
        InputError: no task, a file of no known task, a bad row.
    """
    files = sorted((folder / "json").glob("*.json"))
    unknown = [path for path in files if path.stem not in TASKS]
    if unknown:
        raise InputError(f"{unknown[0]}: is no task of {NAME}; known: {', '.join(TASKS)}")
    if not files:
        raise InputError(f"{folder / 'json'}: holds no task of {NAME}; docs/evaluation.md says how to lay it out")
    present = [task for task in TASKS if folder / "json" / f"{task}.json" in files]
    return [item for task in present for item in _task(folder, task)]


def _task(folder: Path, task: str) -> list[Item]:
    place, has_span = TASKS[task]
    items = []
    for number, row in enumerate(rows_of(folder / "json" / f"{task}.json", NAME), 1):
        video = video_at(folder / "video", row.path("video"), place, f"data0613/{place}")
        items.append(_item(row, f"{task}-{number}", task, video, has_span))
    return items


def _item(row: Row, identifier: str, task: str, video: Path, has_span: bool) -> Item:
    options = row.texts("candidates")
    right = row.option("answer", options)
    start = end = None
    if has_span:
        start, end = row.seconds("start"), row.seconds("end")
        if start >= end:
            raise row.fault(f"asks from {start} to {end} seconds, which is no time")
    return Item(
        identifier,
        video,
        task,
        f"Question: {row.text('question')}\nOption:\n{lettered(options, '({letter}) {option}')}\n{_AFTER}",
        options[right],
        options,
        start=start,
        end=end,
        source=row.place,
        answer_index=right,
    )
