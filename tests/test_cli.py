"""The command line: what reaches the library, what is printed where, and every exit status."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from liteframe import cli
from liteframe.errors import InputError, VideoError
from liteframe.types import Answer, Fault, VideoInfo

COMMANDS = (
    "ask", "encode", "probe", "needles", "data check", "pretrain", "distill", "adapt", "evaluate", "report",
    "bench", "quickstart", "serve", "export", "publish", "precompute",
)  # fmt: skip
INFO = VideoInfo("clip.mp4", 128, 96, 2.0, 10.0, 20, 0, "h264", "yuv420p", "mov,mp4")
ANSWER = Answer(
    "red [bold]", 8, 64, dict.fromkeys(("decode", "preprocess", "encode", "prefill", "generate"), 0.5),
    model="mini", encoder="teacher", video="clip.mp4", seconds=[0.0, 1.0],
)  # fmt: skip


@pytest.fixture
def liteframe(monkeypatch, capsys):
    """Runs ``liteframe ARGUMENTS`` in this process; gives its status, standard output and standard error."""

    def run(*arguments: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["liteframe", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            cli.main()
        out, err = capsys.readouterr()
        return SimpleNamespace(status=exited.value.code or 0, out=out, err=err)

    return run


@pytest.fixture
def stub(monkeypatch):
    """Puts a module of plain names in the place of one of ours, so that only the command line is tested."""
    return lambda name, **names: monkeypatch.setitem(sys.modules, f"liteframe.{name}", SimpleNamespace(**names))


class Llm:
    """Stands for a VideoLLM and writes down how it was used."""

    calls: list

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        cls.calls = [("from_pretrained", args, kwargs)]
        return cls()

    def watch(self, *args, **kwargs):
        self.calls.append(("watch", args, kwargs))
        return "watched"

    def ask(self, *args, on_text, on_progress, **kwargs):
        self.calls.append(("ask", args, kwargs))
        on_progress(1, 2)
        on_text("red ")
        on_text("[bold]")
        return ANSWER


@pytest.fixture
def llm(stub):
    stub("video.probe", probe=lambda path: INFO)
    stub("pipeline", VideoLLM=Llm)
    return Llm


def raising(error: BaseException):
    def raises(*args, **kwargs):
        raise error

    return raises


def one_line(text: str) -> str:
    assert text.startswith("liteframe: ")
    assert text.count("\n") == 1
    return text


# --- usage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("frobnicate",),
        ("ask",),
        ("ask", "clip.mp4"),
        ("ask", "clip.mp4", "What?", "--resume"),
        ("encode",),
        ("encode", "clip.mp4"),
        ("ask", "clip.mp4", "What?", "--frames", "many"),
        ("ask", "clip.mp4", "What?", "--colour"),
        ("probe",),
        ("needles", "--out", "x", "--videos", "0"),
        ("needles", "--out", "x", "--videos", "1", "--tasks", ","),
        ("data",),
        ("data", "check"),
        ("data", "check", "x.json", "--limit"),
        ("pretrain",),
        ("evaluate", "needles"),
        ("evaluate", "needles", "--data", "x", "--frames", "8,x"),
        ("evaluate", "needles", "--data", "x", "--encoder", ""),
        ("report",),
        ("bench", "--frames", "8,many"),
        ("bench", "--method", ","),
        ("bench", "--repeats", "often"),
        ("serve", "--port", "70000"),
        ("serve", "--queue", "0"),
        ("export", "mini"),
        ("export", "mini", "--out", "x"),
        ("export", "mini", "--to", "tensorrt", "--out", "x"),
        ("publish", "x"),
        ("serve", "--address", "auto"),
        ("encode", "clip.mp4", "--out", "x", "--engine", "spark"),
        ("precompute",),
        ("precompute", "--recipe", "x.toml", "--out", "x", "--engine", "local", "--address", "auto"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_status_2(liteframe, arguments):
    ran = liteframe(*arguments)
    assert ran.status == 2
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples(liteframe, command):
    ran = liteframe(*command.split(), "--help")
    assert ran.status == 0
    assert f"$ liteframe {command} " in ran.out or f"$ liteframe {command}\n" in ran.out.replace(" ", "")
    assert "--json" in ran.out


def test_help_lists_every_command(liteframe):
    ran = liteframe("--help")
    assert ran.status == 0
    assert all(command.split()[0] in ran.out for command in COMMANDS)


def test_version(liteframe):
    from liteframe import __version__

    assert liteframe("--version").out == f"liteframe {__version__}\n"


# --- ask --------------------------------------------------------------------------------------------------------------


def test_ask_hands_over_its_arguments(liteframe, llm):
    arguments = ("--frames", 8, "--start", 1, "--end", "2.5", "--encoder", "pooled", "--model", "m", "--device", "cpu")
    assert liteframe("ask", "clip.mp4", "What?", *arguments, "--max-new-tokens", 4, "--seed", 3).status == 0
    loaded, asked = llm.calls
    assert loaded == ("from_pretrained", ("m",), {"encoder": "pooled", "device": "cpu", "dtype": "auto", "cache": None,
                                                 "precision": None, "compile_encoder": False})  # fmt: skip
    assert asked[:2] == ("ask", ("clip.mp4", "What?"))
    sampling = {"num_frames": 8, "fps": None, "max_frames": None, "start": 1.0, "end": 2.5}
    assert asked[2] == {**sampling, "max_new_tokens": 4, "temperature": 0.0, "top_p": 1.0, "seed": 3}


def test_the_decoder_is_handed_over_or_refused_before_a_model_is_loaded(liteframe, llm, stub, monkeypatch):
    ran = liteframe("ask", "clip.mp4", "What?", "--decoder", "opencv")
    assert ran.status == 1
    assert "backend opencv: unknown" in one_line(ran.err)
    used = []
    monkeypatch.setattr(llm, "ask", lambda self, *_, **__: used.append(self.backend) or ANSWER)
    assert liteframe("ask", "clip.mp4", "What?").status == 0
    stub("video.torchcodec_reader", device_of=used.append)
    assert liteframe("ask", "clip.mp4", "What?", "--decoder", "torchcodec:cuda").status == 0
    assert used == ["pyav", "torchcodec:cuda", "torchcodec:cuda"]


def test_ask_prints_the_answer_as_it_is_and_the_times(liteframe, llm):
    ran = liteframe("ask", "clip.mp4", "What [red]?")
    assert ran.out.startswith("What [red]?\nred [bold]\n")
    assert ran.err == ""
    header, times = (line.split() for line in ran.out.splitlines()[2:])
    assert header == ["decode", "preprocess", "encode", "prefill", "generate", "all", "frames", "visual", "tokens"]
    assert times == [*("0.50", "s") * 5, "2.50", "s", "8", "64"]


def test_ask_json_is_one_line_and_text_goes_aside(liteframe, llm):
    ran = liteframe("ask", "clip.mp4", "What?", "--json")
    assert ran.out.count("\n") == 1
    assert json.loads(ran.out) == ANSWER.as_dict()
    assert "red [bold]" in ran.err


def test_more_questions_watch_once(liteframe, llm):
    ran = liteframe("ask", "clip.mp4", "What?", "--also", "Where?", "--also", "When?", "--fps", 2, "--json")
    assert [call[0] for call in llm.calls] == ["from_pretrained", "watch", "ask", "ask", "ask"]
    assert llm.calls[1][2]["fps"] == 2.0
    assert [call[1] for call in llm.calls[2:]] == [("watched", "What?"), ("watched", "Where?"), ("watched", "When?")]
    assert "fps" not in llm.calls[2][2]
    result = json.loads(ran.out)
    assert result["text"] == ANSWER.text
    assert result["answers"] == [ANSWER.as_dict()] * 3


def test_the_times_show_what_ran_side_by_side(liteframe, llm, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ANSWER", replace(ANSWER, wall_seconds=1.75))
    ran = liteframe("ask", "clip.mp4", "What?")
    assert ran.out.splitlines()[-1].split() == [*("0.50", "s") * 5, "1.75", "s", "8", "64"]
    assert json.loads(liteframe("ask", "clip.mp4", "What?", "--json").out) == ANSWER.as_dict()
    assert "wall_seconds" not in ANSWER.as_dict()


# --- many videos ------------------------------------------------------------------------------------------------------


def test_a_pattern_that_nothing_matches_is_one_line(liteframe, tmp_path):
    ran = liteframe("ask", "clip.mp4", tmp_path / "*.mp4", "What?", "--json")
    assert (ran.status, ran.out) == (1, "")
    assert "*.mp4: no file matches" in one_line(ran.err)


def test_many_videos_are_asked_and_the_bad_one_is_told(liteframe, mini, clip, tmp_path):
    import shutil

    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copyfile(clip, folder / "b.mp4")
    (folder / "a.mp4").write_text("no video")
    options = ("--frames", 4, "--max-new-tokens", 4, "--json")
    out, cache = tmp_path / "answers.jsonl", tmp_path / "tokens"
    ran = liteframe("encode", folder, "--out", cache, "--frames", 4, "--json")
    assert ran.status == 1
    encoded = json.loads(ran.out)
    assert (encoded["videos"], encoded["failed"], encoded["out"]) == (2, 1, str(cache))
    assert [record.get("reason") for record in encoded["records"]] == ["not a video", None]
    ran = liteframe("ask", folder, "What is shown?", "--out", out, "--cache", cache, *options)
    assert ran.status == 1
    assert ran.out.count("\n") == 1
    assert f"liteframe: {folder / 'a.mp4'}: " in ran.err
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert json.loads(ran.out) == {"videos": 2, "skipped": 0, "failed": 1, "records": records, "out": str(out)}
    assert [record["video"] for record in records] == [str(folder / "a.mp4"), str(folder / "b.mp4")]
    assert records[1]["timings"]["decode"] == 0  # encode did it
    ran = liteframe("ask", folder, "What is shown?", "--out", out, *options)
    assert "--resume goes on with it" in one_line(ran.err)
    ran = liteframe("ask", folder, "What is shown?", "--out", out, "--resume", *options)
    assert (ran.status, json.loads(ran.out)["skipped"]) == (1, 1)
    alone = json.loads(liteframe("ask", folder / "b.mp4", "What is shown?", *options).out)
    assert alone["text"] == records[1]["text"]
    assert set(alone) == set(ANSWER.as_dict())


# --- probe ------------------------------------------------------------------------------------------------------------


def test_probe_tells_what_a_file_is(liteframe, stub):
    faulty = replace(INFO, duration_seconds=None, rotation_degrees=90, faults=(Fault("truncated", "the end is lost"),))
    stub("video.probe", probe=lambda path: faulty)
    ran = liteframe("probe", "clip.mp4")
    assert ran.status == 0
    for words in (
        "128 x 96, h264",
        "only decoding could tell",
        "by 90 degrees clockwise",
        "truncated: the end is lost",
    ):
        assert words in ran.out
    result = json.loads(liteframe("probe", "clip.mp4", "--json").out)
    assert result["faults"] == [{"kind": "truncated", "text": "the end is lost"}]
    assert (result["width"], result["num_frames"]) == (128, 20)


def test_probe_goes_on_behind_a_bad_file_and_fails_at_the_end(liteframe, stub):
    def probe(path, isolate=False):
        if path == "bad.mp4":
            raise VideoError(path, "empty", "the file is empty")
        return INFO

    stub("video.probe", probe=probe)
    ran = liteframe("probe", "bad.mp4", "clip.mp4", "--json")
    bad, good = json.loads(ran.out)["files"]
    assert bad == {"path": "bad.mp4", "error": "bad.mp4: the file is empty", "reason": "empty"}
    assert good["codec"] == "h264"
    assert "liteframe: bad.mp4: the file is empty\n" in ran.err
    assert ran.status == 1
    alone = liteframe("probe", "bad.mp4", "--json")
    assert (alone.status, json.loads(alone.out)) == (1, bad)


# --- the others -------------------------------------------------------------------------------------------------------


def test_needles_hands_over_its_settings(liteframe, stub):
    asked = []

    def write_benchmark(out, videos, seed, config, on_progress):
        on_progress(1, videos)
        asked.append((str(out), videos, seed, config))
        return {"videos": videos, "questions": 6}

    stub(
        "data.needles",
        NeedleConfig=SimpleNamespace(from_dict=lambda values, source: values),
        write_benchmark=write_benchmark,
    )
    options = ("--needle-frames", 2, 5, "--needle-size", 0.2, 0.3, "--multiple-choice", "--tasks", "counting, ordering")
    ran = liteframe("needles", "--out", "x", "--videos", 2, "--seed", 4, "--frames", 64, *options, "--json")
    assert ran.status == 0
    out, videos, seed, config = asked[0]
    assert (out, videos, seed) == ("x", 2, 4)
    assert (config["frames"], config["needle_frames"], config["needle_size"]) == (64, (2, 5), (0.2, 0.3))
    assert (config["multiple_choice"], config["tasks"]) == (True, ("counting", "ordering"))
    assert json.loads(ran.out) == {"videos": 2, "questions": 6}


def test_the_defaults_of_needles_are_those_of_its_settings():
    import inspect

    from liteframe.data.needles import NeedleConfig

    parameters = inspect.signature(cli.needles).parameters
    shared = {name: field.default for name, field in NeedleConfig.model_fields.items() if name in parameters}
    defaults = {name: parameters[name].default for name in shared}
    defaults.update(tasks=tuple(defaults["tasks"].split(",")), needle_size=shared["needle_size"])  # None: their own
    assert defaults == shared


def test_pretrain_keeps_standard_output_for_json(liteframe, stub):
    def pretrain(recipe, overrides):
        print("step 1")
        return {"recipe": str(recipe), "overrides": overrides}

    stub("training.pretrain", pretrain=pretrain)
    ran = liteframe("pretrain", "--recipe", "r.toml", "--set", "steps=1", "--set", "seed=2", "--json")
    assert json.loads(ran.out) == {"recipe": "r.toml", "overrides": ["steps=1", "seed=2"]}
    assert "step 1" in ran.err
    assert liteframe("pretrain", "--recipe", "r.toml").out.startswith("step 1\n")


def test_evaluate_prints_a_row_for_each_setting(liteframe, stub):
    def evaluate(benchmark, data, model, encoders, frames, **options):
        options["on_progress"](1, 4)
        rows = [
            {"encoder": encoder, "frames": count, "visual_tokens": 4 * count, "questions": 50, "unparsed": 1,
             "accuracy": 0.5, "ci95": [0.4, 0.6], "by_group": {}, "seconds_per_video": {"decode": 0.25, "encode": 0.5}}
            for encoder in encoders for count in frames
        ]  # fmt: skip
        return {"benchmark": benchmark, "model": model, "results": rows}

    stub("evaluation.runner", evaluate=evaluate)
    arguments = ("evaluate", "needles", "--data", "x", "--encoder", "teacher,pooled", "--frames", "8,16")
    lines = liteframe(*arguments).out.splitlines()
    assert len(lines) == 6
    assert lines[-1].split() == ["pooled", "16", "64", "50", "1", "50.0%", "40%", "to", "60%", "0.75", "s"]
    assert len(json.loads(liteframe(*arguments, "--json").out)["results"]) == 4


def test_evaluate_shows_the_official_mean_of_the_groups(liteframe, stub):
    asked = {}

    def evaluate(benchmark, data, model, encoders, frames, **options):
        asked.update(options)
        options["on_note"]("teacher at 8 frames: 5 of 50 answers were there")
        row = {"encoder": "teacher", "frames": 8, "visual_tokens": 32, "questions": 50, "unparsed": 1,
               "accuracy": 0.5, "ci95": [0.4, 0.6], "by_group": {}, "seconds_per_video": {"encode": 0.5},
               "score": {"kind": "macro", "accuracy": 0.25, "ci95": [0.2, 0.3]}}  # fmt: skip
        return {"benchmark": benchmark, "model": model, "results": [row]}

    stub("evaluation.runner", evaluate=evaluate)
    ran = liteframe("evaluate", "mlvu_dev", "--data", "x", "--frames", "8", "--out", "o", "--cache", "c")
    assert ran.out.splitlines()[-1].split()[5:9] == ["25.0%", "20%", "to", "30%"]
    assert "macro" in ran.out
    assert "5 of 50 answers were there" in ran.err
    assert (asked["resume"], asked["bad_videos"], str(asked["cache"])) == (True, "stop", "c")
    liteframe("evaluate", "mlvu_dev", "--data", "x", "--out", "o", "--no-resume", "--bad-videos", "skip")
    assert (asked["resume"], asked["bad_videos"], asked["cache"]) == (False, "skip", None)


def test_evaluate_takes_several_benchmarks_each_from_its_folder(liteframe, stub, tmp_path):
    asked = []

    def evaluate(benchmark, data, model, encoders, frames, **options):
        asked.append((benchmark, data, options["out"]))
        return {"benchmark": benchmark, "model": model, "results": []}

    stub("evaluation.runner", evaluate=evaluate)
    stub("evaluation.benchmarks", load_benchmark=lambda name, folder: asked.append(("read", name, folder)))
    data = ("--data", f"mvbench={tmp_path / 'b'}", "--data", f"needles={tmp_path / 'a'}")
    ran = liteframe("evaluate", "needles,mvbench", *data, "--out", tmp_path / "out", "--json")
    assert asked == [
        ("read", "needles", tmp_path / "a"),
        ("read", "mvbench", tmp_path / "b"),
        ("needles", tmp_path / "a", tmp_path / "out" / "needles"),
        ("mvbench", tmp_path / "b", tmp_path / "out" / "mvbench"),
    ]
    assert [one["benchmark"] for one in json.loads(ran.out)["benchmarks"]] == ["needles", "mvbench"]
    for wrong, words in (
        (("--data", "x"), "give NAME=DIR once for each"),
        (("--data", "needles=x"), "add mvbench=DIR"),
        (("--data", "needles=x", "--data", "needles=y", "--data", "mvbench=z"), "give NAME=DIR once for each"),
        (("--data", "needles=x", "--data", "mvbench=z", "--data", "lvbench=z"), "give NAME=DIR once for each"),
    ):
        ran = liteframe("evaluate", "needles,mvbench", *wrong)
        assert ran.status == 2 and words in " ".join(ran.err.replace("│", " ").split())


def test_evaluate_check_names_what_is_missing(liteframe, tmp_path, clip):
    def record(name):
        return {
            "id": name,
            "video": f"{name}.mp4",
            "task": "retrieval",
            "question": "?",
            "options": None,
            "answer": "x",
        }

    clip_here = tmp_path / "a.mp4"
    clip_here.write_bytes(clip.read_bytes())
    (tmp_path / "questions.jsonl").write_text(json.dumps(record("a")) + "\n")
    ran = liteframe("evaluate", "needles", "--data", tmp_path, "--check", "--json")
    assert ran.status == 0
    found = json.loads(ran.out)
    assert (found["questions"], found["videos"], found["missing"], found["unusable"]) == (1, 1, [], [])
    with (tmp_path / "questions.jsonl").open("a") as file:
        file.write(json.dumps(record("b")) + "\n")
    ran = liteframe("evaluate", "needles", "--data", tmp_path, "--check", "--json")
    assert ran.status == 1 and json.loads(ran.out)["missing"][0]["reason"] == "not found"
    assert "b.mp4" in ran.err and "questions.jsonl:2 needs it" in ran.err
    ran = liteframe("evaluate", "needles", "--data", tmp_path / "no", "--check")
    assert ran.status == 1 and "no such file" in ran.err


def test_report_prints_a_row_for_each_setting_and_its_files(liteframe, stub):
    asked = []

    def write_report(folder, out, reference, examples):
        asked.append((str(folder), out and str(out), reference, examples))
        row = {"benchmark": "needles", "method": "a[b]", "frames": 16, "accuracy": 0.5, "ci95": [0.4, 0.6],
               "seconds": 0.25, "speedup": 4.0, "pareto": True}  # fmt: skip
        return {"folder": "x", "rows": [row, {**row, "pareto": False}], "pareto": [], "files": ["x/report [1].html"]}

    stub("evaluation.report", write_report=write_report)
    lines = liteframe("report", "x").out.splitlines()
    assert lines[1].split() == ["a[b]", "16", "50.0%", "40%", "to", "60%", "0.250", "s", "4.00x", "*"]
    assert lines[2].split()[-1] == "4.00x"
    assert lines[3] == "x/report [1].html"
    ran = liteframe("report", "x", "--out", "y", "--reference", "pooled:64", "--examples", "0", "--json")
    assert ran.out.count("\n") == 1
    assert set(json.loads(ran.out)) == {"folder", "rows", "pareto", "files"}
    assert "x/report [1].html" in ran.err
    assert asked == [("x", None, None, 8), ("x", "y", "pooled:64", 0)]


def test_of_several_processes_one_tells_what_was_found(liteframe, stub, monkeypatch):
    row = {"encoder": "teacher", "frames": 8, "visual_tokens": 8, "questions": 4, "unparsed": 0, "accuracy": 0.5,
           "ci95": [0.2, 0.8], "seconds_per_video": {"encode": 1.0}}  # fmt: skip
    stub("evaluation.runner", evaluate=lambda *_, **__: {"benchmark": "needles", "model": "mini", "results": [row]})
    launched = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        ran = liteframe("evaluate", "needles", "--data", "x", "--frames", "8", "--json")
        assert (ran.status, ran.out.count("\n")) == (0, lines)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such folder"), ({}, "holds no results.json"), ({"results.json": "{"}, "results.json: damaged")],
    ids=["missing", "empty", "damaged"],
)
def test_what_cannot_be_reported_is_told_in_one_line(liteframe, tmp_path, content, words):
    folder = tmp_path / "runs"
    if content is not None:
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text)
    ran = liteframe("report", folder, "--json")
    assert (ran.status, ran.out) == (1, "")
    assert str(folder) in one_line(ran.err) and words in ran.err


def test_bench_prints_a_row_and_its_bound_for_each_setting(liteframe, stub):
    asked = []

    def run(shape, frames, methods, **options):
        options.pop("on_progress")(1, 2)
        asked.append((shape, frames, methods, {**options, "out": options["out"] and str(options["out"])}))
        row = {"method": "teacher", "frames": 8, "visual_tokens": 128, "stages": {"decode": 0.25, "first_token": 0.5},
               "bound_seconds": {"first_token": 0.125}, "peak_memory_bytes": 2**29}  # fmt: skip
        left_out = [{"method": "teacher", "frames": 512, "reason": "teacher with 512 frames is too long"}]
        return {"shape": shape, "rows": [row], "left_out": left_out, "files": ["x/bench [1].png"]}

    stub("latency.bench", run=run)
    ran = liteframe("bench")
    lines = [line.split() for line in ran.out.splitlines()]
    assert lines[:2] == [["mini,", "8", "frames"], ["seconds", "teacher", "bound"]]
    assert lines[2:5] == [["decode", "0.2500"], ["first", "token", "0.5000", "0.1250"], ["all", "0.7500", "0.1250"]]
    assert lines[5:7] == [["visual", "tokens", "128"], ["memory,", "GiB", "0.50"]]
    assert lines[7:] == [["x/bench", "[1].png"]]
    assert one_line(ran.err) == "liteframe: left out: teacher with 512 frames is too long\n"
    options = ("--shape", "internvl3-1b", "--frames", "4,512", "--method", "pooled", "--device", "cpu", "--out", "x")
    ran = liteframe(
        "bench", *options, "--repeats", 2, "--answer-tokens", 3, "--seed", 7, "--dtype", "float32", "--json"
    )
    assert json.loads(ran.out)["rows"][0]["visual_tokens"] == 128
    others = {"device": "cpu", "dtype": "float32", "out": "x", "repeats": 2, "answer_tokens": 3, "seed": 7}
    others |= {"precision": None, "compile_encoders": False, "batch_frames": None, "student": None}
    assert asked[1] == ("internvl3-1b", [4, 512], ["pooled"], others)


def test_a_precision_reaches_what_is_loaded_and_measured(liteframe, stub, llm):
    asked = []
    stub("latency.bench", run=lambda *_, **options: asked.append(options) or {"rows": [], "left_out": [], "files": []})
    stub(
        "evaluation.runner",
        evaluate=lambda *_, **options: (
            asked.append(options) or {"benchmark": "needles", "model": "mini", "results": []}
        ),
    )
    assert liteframe("bench", "--precision", "bf16", "--compile", "--batch-frames", 64).status == 0
    assert (asked[0]["precision"], asked[0]["compile_encoders"], asked[0]["batch_frames"]) == ("bf16", True, 64)
    assert liteframe("evaluate", "needles", "--data", "x", "--precision", "int8").status == 0
    assert asked[1]["precision"] == "int8"
    assert liteframe("ask", "clip.mp4", "What?", "--precision", "fastest", "--compile").status == 0
    loaded = llm.calls[0][2]
    assert (loaded["precision"], loaded["compile_encoder"]) == ("fastest", True)


def test_quickstart_hands_over_a_console(liteframe, stub):
    def run(out, videos, long_videos, seed, console, model, on_progress):
        on_progress(1, videos)
        console.print("a story")
        return {"out": str(out), "seed": seed, "videos": videos, "long": long_videos, "model": model}

    stub("quickstart", run=run)
    assert liteframe("quickstart").out == "a story\n"
    ran = liteframe("quickstart", "--out", "here", "--videos", 2, "--long-videos", 0, "--seed", 5, "--json")
    assert json.loads(ran.out) == {"out": "here", "seed": 5, "videos": 2, "long": 0, "model": "mini"}
    assert ran.err == "a story\n"


def test_export_hands_over_what_is_asked(liteframe, stub):
    asked = []

    def writer(kind):
        return lambda *arguments, **options: asked.append((kind, arguments, options)) or {"out": "x", "model": "mini"}

    stub("integrations.onnx_export", export_onnx=writer("onnx"), TOLERANCE=0.125)
    stub("integrations.vllm_export", export_vllm=writer("vllm"))
    assert json.loads(liteframe("export", "mini", "--to", "onnx", "--out", "x", "--json").out)["out"] == "x"
    assert liteframe("export", "m", "--to", "onnx", "--out", "x", "--tolerance", 0).status == 0
    assert liteframe("export", "m", "--to", "vllm", "--out", "x", "--encoder", "e", "--dtype", "float16").status == 0
    shown = [(kind, str(model), str(out), options) for kind, (model, out), options in asked]
    assert shown == [
        ("onnx", "mini", "x", {"encoder": None, "tolerance": 0.125}),
        ("onnx", "m", "x", {"encoder": None, "tolerance": 0.0}),
        ("vllm", "m", "x", {"encoder": "e", "dtype": "float16"}),
    ]


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (InputError("first\nsecond"), 1, "first second"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/a.mp4"),
            1,
            "out/a.mp4: No space left .*free some space",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "out"), 1, "out: Permission denied; check the permissions"),
        (FileExistsError(errno.EEXIST, "File exists", "out"), 1, "out: File exists; name another path"),
        (OSError("no connection"), 1, "no connection"),
        (MemoryError(), 1, "out of memory; ask for fewer frames"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), 1, "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 1, "out of memory"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_faults_that_the_user_can_mend_are_one_line(liteframe, stub, error, status, words):
    import re

    stub("quickstart", run=raising(error))
    ran = liteframe("quickstart", "--json")
    assert ran.status == status
    assert ran.out == ""
    assert re.search(words, one_line(ran.err))


def test_interrupted_is_status_130(liteframe, stub):
    stub("quickstart", run=raising(KeyboardInterrupt()))
    assert liteframe("quickstart").status == 130


@pytest.mark.parametrize("error", [KeyError("ours"), RuntimeError("ours"), TypeError("ours")], ids=repr)
def test_our_own_faults_keep_their_traceback(stub, monkeypatch, error):
    stub("quickstart", run=raising(error))
    monkeypatch.setattr(sys, "argv", ["liteframe", "quickstart"])
    with pytest.raises(type(error), match="ours"):
        cli.main()


def test_debugging_shows_the_traceback_of_every_fault(stub, monkeypatch):
    stub("quickstart", run=raising(InputError("mine")))
    monkeypatch.setattr(sys, "argv", ["liteframe", "quickstart"])
    monkeypatch.setenv("LITEFRAME_DEBUG", "1")
    with pytest.raises(InputError, match="mine"):
        cli.main()


def test_a_warning_about_a_video_is_one_line(liteframe, stub):
    def run(*args, **kwargs):
        import warnings

        from liteframe.errors import VideoWarning

        warnings.warn("clip.mp4: 3 frames are lost", VideoWarning, stacklevel=2)
        return {}

    stub("quickstart", run=run)
    assert liteframe("quickstart").err == "liteframe: clip.mp4: 3 frames are lost\n"


def test_a_reader_that_has_gone_is_no_traceback(clip):
    command = [sys.executable, "-m", "liteframe", "probe", str(clip)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


# --- with true videos and the true model ------------------------------------------------------------------------------


@pytest.fixture
def unusable(tmp_path):
    """Paths that are no video, by what is wrong with them."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.mp4").write_text("The minutes of the meeting.\n" * 50)
    (tmp_path / "empty.mp4").touch()
    return {name: tmp_path / name for name in ("folder", "notes.mp4", "empty.mp4", "missing.mp4")}


