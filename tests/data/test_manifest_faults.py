"""The short form of `benchmarks/manifest_faults.py`: a list with broken files in it finishes and names each of them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import manifest_faults


def test_a_list_with_broken_files_finishes_and_names_each(maker: ModuleType, tmp_path: Path) -> None:
    sources = [maker.write(tmp_path / f"{name}.mp4", maker.steady(12)) for name in "xy"]
    found = manifest_faults.run(tmp_path, sources, entries=250, broken_share=0.04, workers=2, isolate=False)
    assert (found["entries"], found["broken"], found["named"], found["lines"]) == (250, 10, 10, 10)
    assert found["named_wrongly"] == 0 and found["empty_places"] == 0
    assert found["reasons"] == {
        "missing": ["not found"],
        "empty": ["empty"],
        "page": ["not a video"],
        "cut": ["truncated"],
        "noise": ["not a video"],
    }
    # How fast it is, the benchmark tells; here, that nothing waits for a broken file.
    assert found["ratio"] > 0.5


def test_real_videos_are_cut_without_decoding(maker: ModuleType, tmp_path: Path) -> None:
    source = maker.write(tmp_path / "long.mp4", maker.steady(40))
    (tmp_path / "short").mkdir()
    (short,) = manifest_faults.small_videos(tmp_path / "short", [source], frames=12)
    assert maker.shown(short)[1] == list(range(12))
