"""The three distributions as wheels: what is in them, and that the thin one stands alone.

Wheels are built from this tree without network and without isolation: with the tools that are
locked for development.
"""

import email
import email.message
import itertools
import json
import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgpack
import pytest

from hsmux_protocol import __version__
from tests.documents.sections import ROOT

SOURCES: Final = {"hsmux": "protocol", "hsmux-tools": "tools", "hsmux-gateway": "."}
"""The distributions and where they are built from."""

PACKAGES: Final = {
    "hsmux": {"hsmux", "hsmux_protocol"},
    "hsmux-tools": {"hsmux_tools"},
    "hsmux-gateway": {"hsmux_gateway", "hsmux_native"},
}

PURE: Final = ("hsmux", "hsmux-tools")


class Wheel(NamedTuple):
    """A built wheel.

    Attributes:
        path: The file.
        files: What is in it.
        metadata: Its METADATA.
        tags: Its WHEEL file.
    """

    path: Path
    files: list[str]
    metadata: email.message.Message
    tags: email.message.Message

    def of(self, package: str) -> set[str]:
        """The files of a package."""
        return {name for name in self.files if name.startswith(f"{package}/")}


def _read(path: Path) -> Wheel:
    with zipfile.ZipFile(path) as archive:
        files = archive.namelist()
        (info,) = {name.partition("/")[0] for name in files if ".dist-info/" in name}
        metadata, tags = (
            email.message_from_bytes(archive.read(f"{info}/{name}"))
            for name in ("METADATA", "WHEEL")
        )
    return Wheel(path, files, metadata, tags)


def _pip(*words: object) -> None:
    command = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Wheel]:
    """The wheel of each distribution."""
    directory = tmp_path_factory.mktemp("wheels")
    build = ["wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", directory]
    _pip(*build, *(f"./{SOURCES[name]}" for name in PURE))
    _pip(*build, "-C", f"build-dir={tmp_path_factory.mktemp('build')}", ".")
    found = [_read(path) for path in directory.iterdir()]
    return {str(wheel.metadata["Name"]): wheel for wheel in found}


def test_there_are_three(wheels: dict[str, Wheel]) -> None:
    assert wheels.keys() == SOURCES.keys()


def test_no_file_is_in_two_wheels(wheels: dict[str, Wheel]) -> None:
    for one, other in itertools.combinations(wheels.values(), 2):
        assert not set(one.files) & set(other.files)


@pytest.mark.parametrize("name", SOURCES)
def test_a_wheel_has_its_packages_and_nothing_else(wheels: dict[str, Wheel], name: str) -> None:
    wheel = wheels[name]
    outermost = {file.partition("/")[0] for file in wheel.files}
    assert {part for part in outermost if ".dist-info" not in part} == PACKAGES[name]
    for package in PACKAGES[name]:
        assert f"{package}/py.typed" in wheel.files
        (source,) = [path for path in ROOT.glob(f"*/{package}") if path.is_dir()]
        sources = {str(path.relative_to(source.parent)) for path in source.rglob("*.py")}
        assert {file for file in wheel.of(package) if file.endswith(".py")} == sources


@pytest.mark.parametrize("name", SOURCES)
def test_a_wheel_says_version_and_licence(wheels: dict[str, Wheel], name: str) -> None:
    wheel = wheels[name]
    assert wheel.metadata["Version"] == __version__
    assert wheel.metadata["License-Expression"] == "Apache-2.0"
    (licence,) = [file for file in wheel.files if file.endswith("/licenses/LICENSE")]
    with zipfile.ZipFile(wheel.path) as archive:
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()


def test_siblings_are_wanted_in_the_same_version(wheels: dict[str, Wheel]) -> None:
    wanted = {
        name: {line for line in wheel.metadata.get_all("Requires-Dist", []) if "hsmux" in line}
        for name, wheel in wheels.items()
    }
    own = f"hsmux=={__version__}"
    assert wanted["hsmux"] == set()
    assert wanted["hsmux-tools"] == {own}
    others = {line for line in wanted["hsmux-gateway"] if "extra" not in line}
    assert others == {own, f"hsmux-tools=={__version__}"}


@pytest.mark.parametrize("name", PURE)
def test_a_pure_wheel_fits_everywhere(wheels: dict[str, Wheel], name: str) -> None:
    assert wheels[name].tags.get_all("Tag") == ["py3-none-any"]
    assert wheels[name].tags["Root-Is-Purelib"] == "true"


def test_the_gateway_is_one_wheel_for_every_later_python(wheels: dict[str, Wheel]) -> None:
    tags = wheels["hsmux-gateway"].tags.get_all("Tag") or []
    assert tags and all(tag.startswith("cp311-abi3-linux_") for tag in tags)
    libraries = {Path(f).name for f in wheels["hsmux-gateway"].files if f.endswith(".so")}
    assert libraries == {"_native.abi3.so", "libhsmux_adapter.so", "libhsmux_adapter_faults.so"}


def test_the_client_needs_one_other_distribution(wheels: dict[str, Wheel]) -> None:
    needed = wheels["hsmux"].metadata.get_all("Requires-Dist", [])
    assert [line for line in needed if "extra ==" not in line] == ["msgpack>=1.1"]


@pytest.fixture
def stranger(tmp_path: Path, wheels: dict[str, Wheel]) -> Iterator[Path]:
    """The Python of an environment that has the client's wheel, msgpack and nothing else."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    _pip("--python", python, "install", "--no-index", "--no-deps", wheels["hsmux"].path)
    (lib,) = (tmp_path / "venv" / "lib").glob("*/site-packages")
    (lib / "msgpack").symlink_to(Path(msgpack.__file__).parent)
    yield python


LOADED: Final = """
import json, sys
import hsmux, hsmux_protocol.connection, hsmux_protocol.operations
files = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
print(json.dumps([files, hsmux_protocol.__version__]))
"""


def test_the_client_works_where_nothing_else_is(stranger: Path) -> None:
    # msgpack without its compiled part: the client needs no compiler's product at all.
    environment = {**os.environ, "MSGPACK_PUREPYTHON": "1"}
    for name in ("PYTHONPATH", "PYTHONHOME"):
        environment.pop(name, None)
    done = subprocess.run(
        [stranger, "-c", LOADED], capture_output=True, text=True, check=True, env=environment
    )
    files, version = json.loads(done.stdout)
    assert version == __version__
    assert str(stranger.parent.parent) in files["hsmux"]
    outside = {name for name, file in files.items() if "site-packages" in file}
    assert {name.partition(".")[0] for name in outside} == {"hsmux", "hsmux_protocol", "msgpack"}
    assert not {name for name in outside if files[name].endswith(".so")}


def test_an_editable_install_is_of_this_version() -> None:
    from importlib.metadata import version

    assert {version(name) for name in SOURCES} == {__version__}
