"""Tensors on disk: what comes back, what is refused, what goes first, and that two processes can share a folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from liteframe.errors import DataError, DataWarning, InputError
from liteframe.tensor_store import TensorStore, tensors_digest

TEACHER = {"teacher": "abc", "pooling": {"kind": "wap", "alpha": 2.0}, "size": (112, 112)}
BIG = 10**9


def values(seed: int, count: int = 64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"targets": torch.randn(4, count, generator=generator), "steps": torch.arange(seed, seed + 3)}


def equal(one: dict[str, Tensor] | None, other: dict[str, Tensor]) -> bool:
    return (
        one is not None
        and one.keys() == other.keys()
        and all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)
    )


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_what_put_returned_comes_back_in_this_process_and_the_next(tmp_path: Path) -> None:
    cache = TensorStore(tmp_path / "c", TEACHER, BIG)
    assert cache.get("a") is None
    stored = cache.put("a", values(0))
    assert stored["targets"].dtype == torch.float16 and stored["steps"].dtype == torch.int64
    assert torch.equal(stored["targets"], values(0)["targets"].half())
    assert equal(cache.get("a"), stored)
    again = TensorStore(tmp_path / "c", {**TEACHER, "size": [112, 112]}, BIG)
    assert equal(again.get("a"), stored) and again.get("b") is None
    assert (again.stats.hits, again.stats.misses, again.stats.num_bytes) == (1, 1, files(tmp_path)[0].stat().st_size)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float32])
def test_dtypes(tmp_path: Path, dtype: torch.dtype | None) -> None:
    cache = TensorStore(tmp_path, TEACHER, BIG, dtype=dtype)
    tensors = {"a": torch.randn(3, dtype=torch.float64), "b": torch.tensor(True), "c": torch.empty(0, 4)}
    stored = cache.put("k", tensors)
    assert stored["a"].dtype == (dtype or torch.float64) and stored["b"].dtype == torch.bool
    assert equal(cache.get("k"), stored)
    cache.put("k", tensors, exact=True)
    assert equal(cache.get("k"), tensors)


def test_views_and_shared_memory_are_stored_by_value(tmp_path: Path) -> None:
    base = torch.arange(24).reshape(4, 6)
    cache = TensorStore(tmp_path, TEACHER, BIG)
    cache.put("k", {"whole": base, "turned": base.T, "row": base[1]})
    assert equal(cache.get("k"), {"whole": base, "turned": base.T.contiguous(), "row": base[1]})


def test_outliers_beyond_float16_keep_their_value(tmp_path: Path) -> None:
    cache = TensorStore(tmp_path, TEACHER, BIG)
    stored = cache.put("k", {"far": torch.tensor([1e5, 1.0]), "near": torch.tensor([6e4])})
    assert stored["far"].dtype == torch.float32 and stored["far"].tolist() == [1e5, 1.0]
    assert stored["near"].dtype == torch.float16
    assert equal(cache.get("k"), stored)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_stored(tmp_path: Path, value: float) -> None:
    cache = TensorStore(tmp_path, TEACHER, BIG)
    assert not torch.isfinite(cache.put("k", {"a": torch.tensor([1.0, value])})["a"]).all()
    assert cache.get("k") is None and cache.stats.refused == 1


def test_a_flipped_byte_anywhere_is_found_and_the_entry_made_again(tmp_path: Path) -> None:
    cache = TensorStore(tmp_path, TEACHER, BIG)
    stored = cache.put("key", values(0, count=2), source="123")
    (path,) = files(tmp_path)
    sound = path.read_bytes()
    unharmed = 0
    for at in range(len(sound)):
        for mask in (0x01, 0xFF):
            bent = bytearray(sound)
            bent[at] ^= mask
            path.write_bytes(bent)
            found = cache.get("key", "123")
            if found is None:
                assert not path.exists()
            else:
                # A space of the header's padding, or the case of a letter in an escape: nothing that was stored.
                assert equal(found, stored)
                unharmed += 1
    assert cache.stats.damaged == 2 * len(sound) - unharmed and unharmed < 0.1 * len(sound)
    for length in (0, 5, len(sound) // 2, len(sound) - 1):
        path.write_bytes(sound[:length])
        assert cache.get("key") is None
    cache.put("key", values(0, count=2))
    assert equal(cache.get("key"), stored)


def test_an_entry_under_another_key_is_not_used(tmp_path: Path) -> None:
    cache = TensorStore(tmp_path, TEACHER, BIG)
    cache.put("a", values(0))
    (a,) = files(tmp_path)
    cache.put("b", values(1))
    (b,) = set(files(tmp_path)) - {a}
    os.replace(a, b)
    assert cache.get("b") is None and cache.stats.damaged == 1


def test_an_entry_of_a_replaced_video_is_stale(tmp_path: Path) -> None:
    cache = TensorStore(tmp_path, TEACHER, BIG)
    stored = cache.put("a", values(0), source="100")
    assert equal(cache.get("a", "100"), stored) and equal(cache.get("a"), stored)
    assert cache.get("a", "101") is None and cache.stats.stale == 1
    assert equal(cache.put("a", values(1), source="101"), cache.get("a", "101"))


# --- limited size -----------------------------------------------------------------------------------------------------


def test_the_least_recently_used_go_first_and_the_limit_holds(tmp_path: Path) -> None:
    TensorStore(tmp_path / "one", TEACHER, BIG).put("a", values(0))
    (one,) = files(tmp_path / "one")
    size = one.stat().st_size
    cache = TensorStore(tmp_path / "c", TEACHER, 20 * size + 20 * 16)
    for number in range(10, 30):
        cache.put(str(number), values(number))
        path = tmp_path / "c" / _place(str(number))
        os.utime(path, ns=(number * 10**9, number * 10**9))
    assert len(files(tmp_path / "c")) == 20 and cache.stats.removed == 0
    for number in (10, 12):
        assert cache.get(str(number)) is not None
    cache.put("30", values(30))
    left = {number for number in range(10, 31) if (tmp_path / "c" / _place(str(number))).exists()}
    # Down to nine tenths of the limit, 18 of 21: the two that were just used stay.
    assert left == {10, 12, *range(15, 31)} - {13, 14}
    assert cache.stats.removed == 3
    total = sum(path.stat().st_size for path in files(tmp_path / "c"))
    assert cache.stats.num_bytes == total <= 20 * size + 20 * 16
    for number in range(100, 200):
        cache.put(str(number), values(number))
        assert sum(path.stat().st_size for path in files(tmp_path / "c")) <= 20 * size + 20 * 16


def _place(key: str) -> str:
    name = hashlib.sha256(key.encode()).hexdigest()
    return f"entries/{name[:2]}/{name[2:]}.safetensors"


def test_what_is_larger_than_the_cache_is_not_stored(tmp_path: Path) -> None:
    cache = TensorStore(tmp_path, TEACHER, 3000)
    stored = cache.put("small", values(0))
    cache.put("large", values(0, count=4000))
    assert cache.get("large") is None and cache.stats.refused == 1
    assert equal(cache.get("small"), stored)
    with pytest.raises(InputError, match="max_bytes=0"):
        TensorStore(tmp_path, TEACHER, 0)


def test_a_smaller_limit_holds_from_the_start_and_old_leftovers_go(tmp_path: Path) -> None:
    cache = TensorStore(tmp_path, TEACHER, BIG)
    for number in range(10):
        cache.put(str(number), values(number))
    size = cache.stats.num_bytes
    folder = files(tmp_path)[0].parent
    old, fresh = folder / ".x.1.part", folder / ".y.2.part"
    old.write_bytes(b"1")
    fresh.write_bytes(b"2")
    os.utime(old, (1, 1))
    smaller = TensorStore(tmp_path, TEACHER, size // 2)
    assert sum(path.stat().st_size for path in files(tmp_path)) <= size // 2
    assert smaller.stats.removed > 0 and not old.exists() and fresh.exists()


# --- whose it is ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({**TEACHER, "teacher": "xyz"}, 'another \'teacher\' ("abc", this run has "xyz")'),
        ({**TEACHER, "size": (224, 112)}, "another 'size' ([112, 112], this run has [224, 112])"),
        ({"teacher": "abc", "size": (112, 112)}, "another 'pooling'"),
        ({**TEACHER, "mean": 0.5}, "another 'mean' (null, this run has 0.5)"),
    ],
)
def test_a_cache_of_another_run_is_refused(tmp_path: Path, other: dict[str, object], line: str) -> None:
    stored = TensorStore(tmp_path, TEACHER, BIG).put("a", values(0))
    with pytest.raises(DataError) as raised:
        TensorStore(tmp_path, other, BIG)
    message = str(raised.value)
    assert line in message and message.startswith(str(tmp_path)) and "\n" not in message
    assert equal(TensorStore(tmp_path, TEACHER, BIG).get("a"), stored)
    with pytest.raises(DataError, match="another 'dtype'"):
        TensorStore(tmp_path, TEACHER, BIG, dtype=torch.float32)


def test_a_folder_that_is_no_cache_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear to me")
    with pytest.raises(DataError, match="holds other files"):
        TensorStore(tmp_path, TEACHER, BIG)
    with pytest.raises(DataError, match="cannot be used as a cache"):
        TensorStore(tmp_path / "thesis.tex", TEACHER, BIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    for text in ("{", "[]"):
        folder = tmp_path / "c"
        folder.mkdir(exist_ok=True)
        (folder / "identity.json").write_text(text)
        with pytest.raises(DataError, match="is damaged"):
            TensorStore(folder, TEACHER, BIG)


def test_a_full_disk_ends_writing_with_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = TensorStore(tmp_path, TEACHER, BIG)
    kept = cache.put("before", values(0))
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        write(path, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.warns(DataWarning, match="No space left on device.*the run goes on") as caught:
        results = [cache.put(str(seed), values(seed)) for seed in range(5)]
    assert len(caught) == 1
    assert all(torch.equal(results[seed]["targets"], values(seed)["targets"].half()) for seed in range(5))
    assert equal(cache.get("before"), kept) and cache.get("0") is None
    assert len(files(tmp_path)) == 1 and not list(tmp_path.rglob("*.part"))


# --- shared -----------------------------------------------------------------------------------------------------------

WRITER = """
import sys, torch
from liteframe.tensor_store import TensorStore
folder, who = sys.argv[1], int(sys.argv[2])
cache = TensorStore(folder, {"teacher": "abc"}, 30_000)
found = 0
for turn in range(150):
    key = (turn * 7 + who * 3) % 40
    tensors = {"targets": torch.full((8, 40), float(key)), "key": torch.tensor(key)}
    stored = cache.get(str(key))
    found += stored is not None
    stored = stored or cache.put(str(key), tensors)
    assert int(stored["key"]) == key and bool((stored["targets"] == key).all()), key
