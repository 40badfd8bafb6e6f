"""The house keeps its shape: layers, lazy imports, public names, file names."""

from __future__ import annotations

import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import liteframe

SOURCE = Path(liteframe.__file__).parent
ROOT = SOURCE.parent.parent
MODULES = sorted(module.name for module in pkgutil.walk_packages([str(SOURCE)], "liteframe."))


def loaded_after(code: str) -> set[str]:
    """The names in sys.modules of a fresh Python that has run `code`."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_the_layers_hold():
    """The contracts of pyproject.toml, under [tool.importlinter]."""
    pytest.importorskip("importlinter")
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("an installed package, not a checkout")
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import liteframe; dir(liteframe)",
        "import liteframe.cli",
        "import sys; sys.argv = ['liteframe', '--help']\n"
        "from liteframe.cli import main\ntry: main()\nexcept SystemExit: pass",
        "import sys; sys.argv = ['liteframe', 'ask', '--help']\n"
        "from liteframe.cli import main\ntry: main()\nexcept SystemExit: pass",
    ],
    ids=["import", "import cli", "--help", "ask --help"],
)
def test_what_must_be_quick_imports_nothing_heavy(code):
    heavy = {"torch", "transformers", "numpy", "av", "matplotlib", "sklearn", "huggingface_hub"}
    assert not heavy & loaded_after(code)


def test_every_module_imports_on_its_own():
    """Each in a fresh table of modules of ours, so that no import order hides a missing or a circular import."""
    program = (
        "import importlib, sys, traceback\n"
        "failed = 0\n"
        "for name in sys.argv[1:]:\n"
        "    for loaded in [n for n in sys.modules if n.split('.')[0] == 'liteframe']: del sys.modules[loaded]\n"
        "    try: importlib.import_module(name)\n"
        "    except Exception: failed = 1; print(name); traceback.print_exc(limit=-2, file=sys.stdout)\n"
        "sys.exit(failed)\n"
    )
    modules = [name for name in MODULES if name != "liteframe.__main__"]
    run = subprocess.run([sys.executable, "-c", program, *modules], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("name", liteframe.__all__)
def test_every_public_name_resolves(name):
    assert getattr(liteframe, name) is not None


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'VideoLMM'"):
        liteframe.VideoLMM  # noqa: B018


def test_modules_are_named_after_what_they_hold():
    nameless = {"utils", "util", "helpers", "misc", "common"}
    assert not [name for name in MODULES if name.split(".")[-1] in nameless]
    mentions = [
        str(path.relative_to(ROOT))
        for path in SOURCE.rglob("*.py")
        if re.search(r"\b(utils|helpers|misc)\.py\b", path.read_text(encoding="utf-8"))
    ]
    assert not mentions
