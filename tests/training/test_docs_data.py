"""docs/data.md: every example is written, run and read as the page says."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from liteframe.encoders.interface import PixelConfig
from liteframe.training.distill import DistillRecipe, distill
from liteframe.training.distill_data import close, open_clips

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("data", "video")]
import clips as maker
from tar_server import TarServer

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
FENCE = re.compile(r"(?:^`(?P<file>\S+)`:\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
EXAMPLES = [match.groupdict() for match in FENCE.finditer(PAGE)]
COMMANDS = [line for each in EXAMPLES if each["kind"] == "sh" for line in each["text"].splitlines()]
# What keeps it short, and no more.
SMALL = ["data.needles.canvases=2", "data.needles.codec_share=0.0", "data.videos.isolate=false", "data.workers=1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with what the page shows, and a server of it."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "videos").mkdir()
    for name in "abcd":
        maker.write(folder / "videos" / f"{name}.mp4", maker.steady(16))
    (folder / "recipes").symlink_to(ROOT / "recipes")
    with pytest.MonkeyPatch.context() as patch, TarServer(folder).running() as server:
        patch.setenv("no_proxy", "127.0.0.1")
        patch.chdir(folder)
        for each in EXAMPLES:
            if each["file"]:
                (folder / each["file"]).write_text(each["text"])
            elif each["kind"] == "python":
                exec(compile(each["text"], "docs/data.md", "exec"), {})
        yield folder, server.address


def asked_for(command: str, address: str) -> tuple[str, list[str]]:
    """Recipe and settings of a command of the page."""
    program, name, *words = shlex.split(command.replace("http://127.0.0.1:8000", address))
    assert (program, name, words[0]) == ("liteframe", "distill", "--recipe")
    assert words[2::2] == ["--set"] * len(words[2::2])
    return words[1], words[3::2]


def test_the_page_has_examples_of_every_kind() -> None:
    assert len(COMMANDS) >= 6 and {each["file"] for each in EXAMPLES} >= {"list.jsonl", "list.csv", "mixed.toml"}
    assert {Path(each["file"]).suffix for each in EXAMPLES if each["file"]} == {".jsonl", ".csv", ".toml"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_draws_clips(
    place: tuple[Path, str], command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = place
    monkeypatch.chdir(folder)
    path, settings = asked_for(command, address)
    recipe = DistillRecipe.from_toml(path, [*settings, *SMALL])
    clips = open_clips(recipe.data, PixelConfig(height=28, width=28), recipe.seed, tmp_path, None)
    found = [clips.clip(index) for index in range(24)]
    assert None not in found and not (tmp_path / "skipped.jsonl").exists()
    if "list" in command:
        assert {Path(clip.video).name for clip in found} == {"a.mp4", "b.mp4"}
    elif "mixed" in command:
        assert {clip.origin for clip in found} == {"videos", "web", "needles"}
    else:
        assert {Path(clip.video).name for clip in found} == {f"{name}.mp4" for name in "abcd"}
    close(clips)


def test_a_run_of_the_page_ends_with_what_it_promises(
    place: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = place
    monkeypatch.chdir(folder)
    path, settings = asked_for(COMMANDS[-1], address)
    output = tmp_path / "run"
    more = ["steps=3", "data.held_out_clips=1", f"output={output.as_posix()}"]
    distill(path, [*settings, *SMALL, *more])
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    names = {name for line in log for name in line}
    assert {"data_wait", "clips_per_second", "loss/videos", "loss/web"} <= names
    assert all(0 <= line["data_wait"] <= 1 for line in log)
    assert (output / "shards-0.jsonl").exists() and (output / "training.json").exists()


def test_every_setting_that_the_page_names_exists() -> None:
    schema = DistillRecipe.model_json_schema()
    for name in re.findall(r"`data\.([a-z_.]+)`", PAGE):
        node = schema["$defs"]["DistillDataConfig"]
        for word in name.split("."):
            node = node["properties"][word]
            reference = node.get("$ref") or next((each.get("$ref") for each in node.get("anyOf", [])), None)
            node = schema["$defs"][reference.rpartition("/")[2]] if reference else node