stats = cache.stats
assert stats.damaged == 0 and found == stats.hits and stats.written + stats.hits == 150, stats
"""


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    runs = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "c"), str(who)], stderr=subprocess.PIPE)
        for who in range(2)
    ]
    for run in runs:
        _, complaint = run.communicate(timeout=120)
        assert run.returncode == 0, complaint.decode()
    assert json.loads((tmp_path / "c" / "identity.json").read_text())["teacher"] == "abc"
    assert not list((tmp_path / "c").rglob("*.part"))
    cache = TensorStore(tmp_path / "c", {"teacher": "abc"}, 30_000)
    left = [key for key in range(40) if cache.get(str(key)) is not None]
    assert 10 < len(left) < 40 and cache.stats.damaged == 0
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 33_000


# --- digest -----------------------------------------------------------------------------------------------------------


def test_the_digest_tells_names_dtypes_shapes_and_values_apart() -> None:
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(1, dtype=torch.bfloat16)}
    digest = tensors_digest(tensors)
    assert digest == tensors_digest(dict(reversed(tensors.items())))
    # By NumPy and hashlib alone.
    plain = hashlib.sha256(b'["a", "torch.bfloat16", []]' + np.array(0x3F80, "<u2").tobytes())
    plain.update(b'["b", "torch.float32", [2, 3]]' + np.arange(6, dtype="<f4").tobytes())
    assert digest == plain.hexdigest()
    others = [
        {**tensors, "b": tensors["b"].reshape(3, 2)},
        {**tensors, "b": tensors["b"].T.reshape(2, 3)},
        {**tensors, "b": tensors["b"].view(torch.int32)},
        {"c": tensors["b"], "a": tensors["a"]},
        {"b": tensors["b"]},
    ]
    assert len({digest, *map(tensors_digest, others)}) == 6
    assert tensors_digest({"b": tensors["b"].T}) == tensors_digest({"b": tensors["b"].T.contiguous()})