@pytest.mark.parametrize("name", ["missing.mp4", "folder", "notes.mp4", "empty.mp4"])
@pytest.mark.parametrize("command", [("probe",), ("ask", "What is shown?")], ids=["probe", "ask"])
def test_what_is_no_video_is_named_in_one_line(liteframe, unusable, name, command):
    first, *rest = command
    ran = liteframe(first, unusable[name], *rest)
    assert ran.status == 1
    assert ran.out == ""
    assert str(unusable[name]) in one_line(ran.err)


def test_a_true_file_is_probed(liteframe, clip):
    result = json.loads(liteframe("probe", clip, "--json").out)
    assert (result["width"], result["height"], result["num_frames"], result["codec"]) == (128, 96, 20, "h264")
    assert result["faults"] == []


def test_needles_writes_a_benchmark(liteframe, tmp_path):
    ran = liteframe("needles", "--out", tmp_path / "n", "--videos", 2, "--frames", 8, "--seed", 1, "--json")
    assert ran.status == 0, ran.err
    assert isinstance(json.loads(ran.out.splitlines()[-1]), dict)
    questions = [json.loads(line) for line in (tmp_path / "n" / "questions.jsonl").read_text().splitlines()]
    assert {"id", "video", "task", "question", "options", "answer", "needles"} <= set(questions[0])
    assert all((tmp_path / "n" / question["video"]).exists() for question in questions)


