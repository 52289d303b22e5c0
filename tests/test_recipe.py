"""docs/add-an-operation.md, followed to the letter in a copy of the tree."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

import hsmux_native
from tests.documents.markdown import blocks
from tests.documents.sections import ROOT, project_files

RECIPE: Final = ROOT / "docs" / "add-an-operation.md"

NO_EDITABLE: Final = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "Redirecting" not in type(f).__name__]
"""
"""Let imports find the copy: an editable install answers before any path does."""

ALSO: Final = (
    *("tests/protocol/test_vectors.py", "tests/protocol/test_fields.py"),
    *("tests/tools/test_table.py", "tests/test_documents.py", "tests/test_tidy.py"),
)
"""What would notice a forgotten step."""


def _copy(target: Path) -> None:
    for path in project_files():
        copied = target / path.relative_to(ROOT)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copied)
    built = Path(hsmux_native._native.__file__).parent
    for library in built.glob("*.so"):
        (target / "native" / "hsmux_native" / library.name).symlink_to(library)
    (target / "site").mkdir()
    (target / "site" / "sitecustomize.py").write_text(NO_EDITABLE)


def apply(text: str, change: str) -> str:
    """A text after a change: parts between `@@` lines, each found by its own lines.

    Raises:
        ValueError: The lines around a part are not there, or are there twice.
    """
    for part in re.split(r"^@@.*\n", change, flags=re.MULTILINE):
        lines = part.splitlines()
        before = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
        after = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
        if text.count(before) != 1:
            raise ValueError(f"{text.count(before)} places with:\n{before}")
        text = text.replace(before, after)
    return text


def follow(target: Path) -> tuple[list[str], set[str]]:
    """Make every change of the recipe; the commands it shows, in order, and the files it names."""
    commands, files = [], set()
    for block in blocks(RECIPE.read_text(encoding="utf-8")):
        named = re.search(r"new file `([^`]+)`", block.before)
        if block.language == "diff":
            header, _, change = block.text.partition("\n")
            files.add(header.removeprefix("+++ "))
            path = target / header.removeprefix("+++ ")
            path.write_text(apply(path.read_text(encoding="utf-8"), change), encoding="utf-8")
        elif named is not None:
            files.add(named[1])
            (target / named[1]).write_text(block.text, encoding="utf-8")
        elif block.language == "console":
            commands.append(block.text.strip())
    return commands, files


def _run(target: Path, command: list[str]) -> None:
    directories = [
        target / name for name in ("site", "protocol", "native", "gateway", "tools", ".")
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, directories))}
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    done = subprocess.run(
        [sys.executable, *command], cwd=target, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_recipe_works_as_it_stands(tmp_path: Path) -> None:
    _copy(tmp_path)
    commands, files = follow(tmp_path)
    assert commands.pop() == "tools/dev test"
    for command in commands:
        python, *words = command.split()
        assert python == "python"
        _run(tmp_path, words)
    _run(tmp_path, ["-m", "ruff", "check", "-q", "--no-cache", *files])
    _run(tmp_path, ["-m", "ruff", "format", "--check", "-q", "--no-cache", *files])
    _run(tmp_path, ["-m", "pytest", "-q", "-p", "no:cacheprovider", *ALSO])


def test_a_change_that_fits_nowhere_is_refused() -> None:
    assert apply("a\nb\nc\n", " b\n+new\n") == "a\nb\nnew\nc\n"
    assert apply("a\nb\nc\n", "-a\n+A\n@@\n-c\n") == "A\nb\n"
    for change in (" d\n+new\n", " b\n"):
        with pytest.raises(ValueError, match="places"):
            apply("b\nb\n", change)
