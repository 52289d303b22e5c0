"""The conformance suite on the twin and on real modules."""

from pathlib import Path

import pytest

from hsmux_gateway.hsm.conformance import TOKEN_CHECKS, check_token
from hsmux_gateway.hsm.memory import MemoryToken
from hsmux_gateway.hsm.pool import open_token
from hsmux_native import Arena
from tests.gateway.hsm.conftest import MAKERS


@pytest.mark.parametrize("check", TOKEN_CHECKS, ids=lambda check: check.__name__)
async def test_the_twin_conforms(check: object, arena: Arena) -> None:
    assert callable(check)
    await check(MemoryToken("test", arena), arena)


@pytest.mark.parametrize("module", MAKERS)
async def test_a_real_module_conforms(module: str, arena: Arena, tmp_path: Path) -> None:
    (tmp_path / "hsm").mkdir()
    settings = MAKERS[module](tmp_path)
    async with open_token(settings, arena, tmp_path / "hsm") as token:
        await check_token(token, arena)
        assert token.statistics().restarts == 0
