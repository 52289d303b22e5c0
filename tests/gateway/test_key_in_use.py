"""What is kept of a key version between uses never outlives the state that allowed it."""

from typing import Any

import msgspec
import pytest

from hsmux_gateway.keys.cipher import key_in_use
from hsmux_gateway.store.store import Changes
from hsmux_protocol.errors import NotFound, WrongState
from tests.gateway.parts import running_parts


async def test_a_key_version_is_made_ready_once() -> None:
    async with running_parts() as parts:
        (record,) = await parts.create_key()
        row = parts.catalog.keys[record.key_id]
        used = key_in_use(parts.catalog, row, None)
        assert key_in_use(parts.catalog, row, None) is used
        assert key_in_use(parts.catalog, row, 1).header == used.header
        with pytest.raises(NotFound):
            key_in_use(parts.catalog, row, 2)


@pytest.mark.parametrize("table", ["keys", "key_versions"])
async def test_a_disabled_key_or_version_is_refused_at_once(table: str) -> None:
    async with running_parts() as parts:
        (record,) = await parts.create_key()
        catalog, key_id = parts.catalog, record.key_id
        row, version = catalog.keys[key_id], catalog.versions[key_id][1]
        used = key_in_use(catalog, row, None)
        changed: dict[str, Any] = {
            "keys": [msgspec.structs.replace(row, state="Disabled")],
            "key_versions": [msgspec.structs.replace(version, state="Disabled")],
        }
        catalog.apply(Changes(catalog.revision + 1, **{table: changed[table]}))
        with pytest.raises(WrongState, match="Disabled"):
            key_in_use(catalog, catalog.keys[key_id], None)
        catalog.apply(Changes(catalog.revision + 1, keys=[row], key_versions=[version]))
        assert key_in_use(catalog, catalog.keys[key_id], None) is not used


async def test_who_waited_with_an_older_row_makes_nothing_usable_for_others() -> None:
    async with running_parts() as parts:
        (record,) = await parts.create_key()
        catalog, key_id = parts.catalog, record.key_id
        older = catalog.keys[key_id]
        disabled = msgspec.structs.replace(older, state="Disabled")
        catalog.apply(Changes(catalog.revision + 1, keys=[disabled]))
        key_in_use(catalog, older, None)
        with pytest.raises(WrongState, match="Disabled"):
            key_in_use(catalog, disabled, None)


async def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsmux_gateway.catalog.DERIVED_MAX", 2)
    async with running_parts() as parts:
        for _ in range(5):
            (record,) = await parts.create_key()
            row = parts.catalog.keys[record.key_id]
            assert key_in_use(parts.catalog, row, None).row is row
            assert len(parts.catalog._derived) <= 2
