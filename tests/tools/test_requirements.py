"""The lock names everything the distributions ask for, by hash, and nothing of one machine."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
OWN = {"hsmux", "hsmux-tools", "hsmux-gateway"}
NAME = re.compile(r"[A-Za-z0-9._-]+")


def name_of(requirement: str) -> str:
    found = NAME.match(requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def asked_for() -> set[str]:
    names: set[str] = set()
    for path in ("pyproject.toml", "protocol/pyproject.toml", "tools/pyproject.toml"):
        document = tomllib.loads((ROOT / path).read_text())
        project = document["project"]
        optional = project.get("optional-dependencies", {}).values()
        for group in (document["build-system"]["requires"], project["dependencies"], *optional):
            names |= {name_of(requirement) for requirement in group}
    return names - OWN


def test_the_lock_has_everything() -> None:
    lock = (ROOT / "requirements/dev.txt").read_text()
    locked = {name_of(line) for line in lock.splitlines() if "==" in line}
    assert asked_for() <= locked


def test_each_locked_package_has_one_version_and_hashes() -> None:
    lock = (ROOT / "requirements/dev.txt").read_text()
    entries = re.split(r"\n(?=[a-z0-9])", lock.strip())
    assert len(entries) > 40
    for entry in entries:
        assert re.match(r"[a-z0-9-]+==[^ ;]+( ; [^\\]+)? \\\n    --hash=sha256:[0-9a-f]{64}", entry)
    names = [name_of(entry) for entry in entries]
    assert len(names) == len(set(names))


def test_the_lock_knows_no_index_and_no_path() -> None:
    for path in (ROOT / "requirements").iterdir():
        text = path.read_text()
        assert "://" not in text and "--find-links" not in text and "-e " not in text
        assert not re.search(r"(^|\s)/", text)
