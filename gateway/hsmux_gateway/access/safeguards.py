"""What no change of access may do: lock the last administrator out, or serve the one who makes it.

Both are looked at inside the transaction of the change, over the rows as it leaves them, so two
changes at the same time cannot do together what neither may alone.
"""

from collections.abc import Iterator
from typing import Final

from hsmux_protocol.errors import Conflict, Denied

from ..call import Call
from ..catalog import Catalog
from ..clock import now_ms
from ..store.rows import AccessPointRow, ClientKeyRow, NetworkRuleRow, PolicyRow
from ..store.transaction import Reader
from .decision import CallFacts, decide
from .grants import Grants, compile_grants
from .networks import Networks
from .policy import Policy, network_rules_of
from .rules import NOWHERE, lines_of, read_policy

__all__ = ["ADMINISTRATION", "APPROVAL", "Safeguards", "grants_in"]

ADMINISTRATION: Final = ("put_policy", "update_access_point", "create_client_key")
"""What somebody must still be able to do after every change."""


APPROVAL: Final = "approve_request"
"""What makes an access point one whose approvals count."""


class Safeguards:
    """Looks at changes of access before they are committed.

    Args:
        catalog: Knows who could be an administrator.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def keep_administrator(self, reader: Reader, call: Call) -> None:
        """Refuse a change after which nobody could administer access from where the caller is.

        Raises:
            Conflict: There would be nobody.
        """
        for access_point_id in self._candidates(call):
            row = reader.get(AccessPointRow, access_point_id)
            if row is not None and self._administers(reader, row, call):
                return
        raise Conflict(
            "this would leave no access point that can administer access from here; "
            "make another administrator first"
        )

    def may_administer(self, reader: Reader, row: AccessPointRow | None) -> bool:
        """Whether an access point could be an administrator, wherever it is and whenever."""
        if row is None or not row.policies:
            return False
        grants, _ = grants_in(reader, row)
        return all(
            any(rule.is_allowing for rule in grants.all_rules(name)) for name in ADMINISTRATION
        )

    def may_approve(self, reader: Reader, row: AccessPointRow | None) -> bool:
        """Whether an access point could approve requests, wherever it is and whenever."""
        if row is None or not row.policies:
            return False
        rules = grants_in(reader, row)[0].rules(APPROVAL, None)
        # Those that deny stand first; one that always holds leaves nothing.
        return any(rule.is_allowing for rule in rules) and bool(
            rules[0].is_allowing or rules[0].needs
        )

    def refuse_own(self, call: Call, access_point_id: bytes) -> None:
        """Refuse a change of what the caller's own access point may do.

        Raises:
            Denied: It is its own.
        """
        if access_point_id == call.principal.access_point_id:
            raise Denied(f"{_OWN}: another administrator has to do it")

    def refuse_own_policy(self, reader: Reader, call: Call, name: str) -> None:
        """Refuse a change of a policy that the caller's own access point has.

        Raises:
            Denied: It has it.
        """
        own = reader.get(AccessPointRow, call.principal.access_point_id)
        if own is not None and name in lines_of(own.policies):
            raise Denied(f"{_OWN}, and it has policy {name}: another administrator has to do it")

    def refuse_own_network_rule(self, reader: Reader, call: Call, name: str) -> None:
        """Refuse a change of a network rule that the caller's own access point depends on.

        Raises:
            Denied: It does.
        """
        own = reader.get(AccessPointRow, call.principal.access_point_id)
        if own is None:
            return
        policies = _policies(reader, own).values()
        required = {*lines_of(own.network_rules)}.union(*map(network_rules_of, policies))
        if name in required:
            raise Denied(
                f"{_OWN}, and it depends on network rule {name}: another administrator has to do it"
            )

    def _candidates(self, call: Call) -> Iterator[bytes]:
        """Access points that may be administrators, the caller's own first."""
        own = call.principal.access_point_id
        yield own
        # A copy made at once: this runs in a thread, and the event loop adds meanwhile.
        for access_point_id, row in list(self._catalog.access_points.items()):
            if row.policies and row.state == "Enabled" and access_point_id != own:
                yield access_point_id

    def _administers(self, reader: Reader, row: AccessPointRow, call: Call) -> bool:
        if row.state != "Enabled" or not row.policies:
            return False
        at_ms = now_ms()
        until_ms = self._accepted_until_ms(reader, row.access_point_id, at_ms)
        grants, networks = grants_in(reader, row)
        facts = CallFacts(
            True,
            until_ms > at_ms,
            until_ms,
            at_ms,
            "",
            grants=grants,
            is_inside=not networks or any(one.contain(call.peer_host) for one in networks),
            peer_address=call.peer_host,
        )
        found = [decide(facts._replace(permission=name)) for name in ADMINISTRATION]
        # What ends by itself does not keep anybody.
        return all(decision.allowed and "time" not in decision.depends_on for decision in found)

    def _accepted_until_ms(self, reader: Reader, access_point_id: bytes, at_ms: int) -> int:
        """The end of a client key of an access point that is accepted; 0: there is none."""
        for client_key_id in tuple(self._catalog.client_keys_of.get(access_point_id, ())):
            key = reader.get(ClientKeyRow, client_key_id)
            if key is not None and key.state == "Enabled" and key.not_after_ms > at_ms:
                return key.not_after_ms
        return 0


_OWN: Final = "an access point does not change its own access"


def _policies(reader: Reader, row: AccessPointRow) -> dict[str, Policy]:
    """The policies of an access point that are there."""
    found = {name: reader.get(PolicyRow, name) for name in lines_of(row.policies)}
    return {name: read_policy(p.document) for name, p in found.items() if p and p.document}


def grants_in(reader: Reader, row: AccessPointRow) -> tuple[Grants, list[Networks]]:
    """What the policies of an access point grant, and where it has to come from."""
    policies, own = _policies(reader, row), lines_of(row.network_rules)
    names = {*own}.union(*map(network_rules_of, policies.values()))
    found = {name: reader.get(NetworkRuleRow, name) for name in names}
    networks = {name: Networks(lines_of(r.networks)) for name, r in found.items() if r}
    grants = compile_grants(lines_of(row.policies), policies, networks)
    return grants, [networks.get(name, NOWHERE) for name in own]
