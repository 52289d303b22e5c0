"""From a certificate to a principal, and whether that principal still stands.

Of a certificate of the own CA only the public key decides: its SHA-256 must be that of an enabled
client key of an enabled access point. Names in the certificate mean nothing. One of an outside CA
must carry what exactly one access point is known by (`mtls`), an enabled one; if it carries what
two are known by, it is nobody's. Which CA it is of: see `trust`. The chain, the dates and the
purpose were checked by TLS when the connection was made; everything that can change after that is
asked again at every call, from memory: an outside CA that is taken out of the configuration, too.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from cryptography import x509

from hsmux_protocol.errors import Unauthenticated, Unavailable

from ..call import Call, Outside, Principal
from ..catalog import Catalog
from .asked import contexts_of, is_own, resource_of, size_of
from .decision import CallFacts
from .patterns import Resource
from .rules import AccessRules
from .trust import NOBODYS, Trust, ends_ms, spki_sha256

__all__ = ["NAMING", "Identities"]

NAMING: Final = ("put_policy",)
"""What it needs beside the right to manage keys to give a key a name that a policy speaks of: it
changes what that policy grants.
"""


class Identities:
    """Knows who is asking.

    Args:
        catalog: Access points and client keys.
        rules: What their policies say.
        stale_s: Seconds that what is in memory holds while the store is away.
        refresh: Brings the catalogue up to date.

    Attributes:
        trust: Whose certificates are believed; None: nobody's yet.
    """

    def __init__(
        self,
        catalog: Catalog,
        rules: AccessRules,
        stale_s: float,
        refresh: Callable[[], Awaitable[None]],
    ) -> None:
        self._catalog = catalog
        self._rules = rules
        self._stale_s = stale_s
        self._refresh = refresh
        self.trust: Trust | None = None

    async def authenticate(self, chain: Sequence[bytes]) -> Principal:
        """The principal of a certificate that TLS accepted.

        Args:
            chain: As TLS verified it, DER, from the certificate to the root.

        Raises:
            Unauthenticated: It is not one that an enabled access point is known by; never says why.
            Unavailable: The store would have to be asked and is away.
        """
        if self.trust is None:
            raise Unauthenticated(NOBODYS)
        outside = self.trust.outside_of(chain)
        if outside is None:
            return await self._of_client_key(chain[0])
        return self._of_binding(outside, chain)

    def _of_binding(self, outside: Outside, chain: Sequence[bytes]) -> Principal:
        """Whom a certificate of an outside CA stands for.

        The store is not asked: an outside CA may have issued any number of certificates that mean
        nothing here.
        """
        access_point = self._catalog.access_points.get(self._bound_to(outside) or b"")
        if access_point is None or access_point.state != "Enabled":
            raise Unauthenticated(NOBODYS)
        return Principal(
            access_point.access_point_id,
            access_point.name,
            spki_sha256(x509.load_der_x509_certificate(chain[0]))[:16],
            ends_ms(chain),
            outside,
        )

    def _bound_to(self, outside: Outside) -> bytes | None:
        """The one access point that is known by a certificate."""
        bindings = self._catalog.mtls_bindings
        found = {bindings[name] for name in outside.names if name in bindings}
        return found.pop() if len(found) == 1 else None

    async def _of_client_key(self, certificate: bytes) -> Principal:
        """Whom a certificate of the own CA stands for.

        The CA has signed it, so a key that is not known was issued by another gateway just now,
        or never came to be: the store is asked before it is refused.
        """
        digest = spki_sha256(x509.load_der_x509_certificate(certificate))
        if digest not in self._catalog.client_keys_by_spki:
            await self._refresh()
        client_key_id = self._catalog.client_keys_by_spki.get(digest, b"")
        client_key = self._catalog.client_keys.get(client_key_id)
        if client_key is not None:
            access_point = self._catalog.access_points[client_key.access_point_id]
            if client_key.state == access_point.state == "Enabled":
                return Principal(
                    access_point.access_point_id,
                    access_point.name,
                    client_key_id,
                    client_key.not_after_ms,
                )
        raise Unauthenticated("this client key is not known, or not accepted any more")

    def stands(self, principal: Principal) -> bool:
        """Whether a principal that was authenticated is still accepted."""
        access_point = self._catalog.access_points[principal.access_point_id]
        return access_point.state == "Enabled" and self._is_accepted(principal)

    def _is_accepted(self, principal: Principal) -> bool:
        """Whether what a principal proved is still what its access point is known by."""
        outside = principal.outside
        if outside is None:
            return self._catalog.client_keys[principal.client_key_id].state == "Enabled"
        is_believed = self.trust is not None and self.trust.believes(outside.root)
        return is_believed and self._bound_to(outside) == principal.access_point_id

    def facts(self, call: Call) -> CallFacts:
        """What a decision may look at, now.

        Raises:
            Unavailable: What is in memory is too old to decide on.
            InvalidArgument: The call names nothing that could be decided on.
        """
        if self._catalog.stale_for_s() > self._stale_s:
            raise Unavailable("the store is away, and what is known of it is too old")
        principal, permission = call.principal, call.operation.permission
        point = self._catalog.access_points[principal.access_point_id]
        is_enabled = point.state == "Enabled"
        has_key = self._is_accepted(principal)
        now_ms, until_ms = time.time_ns() // 1_000_000, principal.valid_until_ms
        if not (is_enabled and has_key and now_ms < until_ms):
            # Who is not accepted learns nothing about what it sent.
            return CallFacts(is_enabled, has_key, until_ms, now_ms, permission)
        grants = self._rules.grants_of(principal.access_point_id)
        resource = resource_of(call, self._catalog)
        also = NAMING if self._gives_names(call, resource) else ()
        needs = grants.needs(permission, resource)
        for further in also:
            needs |= grants.needs(further, None)
        address, is_inside = "", True
        if point.network_rules or "network" in needs:
            address = call.peer_host
            is_inside = self._rules.comes_from_inside(principal.access_point_id, address)
        return CallFacts(
            is_enabled,
            has_key,
            until_ms,
            now_ms,
            permission,
            resource,
            also,
            grants,
            is_inside,
            address,
            contexts_of(call) if "context" in needs else (),
            size_of(call) if "size" in needs else 0,
            is_own(call),
        )

    def _gives_names(self, call: Call, resource: Resource | None) -> bool:
        """Whether a call gives a key names that policies speak of."""
        if call.operation.resource != "new key" or resource is None:
            return False
        return self._rules.speaks_of(resource)
