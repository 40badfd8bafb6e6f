"""What `liteframe publish` writes and sends, and that what it wrote is a model for someone who has only the folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard

from liteframe import cli
from liteframe.encoders.loading import load_student
from liteframe.errors import CheckpointError, InputError
from liteframe.integrations.hub import publish
from liteframe.pipeline import VideoLLM
from tiny_student import make_student

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECORD = {
    "command": "liteframe distill --recipe recipes/ctd_internvl3_8b.toml",
    "recipe": {"steps": 20, "data": {"path": "/home/me/videos", "cache": None, "videos": {"size": [56, 56]}}},
    "machine": {"cores": 2, "processor": "Some CPU", "torch": "2.13.0"},
    "teacher": {"name": "OpenGVLab/InternVL3-8B-hf", "digest": "aa38"},
    "steps": 20,
    "minutes": 35.5,
    "held_out_before": {"explained_variance": -0.3462, "cosine": 0.6352},
    "held_out": {"explained_variance": 0.913, "cosine": 0.9776},
    "skipped_videos": 3,
    "curve": [{"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.0}],
}
FILES = ["README.md", "config.json", "model.safetensors", "training.json"]


@pytest.fixture
def student(tmp_path) -> Path:
    """A run of distill with what else it leaves behind."""
    folder = tmp_path / "run"
    make_student().save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(RECORD))
    (folder / "log.jsonl").write_text("{}\n")
    (folder / "skipped.jsonl").write_text('{"path": "/home/me/secret.mp4"}\n')
    (folder / "step-00000010").mkdir()
    shutil.copy(folder / "model.safetensors", folder / "step-00000010")
    return folder


@pytest.fixture
def results(tmp_path) -> Path:
    """What evaluate leaves, of one setting."""
    row = {
        "encoder": "runs/student", "frames": 128, "visual_tokens": 2048, "questions": 900, "unparsed": 1,
        "accuracy": 0.651, "ci95": [0.62, 0.681], "by_group": {}, "seconds_per_video": {"encode": 1.0, "prefill": 2.0},
    }  # fmt: skip
    folder = tmp_path / "results"
    folder.mkdir()
    values = {"benchmark": "videomme", "model": "OpenGVLab/InternVL3-8B-hf", "results": [row]}
    (folder / "results.json").write_text(json.dumps(values))
    return folder


def test_the_card_says_what_the_record_says(student, results, tmp_path):
    report = publish(student, "me/tiny", licence="mit", results=results, out=tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, card.data.base_model) == ("mit", "OpenGVLab/InternVL3-8B-hf")
    assert card.data.library_name == "liteframe" and "video" in card.data.tags
    text = card.text
    assert text.lstrip().startswith("# tiny\n")
    parameters = sum(weight.numel() for weight in make_student().state_dict().values())
    assert f"{parameters / 1e6:.3g} million parameters" in text
    assert "4 frames of 56 x 56 pixels become one grid of 2 x 2 features of width 32" in text
    assert RECORD["command"] in text
    assert "35.5 minutes of training" in text and "2 cores of Some CPU, torch 2.13.0" in text
    assert "3 videos or records could not be used" in text
    assert "| explained variance | -0.3462 | 0.913 |" in text and "| cosine | 0.6352 | 0.9776 |" in text
    row = "| videomme | OpenGVLab/InternVL3-8B-hf | runs/student | 128 | 2048 | 900 | 65.1% | 62.0% to 68.1% |"
    assert row in text
    written = tomllib.loads(text.split("```toml\n")[1].split("```")[0])
    assert written == {"steps": 20, "data": {"path": "/home/me/videos", "videos": {"size": [56, 56]}}}
    assert "under `mit`" in text and "They were made from `OpenGVLab/InternVL3-8B-hf`" in text
    assert "--model OpenGVLab/InternVL3-8B-hf --encoder student" in text
    assert report["local_paths"] == ["/home/me/videos"]


def test_only_what_a_model_needs_goes_out(student, tmp_path):
    report = publish(student, "me/tiny", licence="mit", out=tmp_path / "out")
    assert report["files"] == FILES
    out = tmp_path / "out"
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()) == FILES
    assert report["bytes"] == sum((out / name).stat().st_size for name in FILES)
    weights, expected = (load_student(folder).state_dict() for folder in (out, student))
    assert all(torch.equal(weights[key], expected[key]) for key in expected)


PROGRAM = """
import json, sys
{imports}
model = AutoModel.from_pretrained(sys.argv[1])
pixels = torch.linspace(-1, 1, 2 * 4 * 3 * 56 * 56).reshape(2, 4, 3, 56, 56)
print(json.dumps([type(model).__name__, model.eval()(pixels).features.flatten().tolist()]))
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import liteframe\nimport torch\nfrom transformers import AutoModel",
        "import torch\nfrom transformers import AutoModel\nimport liteframe",
        "import transformers, torch, liteframe\nAutoModel = transformers.AutoModel",
    ],
    ids=["before", "after", "between"],
)
def test_automodel_knows_it_by_import_liteframe_alone(student, tmp_path, imports):
    publish(student, "me/tiny", licence="mit", out=tmp_path / "out")
    command = [sys.executable, "-c", PROGRAM.format(imports=imports), str(tmp_path / "out")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert ran.returncode == 0, ran.stderr
    name, features = json.loads(ran.stdout)
    pixels = torch.linspace(-1, 1, 2 * 4 * 3 * 56 * 56).reshape(2, 4, 3, 56, 56)
    with torch.no_grad():
        expected = make_student()(pixels).features.flatten()
    assert name == "LiteFrameEncoder"
    torch.testing.assert_close(torch.tensor(features), expected, atol=1e-5, rtol=1e-5)


def test_without_liteframe_automodel_does_not_know_it(student):
    """So that the test above tests something."""
    command = [
        sys.executable,
        "-c",
        PROGRAM.format(imports="import torch\nfrom transformers import AutoModel"),
        student,
    ]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=600)
    assert ran.returncode == 1 and "liteframe" in ran.stderr


