"""`explain_reference`: why a request was allowed or refused, from its record and the policies now.

A record says which statement decided and what the caller asked; it does not hold the policy. So an
answer has the statement as it is now and says whether its policy was put since. What would be
decided now is decided anew, of what the record holds: contexts are not in it, so statements that
want context entries count as not fulfilled. A certificate of an outside CA is not in it either: it
counts as accepted while its access point is known by any.

Looking through a log takes a thread and the interpreter for a while. So one segment is looked at at
a time, for whomever; those who wait take turns by access point. A look that nobody waits for any
more ends with its segment, and holds up the next one and nothing else.
"""

from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from hsmux_protocol.errors import InvalidArgument, NotFound
from hsmux_protocol.operations import DOCUMENT_SIZE_MAX, OPERATION_BY_NUMBER
from hsmux_protocol.references import ALIAS_PREFIX, KeyReference, parse_key_reference

from ..access.decision import CallFacts, decide, missing, unknown_because
from ..access.grants import title_of
from ..access.patterns import Resource
from ..access.policy import WITH_SIZE
from ..access.rules import AccessRules, read_policy
from ..access.windows import FOREVER_MS
from ..call import Call
from ..catalog import Catalog
from ..clock import now_ms
from ..fairness import FairThreads
from .lookup import (
    LOOKUP_BYTES_MAX,
    Decided,
    decided_by,
    find_in_segment,
    is_reference,
    newest_segments,
)
from .records import Request, Run, export_record

__all__ = ["ExplainService"]

MISSING_MAX: Final = 64
"""Statements of which it is told what they want."""


class _Statement(NamedTuple):
    """A statement as it is now.

    Attributes:
        text: JSON; empty: it is not there.
        since: What became of it.
    """

    text: str
    since: str


class ExplainService:
    """Handler of `explain_reference`.

    Args:
        catalog: Finds access points, keys and policies.
        rules: What policies say.
        directory: Of the log.
        looking: One thread that looks through it.
    """

    def __init__(
        self, catalog: Catalog, rules: AccessRules, directory: Path, looking: FairThreads
    ) -> None:
        self._catalog = catalog
        self._rules = rules
        self._directory = directory
        self._looking = looking

    async def explain_reference(self, call: Call, reference: str) -> list[Any]:
        """What was decided of a request, and what would be now."""
        if not is_reference(reference):
            raise InvalidArgument("reference: not one that an answer, a refusal or a log line has")
        record = await self._find(call, reference)
        told = export_record(record)
        decided = decided_by(record)
        statement = _Statement("", "none")
        if decided is not None:
            statement = self._statement(decided, record.at_ms)
        facts = self._facts(record)
        decision = None if facts is None else decide(facts)
        lacks = [] if facts is None or decision is None or decision.allowed else missing(facts)
        return [
            record.at_ms,
            record.access_point,
            told["operation"],
            record.resource,
            told.get("outcome", "done"),
            record.statement,
            "" if decided is None else decided.policy,
            *statement,
            "" if decision is None else decision.statement,
            lacks[:MISSING_MAX],
        ]

    async def _find(self, call: Call, reference: str) -> Request | Run:
        tenant = call.principal.access_point_id
        segments = await self._looking.run(
            tenant, lambda: list(newest_segments(self._directory, LOOKUP_BYTES_MAX))
        )
        for path in segments:
            # One at a time, so that whoever does not wait any more stops it.
            found = await self._looking.run(tenant, partial(find_in_segment, path, reference))
            if found is not None:
                return found.record
        raise NotFound(
            f"no record of {reference} in what this gateway looks through; ask the gateway that"
            " answered, or use `hsmux policy explain --directory` over the log"
        )

    def _statement(self, decided: Decided, at_ms: int) -> _Statement:
        row = self._catalog.policies.get(decided.policy)
        if row is None:
            return _Statement("", "gone")
        for number, statement in enumerate(read_policy(row.document).statements):
            if f"{row.name} {title_of(number, statement)}" == decided.label:
                text = msgspec.json.encode(statement).decode()[:DOCUMENT_SIZE_MAX]
                return _Statement(text, "changed" if row.updated_at_ms > at_ms else "same")
        return _Statement("", "gone")

    def _facts(self, record: Request | Run) -> CallFacts | None:
        """What a decision now would look at; None if there is nothing to decide about."""
        operation = OPERATION_BY_NUMBER.get(record.operation)
        row = self._catalog.access_points.get(record.access_point_id)
        if operation is None or row is None:
            return None
        address = record.peer.rpartition(":")[0].strip("[]")
        key = self._catalog.client_keys.get(record.client_key)
        at_ms = now_ms()
        facts = CallFacts(
            row.state == "Enabled",
            key.state == "Enabled" if key else bool(self._catalog.mtls_of(row.access_point_id)),
            FOREVER_MS,
            at_ms,
            operation.permission,
        )
        if unknown_because(facts):
            return facts
        return facts._replace(
            resource=self._resource(operation.resource, record),
            grants=self._rules.grants_of(row.access_point_id),
            is_inside=self._rules.comes_from_inside(row.access_point_id, address),
            peer_address=address,
            size=record.bytes_in if operation.permission in WITH_SIZE else 0,
        )

    def _resource(self, kind: str, record: Request | Run) -> Resource | None:
        if not kind:
            return None
        if kind == "new key":
            name = record.resource.removeprefix(ALIAS_PREFIX)
            return Resource(None, (name,) if name else (), ())
        try:
            reference = parse_key_reference(record.resource)
        except ValueError:
            # "the key of this envelope", or a name that was cut.
            reference = KeyReference(record.key_id or bytes(16), None, None)
        return self._catalog.resource_of(reference)