QUESTION = '{"video": "%s", "question": "What [b]came[/b]?", "options": null, "answer": "%s"}\n'


def test_data_check_of_a_sound_file_is_status_0(liteframe, clip, tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(QUESTION % (clip.name, "a star") + QUESTION % (clip.name, "two"))
    ran = liteframe("data", "check", path, "--root", clip.parent, "--probe")
    assert (ran.status, ran.err) == (0, "")
    assert "1, 0 of them missing; 1 opened, all readable" in ran.out
    ran = liteframe("data", "check", path, "--root", clip.parent, "--json")
    assert (ran.status, ran.out.count("\n")) == (0, 1)
    result = json.loads(ran.out)
    assert (result["format"], result["records"], result["usable"], result["num_probed"]) == ("needles-jsonl", 2, 1, 0)
    assert "needles-jsonl" in ran.err


def test_data_check_names_every_fault_and_is_status_1(liteframe, clip, tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(QUESTION % (clip, "a star") + QUESTION % (clip, "") + QUESTION % ("gone.mp4", "two"))
    ran = liteframe("data", "check", path, "--json")
    assert ran.status == 1
    assert f"liteframe: {path}:2: key 'answer' is empty; fill it or delete the record\n" in ran.err
    assert f"liteframe: {tmp_path / 'gone.mp4'}: no such file" in ran.err
    result = json.loads(ran.out)
    assert (result["num_bad"], result["num_missing"], result["usable"]) == (1, 1, 1)
    assert result["bad"] == [{"source": f"{path}:2", "reason": "key 'answer' is empty; fill it or delete the record"}]


def test_data_check_of_what_cannot_be_read_is_one_line(liteframe, tmp_path):
    for arguments in ((tmp_path / "none.json",), (tmp_path,), (tmp_path / "none.json", "--root", tmp_path / "no")):
        ran = liteframe("data", "check", *arguments, "--json")
        assert (ran.status, ran.out) == (1, "")
        assert str(arguments[-1]) in one_line(ran.err)


@pytest.mark.parametrize("options", [("--frames", 0), ("--needle-frames", 5, 2), ("--tasks", "dancing")], ids=str)
def test_impossible_needles_are_refused_in_one_line(liteframe, tmp_path, options):
    ran = liteframe("needles", "--out", tmp_path / "n", "--videos", 1, *options)
    assert ran.status == 1
    one_line(ran.err)


@pytest.mark.parametrize(
    "arguments",
    [
        ("What?", "--model", "no/such-model"),
        ("What?", "--encoder", "nonsense"),
        ("What?", "--frames", 0),
        ("What?", "--frames", -3),
        ("What?", "--fps", 0),
        ("What?", "--fps", 1, "--frames", 8),
        ("What?", "--start", 50),
        ("What?", "--start", 2, "--end", 1),
        ("What?", "--device", "toaster"),
        ("What?", "--dtype", "int8"),
        ("What?", "--temperature", -1),
        ("What?", "--max-new-tokens", 0),
        ("",),
        ("  ",),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_refused_in_one_line(liteframe, mini, clip, arguments):
    ran = liteframe("ask", clip, *arguments, "--json")
    assert ran.status == 1
    assert ran.out == ""
    one_line(ran.err)


def test_the_miniature_answers(liteframe, mini, clip):
    ran = liteframe("ask", clip, "How many shapes were shown?", "--also", "What was shown?", "--frames", 8, "--json")
    assert ran.status == 0, ran.err
    result = json.loads(ran.out)
    assert set(result) == {*ANSWER.as_dict(), "answers"}
    assert (result["num_frames"], len(result["seconds"]), result["video"]) == (8, 8, str(clip))
    assert set(result["timings"]) == set(ANSWER.timings)
    assert [answer["text"] for answer in result["answers"]]


def test_quickstart_runs(liteframe, mini, tmp_path):
    ran = liteframe("quickstart", "--out", tmp_path / "tour", "--videos", 1, "--long-videos", 0, "--json")
    assert ran.status == 0, ran.err
    assert isinstance(json.loads(ran.out.splitlines()[-1]), dict)