def test_the_miniature_goes_out_whole_and_answers_as_before(mini, clip, tmp_path):
    source = Path(VideoLLM.from_pretrained("mini").checkpoint.folder)
    report = publish(source, "me/mini", licence="apache-2.0", out=tmp_path / "out")
    assert report["kind"] == "model"
    assert {"liteframe/model.safetensors", "liteframe/adapter/adapter_model.safetensors", "tokenizer.json"} <= set(
        report["files"]
    )
    theirs = VideoLLM.from_pretrained(tmp_path / "out", device="cpu")
    ours = VideoLLM.from_pretrained("mini", device="cpu")
    assert (
        theirs.ask(clip, "What was shown?", num_frames=8).text == ours.ask(clip, "What was shown?", num_frames=8).text
    )


@pytest.mark.parametrize(("below", "kind"), [("liteframe", "student"), ("liteframe/adapter", "adapter")])
def test_what_comes_from_the_miniature_needs_no_licence_named(mini, tmp_path, below, kind):
    folder = tmp_path / "copy"
    shutil.copytree(Path(VideoLLM.from_pretrained("mini").checkpoint.folder) / below, folder)
    if kind == "student":
        record = json.loads((folder / "training.json").read_text())
        (folder / "training.json").write_text(json.dumps({**record, "teacher": {"name": "mini"}}))
    report = publish(folder, "me/part", dry_run=True)
    assert (report["kind"], report["licence"], report["url"]) == (kind, "apache-2.0", None)
    assert "base_model" not in report["card"].split("---")[1]


def test_a_card_that_is_there_is_kept(student, tmp_path):
    (student / "README.md").write_text("# Mine\n")
    assert publish(student, "me/tiny", licence="mit", out=tmp_path / "out")["card"] == "# Mine\n"
    assert (tmp_path / "out" / "README.md").read_text() == "# Mine\n"


def test_one_commit_holds_everything(student, monkeypatch):
    made = []

    class Api:
        def create_repo(self, repo_id, **options):
            made.append((repo_id, options))

        def create_commit(self, repo_id, operations, commit_message):
            made.append((repo_id, {each.path_in_repo: each for each in operations}))
            return SimpleNamespace(commit_url="https://hub/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    report = publish(student, "me/tiny", licence="mit", private=True)
    repository, commit = made
    assert repository == ("me/tiny", {"private": True, "exist_ok": True})
    assert sorted(commit[1]) == FILES
    with commit[1]["README.md"].as_file() as card:
        assert card.read().decode() == report["card"]
    with commit[1]["model.safetensors"].as_file() as weights:
        assert weights.read() == (student / "model.safetensors").read_bytes()
    assert report["url"] == "https://hub/commit/1"
    made.clear()
    assert publish(student, "me/tiny", licence="mit", dry_run=True)["url"] is None
    assert made == []


# --- faults -----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_published_is_one_line(student, tmp_path):
    (tmp_path / "empty").mkdir()
    damaged = tmp_path / "damaged"
    shutil.copytree(student, damaged)
    weights = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    for arguments, error, why in (
        ((tmp_path / "none", "me/tiny"), CheckpointError, "no such folder"),
        ((tmp_path / "empty", "me/tiny"), CheckpointError, "holds no model"),
        ((damaged, "me/tiny"), CheckpointError, "damaged"),
        ((student, "tiny"), InputError, "OWNER/NAME"),
        ((student, "me/ti ny"), InputError, "OWNER/NAME"),
    ):
        with pytest.raises(error, match=why) as raised:
            publish(*arguments, licence="mit", out=tmp_path / "out")
        assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=r"made from OpenGVLab/InternVL3-8B-hf; say under which licence"):
        publish(student, "me/tiny", out=tmp_path / "out")
    with pytest.raises(InputError, match="holds no results"):
        publish(student, "me/tiny", licence="mit", results=tmp_path / "empty")
    assert not (tmp_path / "out").exists()


def test_a_hub_that_cannot_be_reached_is_one_line(student):
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(InputError, match=r"me/tiny: cannot be pushed .*hf auth login") as raised:
        publish(student, "me/tiny", licence="mit")
    assert "\n" not in str(raised.value)


def test_the_command_tells_of_paths_and_shows_the_card(student, monkeypatch, capsys):
    arguments = ["publish", str(student), "me/tiny", "--license", "mit", "--dry-run"]
    monkeypatch.setattr(sys, "argv", ["liteframe", *arguments])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    shown = capsys.readouterr()
    assert exited.value.code == 0
    assert "distilled from the vision tower" in shown.out and "me/tiny" in shown.out
    assert shown.err.count("\n") == 1 and "/home/me/videos" in shown.err
    monkeypatch.setattr(sys, "argv", ["liteframe", *arguments, "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["files"], report["licence"]) == (FILES, "mit")
