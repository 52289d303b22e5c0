"""Whether what a decision rests on still holds, when the caller has a certificate of another CA."""

import pytest

from hsmux_gateway.access.identities import Identities
from hsmux_gateway.access.permits import Permits
from hsmux_gateway.access.rules import AccessRules
from hsmux_gateway.call import Outside, Principal
from hsmux_gateway.store import AccessPointRow, MtlsBindingRow, Transaction
from hsmux_protocol.errors import Busy
from tests.gateway.parts import Parts, make_call, running_parts

KNOWN, FREE = "uri:spiffe://example.org/known", "uri:spiffe://example.org/free"
OWN, OTHER = b"o" * 16, b"x" * 16


def _point(identifier: bytes) -> AccessPointRow:
    return AccessPointRow(identifier, f"app-{identifier[:1].decode()}", "", "Enabled", "", "", 1)


CHANGES = {
    "it is known no more": MtlsBindingRow(KNOWN, None),
    "another one is known by it": MtlsBindingRow(KNOWN, OTHER),
    "another one is known by it as well": MtlsBindingRow(FREE, OTHER),
}


def _bind(transaction: Transaction, row: MtlsBindingRow) -> None:
    found = transaction.get(MtlsBindingRow, row.name)
    if found is None:
        transaction.insert(row)
    else:
        transaction.update(MtlsBindingRow(row.name, row.access_point_id, found.row_revision))


@pytest.mark.parametrize("name", CHANGES)
async def test_nothing_is_changed_for_who_a_certificate_stood_for_before(name: str) -> None:
    parts = Parts()
    async with running_parts(parts):

        def begin(transaction: Transaction) -> None:
            for identifier in (OWN, OTHER):
                transaction.insert(_point(identifier))
            _bind(transaction, MtlsBindingRow(KNOWN, OWN))

        parts.store.write(begin)
        await parts.effects.refresh()
        rules = AccessRules(parts.catalog)
        permits = Permits(Identities(parts.catalog, rules, 5.0, parts.effects.refresh))
        outside = Outside(b"r" * 32, (KNOWN, FREE))
        principal = Principal(OWN, "app-o", b"k" * 16, 2**50, outside)
        call = make_call("show_status")._replace(principal=principal)
        since = parts.catalog.revision
        parts.store.read(lambda reader: permits.require_unchanged(reader, call, since))
        parts.store.write(lambda transaction: _bind(transaction, CHANGES[name]))
        with pytest.raises(Busy):
            parts.store.read(lambda reader: permits.require_unchanged(reader, call, since))
