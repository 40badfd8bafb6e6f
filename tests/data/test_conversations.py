"""Conversations: three formats by their content, what each bad record says, and the report on a file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from liteframe.data.conversation_report import check_conversations
from liteframe.data.conversations import (
    Conversation,
    Turn,
    VideoRef,
    find_format,
    load_conversations,
    read_conversations,
)
from liteframe.data.json_records import BadRecord
from liteframe.errors import DataError

ONE = (
    '{"id": "v1-0", "data_source": "x", "video": "part/a.mp4", "conversations": ['
    '{"from": "human", "value": "<image>\\nWhat is shown?"}, {"from": "gpt", "value": "A red ball."}, '
    '{"from": "human", "value": " And then? "}, {"from": "gpt", "value": "It falls.\\n"}]}'
)
TWO = (
    '{"id": 7, "video": ["b.mp4", "ü/日本.mp4"], "conversations": [{"from": "system", "value": "Be brief."}, '
    '{"from": "human", "value": "<video>\\n<video>\\nDo they differ?"}, {"from": "gpt", "value": "Ja, größer 🙂"}]}'
)
TURNS_ONE = (Turn("What is shown?", "A red ball."), Turn("And then?", "It falls."))
TURNS_TWO = (Turn("Do they differ?", "Ja, größer 🙂"),)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def record(**changes: object) -> str:
    """A sound record of one turn with some of its keys changed; a key that is None is left out."""
    sound = {"video": "a.mp4", "conversations": talk("<image>\nWhat?", "A ball.")}
    return json.dumps({key: value for key, value in {**sound, **changes}.items() if value is not None})


def talk(*said: object) -> list[dict[str, object]]:
    return [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(said)]


# --- formats ----------------------------------------------------------------------------------------------------------


def test_lines_of_llava_records(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", f"{ONE}\n\n{TWO}\n")
    assert load_conversations(path) == (
        Conversation((VideoRef(tmp_path / "part" / "a.mp4"),), TURNS_ONE, f"{path}:1", "v1-0"),
        Conversation(
            (VideoRef(tmp_path / "b.mp4"), VideoRef(tmp_path / "ü" / "日本.mp4")),
            TURNS_TWO,
            f"{path}:3",
            "7",
            system="Be brief.",
        ),
    )
    assert find_format(path) == "llava-jsonl"


@pytest.mark.parametrize(
    "text",
    [f"[{ONE},{TWO}]", f"\n [\n{ONE}\n,\n {TWO} ]\n\n", json.dumps([json.loads(ONE), json.loads(TWO)], indent=2)],
    ids=["one line", "loose", "indented"],
)
def test_a_list_of_llava_records_whatever_its_name(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "c.jsonl", text)
    first, second = load_conversations(path)
    assert (first.turns, second.turns) == (TURNS_ONE, TURNS_TWO)
    assert (first.source, second.source) == (f"{path}: record 1", f"{path}: record 2")
    assert find_format(path) == "llava-json"


def test_lines_in_a_file_named_json(tmp_path: Path) -> None:
    path = write(tmp_path / "c.json", f"{ONE}\n{TWO}")
    assert [c.source for c in load_conversations(path)] == [f"{path}:1", f"{path}:2"]


def test_one_record_over_many_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "c.json", json.dumps(json.loads(ONE), indent=1))
    assert [(c.source, c.turns) for c in load_conversations(path)] == [(f"{path}: record 1", TURNS_ONE)]


@pytest.mark.parametrize("is_list", [False, True])
def test_windows_line_ends_and_a_byte_order_mark(tmp_path: Path, is_list: bool) -> None:
    text = f"[{ONE},\r\n{TWO}]\r\n" if is_list else f"{ONE}\r\n{TWO}\r\n"
    path = write(tmp_path / "c.json", b"\xef\xbb\xbf" + text.encode())
    assert [c.turns for c in load_conversations(path)] == [TURNS_ONE, TURNS_TWO]


def test_a_line_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    said = "one\u2028two\u0085three"
    text = json.dumps({"video": "a.mp4", "conversations": talk("<image>What?", said)}, ensure_ascii=False)
    assert load_conversations(write(tmp_path / "c.jsonl", text))[0].turns == (Turn("What?", said),)


def test_paths_start_at_the_root_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "c.jsonl", f"{record()}\n{record(video='/far/b.mp4')}")
    monkeypatch.chdir(tmp_path)
    paths = [[c.videos[0].path for c in load_conversations("c.jsonl", root)] for root in (None, "clips")]
    assert paths == [[tmp_path / "a.mp4", Path("/far/b.mp4")], [tmp_path / "clips" / "a.mp4", Path("/far/b.mp4")]]


def test_a_record_without_an_id_is_called_by_its_place(tmp_path: Path) -> None:
    assert load_conversations(write(tmp_path / "c.jsonl", f"\n{record()}"))[0].id == "c.jsonl:2"


@pytest.mark.parametrize("question", ["<image>\nWhat?", "<video>What?", "What?\n<image>", " <image> What? "])
def test_a_placeholder_may_stand_anywhere_in_the_first_question(tmp_path: Path, question: str) -> None:
    path = write(tmp_path / "c.jsonl", record(conversations=talk(question, "A ball.")))
    assert load_conversations(path)[0].turns == (Turn("What?", "A ball."),)


def test_internvl_meta(tmp_path: Path) -> None:
    meta = {
        "chat": {"root": "videos/", "annotation": "notes/chat.jsonl", "repeat_time": 0.25, "length": 2},
        "clips": {"root": "/far", "annotation": "clips.json", "repeat_time": 3},
    }
    path = write(tmp_path / "meta.json", json.dumps(meta, indent=2))
    bare = record(clip=[1.5, 4], conversations=talk("What?", "A ball.", "And?", "No."))
    write(tmp_path / "notes" / "chat.jsonl", f"{bare}\n{record(video='b.mp4')}\n")
    write(tmp_path / "clips.json", f"[{record(clip=[[0, 2]])}]")
    assert load_conversations(path) == (
        Conversation(
            (VideoRef(tmp_path / "videos" / "a.mp4", 1.5, 4.0),),
            (Turn("What?", "A ball."), Turn("And?", "No.")),
            f"{tmp_path}/notes/chat.jsonl:1",
            "chat.jsonl:1",
            weight=0.25,
        ),
        Conversation(
            (VideoRef(tmp_path / "videos" / "b.mp4"),),
            (Turn("What?", "A ball."),),
            f"{tmp_path}/notes/chat.jsonl:2",
            "chat.jsonl:2",
            weight=0.25,
        ),
        Conversation(
            (VideoRef(Path("/far/a.mp4"), 0.0, 2.0),),
            (Turn("What?", "A ball."),),
            f"{tmp_path}/clips.json: record 1",
            "clips.json: record 1",
            weight=3.0,
        ),
    )
    assert find_format(path) == "internvl-meta"
    elsewhere = load_conversations(path, tmp_path / "disk")
    assert [c.videos[0].path for c in elsewhere][1:] == [tmp_path / "disk" / "videos" / "b.mp4", Path("/far/a.mp4")]


def test_a_meta_file_may_be_one_line(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", record())
    path = write(tmp_path / "meta.json", '{"a": {"root": "v", "annotation": "a.jsonl"}}\n')
    assert [(c.videos[0].path, c.weight) for c in load_conversations(path)] == [(tmp_path / "v" / "a.mp4", 1.0)]
    path.write_text(path.read_text() + "{}\n")
    assert str(list(read_conversations(path))[1]).startswith(f"{path}:2: stands behind the meta object")


def test_clips_of_several_videos(tmp_path: Path) -> None:
    several = record(video=["a", "b"], clip=[None, [2, 3]], conversations=talk("<video><video>Same?", "No."))
    videos = load_conversations(write(tmp_path / "c.jsonl", several))[0].videos
    assert videos == (VideoRef(tmp_path / "a"), VideoRef(tmp_path / "b", 2.0, 3.0))


def needle(video: str, question: str, answer: str, options: list[str] | None = None) -> str:
    fields = {"id": "s1-00000-0", "video": video, "task": "ordering", "question": question, "options": options}
    return json.dumps({**fields, "answer": answer, "needles": []})


def test_needle_questions_about_one_video_are_one_conversation(tmp_path: Path) -> None:
    lines = [
        needle("n0.mp4", "What came first?", "red star"),
        needle("n1.mp4", "How many?", "2"),
        needle("n0.mp4", "What came last?", "blue 3", ["red star", "blue 3", "grey 1"]),
    ]
    path = write(tmp_path / "questions.jsonl", "\n".join(lines))
    prompt = (
        "What came last?\nA. red star\nB. blue 3\nC. grey 1\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert load_conversations(path) == (
        Conversation(
            (VideoRef(tmp_path / "n0.mp4"),),
            (Turn("What came first?", "red star"), Turn(prompt, "B")),
            f"{path}:1",
            "n0.mp4",
            num_records=2,
        ),
        Conversation((VideoRef(tmp_path / "n1.mp4"),), (Turn("How many?", "2"),), f"{path}:2", "n1.mp4"),
    )
    assert find_format(path) == "needles-jsonl"


def test_what_the_needle_benchmark_writes_is_read(tmp_path: Path) -> None:
    from liteframe.data.needles import NeedleConfig, write_benchmark

    write_benchmark(tmp_path, 2, seed=1, config=NeedleConfig(frames=4, multiple_choice=True, size=32))
    asked = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    conversations = load_conversations(tmp_path / "questions.jsonl")
    assert [c.videos[0].path.name for c in conversations] == ["needles-s1-00000.mp4", "needles-s1-00001.mp4"]
    turns = [turn for c in conversations for turn in c.turns]
    assert [turn.question.split("\n")[0] for turn in turns] == [a["question"] for a in asked]
    assert [a["options"]["ABCD".index(turn.answer)] for turn, a in zip(turns, asked, strict=True)] == [
        a["answer"] for a in asked
    ]
    for conversation in conversations:
        conversation.require_videos()


# --- bad records ------------------------------------------------------------------------------------------------------

BAD_RECORDS = {
    "no JSON": ('{"video": "a.mp4"', "is not valid JSON"),
    "nested too deeply": ("[" * 100_000, "is not valid JSON"),
    "a number": ("17", "is int, not an object with 'video' and 'conversations'"),
    "no conversations": (record(conversations=None), "key 'conversations' is missing"),
    "no video": (record(video=None, image="a.jpg"), "key 'video' is missing; add it, or delete"),
    "video of another type": (record(video=3), "key 'video' must be text (got 3)"),
    "video is empty": (record(video=" "), "key 'video' is empty"),
    "no videos": (record(video=[]), "key 'video' is an empty list"),
    "null in a path": (record(video="a\0b"), "key 'video' must be the path of a file"),
    "no placeholder": (record(conversations=talk("What?", "A.")), "in the questions: 0, videos: 1; write one for each"),
    "a placeholder too many": (
        record(conversations=talk("<image><video>What?", "A.")),
        "in the questions: 2, videos: 1",
    ),
    "a video too many": (record(video=["a", "b"]), "in the questions: 1, videos: 2"),
    "a placeholder in every question": (
        record(conversations=talk("<image>What?", "A.", "<image>And?", "B.")),
        "in the questions: 2, videos: 1",
    ),
    "a late placeholder": (
        record(conversations=talk("What?", "A.", "<image>And?", "B.")),
        "a placeholder stands behind the first question",
    ),
    "a placeholder in an answer": (
        record(conversations=talk("<image>What?", "A <video>.")),
        "the answer of turn 1 holds a placeholder",
    ),
    "an empty question": (record(conversations=talk("<image>\n", "A.")), "the question of turn 1 is empty"),
    "an empty answer": (
        record(conversations=talk("<image>What?", "A.", "And?", " \n")),
        "the answer of turn 2 is empty",
    ),
    "no answer text": (record(conversations=talk("<image>What?", None)), "the answer of turn 1 is missing"),
    "an answer of another type": (
        record(conversations=talk("<image>What?", ["A."])),
        "the answer of turn 1 must be text (got ['A.'])",
    ),
    "half a character": (
        '{"video": "a", "conversations": ' + json.dumps(talk("<image>?", "\ud83d")) + "}",
        "surrogate",
    ),
    "a question at the end": (record(conversations=talk("<image>What?", "A.", "And?")), "ends without an answer"),
    "nothing said": (record(conversations=[]), "ends without an answer"),
    "gpt first": (
        record(conversations=talk("<image>What?", "A.")[::-1]),
        "message 1 is from 'gpt' where 'human' must speak",
    ),
    "two questions": (
        record(conversations=[*talk("<image>What?", "A."), *talk("And?")[:1], *talk("And?")[:1]]),
        "message 4 is from 'human' where 'gpt' must speak",
    ),
    "roles behind a system": (
        record(conversations=[{"from": "system", "value": "Brief."}, *talk("<image>What?", "A.")[::-1]]),
        "message 2 is from 'gpt' where 'human' must speak",
    ),
    "a late system": (
        record(conversations=[*talk("<image>What?", "A."), {"from": "system", "value": "Brief."}]),
        "message 3 is from 'system' where 'human' must speak",
    ),
    "an empty system": (
        record(conversations=[{"from": "system", "value": ""}, *talk("<image>What?", "A.")]),
        "the system's text is empty",
    ),
    "conversations of another type": (record(conversations="What?"), "key 'conversations' must be a list of"),
    "a clip backwards": (record(clip=[3, 3]), "clip [3, 3] must begin at 0 or later and end after"),
    "a clip before the video": (record(clip=[-1, 3]), "clip [-1, 3] must begin at 0 or later"),
    "half a clip": (record(clip=[3]), "key 'clip' must be [start, end] in seconds"),
    "a clip without end": (record(clip=[3, None]), "key 'clip' must hold finite numbers (got None)"),
    "an endless clip": (record(clip=[3, float("inf")]), "key 'clip' must hold finite numbers (got inf)"),
    "a clip too few": (
        record(video=["a", "b"], clip=[1, 2, 3], conversations=talk("<video><video>?", "A.")),
        "key 'clip' must be [start, end] in seconds, for each video",
    ),
    "needle without video": ('{"question": "What?", "answer": "A."}', "key 'video' is missing"),
    "needle without answer": ('{"video": "a.mp4", "question": "What?"}', "key 'answer' is missing"),
    "needle with an empty question": (needle("a.mp4", "", "A."), "key 'question' is empty"),
    "needle with another answer": (needle("a.mp4", "What?", "c", ["a", "b"]), "the answer 'c' is none of the options"),
    "needle with one option": (needle("a.mp4", "What?", "a", ["a"]), "key 'options' must be null or a list of 2 to 10"),
    "needle with too many options": (needle("a.mp4", "What?", "a", list("abcdefghijk")), "a list of 2 to 10"),
}


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_a_bad_line_is_named_and_the_others_are_read(tmp_path: Path, case: str) -> None:
    line, words = BAD_RECORDS[case]
    path = write(tmp_path / "c.jsonl", f"{record()}\n\n{line}\n{record()}\n")
    first, bad, last = read_conversations(path)
    assert (first.source, last.source) == (f"{path}:1", f"{path}:4")
    assert isinstance(bad, BadRecord) and bad.source == f"{path}:3"
    assert words in bad.reason and "\n" not in bad.reason and len(bad.reason) < 250
    with pytest.raises(DataError) as raised:
        load_conversations(path)
    assert str(raised.value) == f"{path}:3: {bad.reason}"


@pytest.mark.parametrize("case", [case for case in BAD_RECORDS if case not in ("no JSON", "nested too deeply")])
def test_a_bad_record_of_a_list_is_named_by_its_number(tmp_path: Path, case: str) -> None:
    line, words = BAD_RECORDS[case]
    path = write(tmp_path / "c.json", f"[\n{record()},\n{line},{record()}]")
    _, bad, last = read_conversations(path)
    assert (bad.source, last.source) == (f"{path}: record 2", f"{path}: record 3")
    assert words in bad.reason


def test_a_bad_first_line_does_not_hide_the_others(tmp_path: Path) -> None:
    for first in (b'{"video": ', b'{"video": "\xff.mp4"}'):
        path = write(tmp_path / "c.jsonl", first + b"\n" + record().encode())
        bad, good = read_conversations(path)
        assert (bad.source, good.source) == (f"{path}:1", f"{path}:2")


def test_bytes_that_are_no_utf8_spoil_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", record().encode() + b'\n{"video": "\xff.mp4"}\n' + record().encode())
    _, bad, last = read_conversations(path)
    assert str(bad).startswith(f"{path}:2: is not UTF-8 text (invalid start byte at byte 11 of the line)")
    assert last.source == f"{path}:3"


BROKEN_LISTS = {
    "cut inside a record": (f"[{ONE}, {TWO[:40]}", ": record 2: is not valid JSON"),
    "cut behind a record": (f"[{ONE}", ": record 1: is followed by the end of the file instead of ',' or ']'"),
    "a comma left out": (f"[{ONE} {TWO}]", ": record 1: is followed by '{' instead of"),
    "a comma at the end": (f"[{ONE},]", ": record 2: is not valid JSON"),
    "more behind it": (f"[{ONE}]\n\n{TWO}", ":3: stands behind the end of the JSON list"),
}


@pytest.mark.parametrize("case", BROKEN_LISTS)
def test_a_broken_list_is_read_to_where_it_breaks(tmp_path: Path, case: str) -> None:
    text, words = BROKEN_LISTS[case]
    path = write(tmp_path / "c.json", text)
    good, bad = read_conversations(path)
    assert good.turns == TURNS_ONE
    assert str(bad).startswith(f"{path}{words}")


BAD_ENTRIES = {
    "no object": ("a.jsonl", "is str, not an object such as"),
    "no annotation": ({"root": "x"}, "key 'annotation' is missing"),
    "no such annotation": ({"annotation": "none.jsonl"}, "none.jsonl: no such file"),
    "an empty annotation": ({"annotation": "empty.jsonl"}, "empty.jsonl: is empty"),
    "a meta file": ({"annotation": "meta.json"}, "meta.json is a meta file itself"),
    "root of another type": ({"annotation": "a.jsonl", "root": 3}, "key 'root' must be the path of a folder (got 3)"),
    "never repeated": ({"annotation": "a.jsonl", "repeat_time": 0}, "repeat_time=0 must be above 0"),
    "repeated in words": ({"annotation": "a.jsonl", "repeat_time": "2"}, "key 'repeat_time' must hold finite numbers"),
}


@pytest.mark.parametrize("case", BAD_ENTRIES)
def test_a_bad_entry_of_a_meta_file_is_named_and_the_others_are_read(tmp_path: Path, case: str) -> None:
    entry, words = BAD_ENTRIES[case]
    write(tmp_path / "a.jsonl", record())
    write(tmp_path / "empty.jsonl", "\n")
    meta = {"odd one": entry, "sound": {"annotation": "a.jsonl"}}
    path = write(tmp_path / "meta.json", json.dumps(meta))
    bad, good = read_conversations(path)
    assert str(bad).startswith(f"{path}: odd one: ") and words in str(bad)
    assert good.source == f"{tmp_path}/a.jsonl:1"


def test_an_annotations_bad_line_is_named_by_its_own_file(tmp_path: Path) -> None:
    path = write(tmp_path / "meta.json", '{"a": {"annotation": "a.jsonl"}}')
    write(tmp_path / "a.jsonl", record(conversations=talk("<video><video>What?", "A.")))
    with pytest.raises(DataError, match=r"a\.jsonl:1: placeholders .* 2, videos: 1"):
        load_conversations(path)


BAD_FILES = {
    "blank": ("c.jsonl", b"\n \r\n", "is empty; write a record"),
    "nothing": ("c.jsonl", b"", "is empty"),
    "an empty list": ("c.json", b"[ ]\n", "holds no conversation"),
    "a video": ("c.mp4", b"\0\0\0\x20ftypisom", "is not UTF-8 text"),
    "UTF-16": ("c.json", "[]\n".encode("utf-16"), "is not UTF-8 text"),
    "a list in Latin-1": ("c.json", b'["\xfc"]', "is not UTF-8 text (invalid start byte at byte 2)"),
    "a broken meta file": ("c.json", b'{\n"a": {\n"root" "x"}}', "is not valid JSON (Expecting ':' delimiter: line 3"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_holds_nothing_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    name, content, words = BAD_FILES[case]
    path = write(tmp_path / name, content)
    with pytest.raises(DataError) as raised:
        list(read_conversations(path))
    assert str(raised.value).startswith(f"{path}: ") and words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        read_conversations(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_conversations(tmp_path)


def test_videos_are_looked_for_when_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", TWO)
    conversation = load_conversations(path)[0]
    write(tmp_path / "b.mp4", b"x")
    with pytest.raises(DataError, match=r"c\.jsonl:1: .*日本\.mp4: no such file"):
        conversation.require_videos()
    write(tmp_path / "ü" / "日本.mp4", b"x")
    conversation.require_videos()


def test_lines_are_read_as_they_are_needed(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", f"{record()}\n" * 2)
    reading = read_conversations(path)
    assert next(reading).source == f"{path}:1"
    with path.open("a") as file:
        file.write(f"{record()}\n" * 50_000)
    assert next(reading).source == f"{path}:2"
    assert sum(1 for _ in reading) == 50_000


# --- the report -------------------------------------------------------------------------------------------------------


def test_a_report_counts(tmp_path: Path, clip: Path) -> None:
    write(tmp_path / "c.jsonl", "")
    shutil.copy(clip, tmp_path / "a.mp4")
    write(tmp_path / "notes.mp4", "The minutes of the meeting.\n" * 50)
    write(tmp_path / "empty.mp4", b"")
    lines = [
        record(conversations=talk("<image>12345", "1")),
        record(conversations=talk("<image>1", "12", "123", "1234")),
        record(video="gone.mp4", conversations=talk("<image>12", "1")),
        record(video=["a.mp4", "gone2.mp4"], conversations=talk("<image><image>1", "1")),
        record(video="notes.mp4", conversations=talk("<image>1", "1")),
        record(video="empty.mp4", conversations=talk("<image>1", "1")),
        record(clip=[1]),
        "{",
        record(video=3),
    ]
    path = write(tmp_path / "c.jsonl", "\n".join(lines))
    report = check_conversations(path, limit_bad=2)
    assert (report.path, report.format) == (str(path), "llava-jsonl")
    assert (report.records, report.conversations, report.turns, report.num_bad) == (9, 6, 7, 3)
    assert [bad.source for bad in report.bad] == [f"{path}:7", f"{path}:8"]
    assert report.usable == 4
    assert report.questions_per_video == {"min": 1, "median": 1, "max": 4}  # a: 1 + 2 + 1; the others one each
    assert report.question_characters == {"median": 1, "max": 5}
    assert report.answer_characters == {"median": 1, "max": 4}
    assert (report.videos, report.num_missing, report.num_probed) == (5, 2, 0)
    assert report.missing == (str(tmp_path / "gone.mp4"), str(tmp_path / "gone2.mp4"))
    assert report.weights == ((1.0, 6),)
    assert not report.is_good
    complaints = report.complaints()
    assert len(complaints) == 5 and complaints[2] == "... and 1 more bad records"

    calls: list[tuple[int, int]] = []
    probed = check_conversations(path, probe=True, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert (probed.num_probed, probed.usable) == (3, 2)
    assert probed.unreadable == {"not a video": 1, "empty": 1}
    assert [line.split(": ")[0] for line in probed.unreadable_first] == [
        str(tmp_path / "notes.mp4"),
        str(tmp_path / "empty.mp4"),
    ]


def test_a_report_of_a_sound_file_is_good(tmp_path: Path, clip: Path) -> None:
    shutil.copy(clip, tmp_path / "n.mp4")
    path = write(tmp_path / "q.jsonl", "\n".join(needle("n.mp4", f"What came {n}?", "1") for n in range(3)))
    report = check_conversations(path, probe=True)
    assert report.is_good and report.complaints() == []
    assert (report.format, report.records, report.conversations, report.usable) == ("needles-jsonl", 3, 1, 1)
    assert report.questions_per_video == {"min": 3, "median": 3, "max": 3}
    assert json.loads(json.dumps(report.as_dict()))["is_good"] is True


def test_a_report_on_a_meta_file_tells_the_weights(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", f"{record()}\n{record()}")
    meta = {name: {"annotation": "a.jsonl", "repeat_time": weight} for name, weight in (("x", 2), ("y", 0.5))}
    path = write(tmp_path / "meta.json", json.dumps(meta))
    write(tmp_path / "v" / "a.mp4", b"x")
    report = check_conversations(path, tmp_path / "v")
    assert (report.format, report.weights, report.is_good) == ("internvl-meta", ((0.5, 2), (2.0, 2)), True)
    with pytest.raises(DataError, match="no such folder"):
        check_conversations(path, tmp_path / "w")


def test_a_file_with_nothing_sound_in_it_is_reported_on(tmp_path: Path) -> None:
    report = check_conversations(write(tmp_path / "c.jsonl", "{}\n{}"))
    assert (report.records, report.conversations, report.num_bad, report.is_good) == (2, 0, 2, False)
    assert report.questions_per_video == {"min": 0, "median": 0, "max": 0}
    assert report.summary()["weights"] == "none"
