"""What the tests of the C module share: its backends, and tokens behind the adapter."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

import hsmux_native
from hsmux_native import Arena, aead

from .rig import Rig, make_softhsm, make_softokn

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

BACKENDS = ("ipsec-mb", "openssl")
KINDS = ("memfd_secret", "mlock")


@contextmanager
def chosen(name: str) -> Iterator[None]:
    """A backend in use inside of the block, and the one before behind it."""
    before = hsmux_native.backend().split()[0]
    aead._select_backend(name, None)
    try:
        yield
    finally:
        aead._select_backend(before, None)


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend in turn, in this process; an arena must not outlive the change."""
    name: str = request.param
    if name == "ipsec-mb" and platform.machine() != "x86_64":
        pytest.skip("libipsec-mb is for x86-64")
    with chosen(name):
        yield name


@pytest.fixture
def arena(backend: str) -> Arena:
    """Key memory, used with each backend."""
    return Arena(1 << 20)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of key memory."""
    name: str = request.param
    try:
        Arena(1 << 20, kind=name)
    except hsmux_native.NativeError:
        pytest.skip(f"this kernel has no {name}")
    return name


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """A SoftHSM token behind the adapter that injects faults."""
    return make_softhsm(tmp_path)


@pytest.fixture
def plain(rig: Rig) -> Rig:
    """The adapter that injects nothing."""
    rig.environment["ADAPTER"] = hsmux_native.adapter_path()
    return rig


@pytest.fixture(params=[make_softhsm, make_softokn], ids=["softhsm", "softokn"])
def token(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    """A token of each module behind the adapter that injects faults."""
    made: Rig = request.param(tmp_path)
    return made
