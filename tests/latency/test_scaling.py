"""`benchmarks/scaling.py`: its numbers by hand, and the page that shows them."""

from __future__ import annotations

from pathlib import Path

import pytest
import scaling

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report():
    return scaling.compute(scaling.Assumptions())


def test_the_page_shows_what_the_script_says(report):
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    shown = page.partition(scaling.BEGIN)[2].partition(scaling.END)[0].strip()
    assert shown == scaling.tables(report), "run python benchmarks/scaling.py --write docs/scaling.md"


def test_an_hour_by_hand(report):
    """InternViT-300M is 2.894 TFLOP for 4 frames, liteframe-b 0.3335; a token is 4 cells of 1024 values of 2 bytes."""
    rows = {row["method"]: row for row in report["rows"]}
    reached = 0.4 * 989e12
    assert rows["teacher"]["seconds"]["encode"] == pytest.approx(900 * 2.894e12 / reached, rel=0.001)
    assert rows["liteframe"]["seconds"]["encode"] == pytest.approx(900 * 0.3335e12 / reached, rel=0.001)
    assert rows["pooled"]["seconds"]["encode"] == rows["teacher"]["seconds"]["encode"]
    assert rows["teacher"]["visual_tokens"] == 3600 * 256
    assert rows["liteframe"]["visual_tokens"] == 3600 * 16
    assert rows["liteframe"]["stored_bytes"] == 3600 * 16 * 4 * 1024 * 2
    # An answer reads 7.07 billion weights (layers and head) and the cache for each of 31 tokens, in 7.03 windows.
    reading = 3600 / 512 * 31 * (7.07e9 * 2 + rows["liteframe"]["kv_cache_bytes"]) / (0.4 * 3.35e12)
    assert rows["liteframe"]["seconds"]["answer"] == pytest.approx(reading, rel=0.01)


def test_prompts_by_hand(report):
    """The language model from Qwen2.5-7B's 6.53 billion weights without embeddings and head; attention is causal."""
    for row in report["prompts"]:
        tokens = row["visual_tokens"]
        assert row["encode"] == pytest.approx(
            row["frames"] / 4 * (0.3335 if row["method"] == "liteframe" else 2.894), rel=0.001
        )
        projector = 2 * tokens * (4096 + 3584) * 3584
        language = 2 * 6.53e9 * tokens + 28 * 2 * 3584 * tokens**2 + projector + 2 * 3584 * 151674
        assert row["prefill"] == pytest.approx(language / 1e12, rel=0.002)


def test_less_utilisation_takes_longer(report):
    slower = scaling.compute(scaling.Assumptions(utilisation=0.1))
    for slow, row in zip(slower["rows"], report["rows"], strict=True):
        for stage, seconds in row["seconds"].items():
            assert slow["seconds"][stage] == pytest.approx(4 * seconds)


def test_tables_replace_only_what_is_between_the_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{scaling.BEGIN}\nold\n{scaling.END}\nafter\n")
    scaling.write_between_markers(page, "new")
    assert page.read_text() == f"before\n{scaling.BEGIN}\n\nnew\n\n{scaling.END}\nafter\n"
    page.write_text("no markers")
    with pytest.raises(SystemExit, match="has no lines"):
        scaling.write_between_markers(page, "new")
    assert page.read_text() == "no markers"
