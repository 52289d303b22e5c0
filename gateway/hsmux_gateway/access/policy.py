"""Policy documents: what they may say, read strictly.

A document is a JSON object (the command reads TOML of the same shape too):

    description     for people
    statements      1 to 64 of
        name        for explanations; empty: its number
        effect      allow or deny
        operations  permissions of the operation table, or ["*"] for all of them
        role        instead of operations: a role of the operation table
        resources   see `patterns`
        conditions  all of them must hold, or the statement says nothing
            network_rule    the caller's address is in one of the rule's networks
            context         the encryption context has at least these entries
            size_max        the data has at most so many bytes, each item of a batch; only to allow
            time            see `windows`

What is not known is refused with the nearest name that is. A statement that could never say
anything is refused too, and so is one that another statement of the document denies as a whole:
whoever wrote it meant something else.
"""

import json
from collections.abc import Iterator
from typing import Any, Final, Literal

import msgspec

from hsmux_protocol.context import encode_context
from hsmux_protocol.fields import Context
from hsmux_protocol.operations import DOCUMENT_SIZE_MAX, OPERATIONS, PERMISSIONS, ROLES

from ..strict import nearest
from .patterns import EVERYTHING, Pattern, parse_pattern, subsumes
from .windows import WindowDocument, parse_window

__all__ = [
    "ITEMS",
    "RESOURCED",
    "WITH_CONTEXT",
    "WITH_SIZE",
    "Conditions",
    "Policy",
    "PolicyError",
    "Statement",
    "format_policy",
    "network_rules_of",
    "parse_policy",
    "permissions_of",
]

STATEMENTS_MAX: Final = 64
RESOURCES_MAX: Final = 128
"""Of one statement."""

DESCRIPTION_LENGTH_MAX: Final = 256
"""Characters of a policy's description."""

NAME_LENGTH_MAX: Final = 64
"""Characters of a statement's name."""

ITEMS: Final = ("plaintext", "plaintexts", "ciphertext", "ciphertexts", "message")
"""Arguments whose size a condition can bound."""


class PolicyError(ValueError):
    """A document cannot be a policy; the text begins with the place."""


class Conditions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What must hold beside operation and resource."""

    network_rule: str = ""
    context: dict[str, str] = {}
    size_max: int | None = None
    time: WindowDocument | None = None


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One rule of a policy."""

    effect: Literal["allow", "deny"]
    resources: tuple[str, ...]
    operations: tuple[str, ...] = ()
    role: str = ""
    conditions: Conditions = Conditions()
    name: str = ""


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A document, read and checked."""

    statements: tuple[Statement, ...]
    description: str = ""


RESOURCED: Final = frozenset(o.permission for o in OPERATIONS.values() if o.resource)
WITH_CONTEXT: Final = frozenset(
    operation.permission
    for operation in OPERATIONS.values()
    if any(isinstance(field.type, Context) for field in operation.arguments)
)
WITH_SIZE: Final = frozenset(
    operation.permission
    for operation in OPERATIONS.values()
    if any(field.name in ITEMS for field in operation.arguments)
)
_INNER: Final[dict[tuple[type, str], type]] = {
    (Policy, "statements"): Statement,
    (Statement, "conditions"): Conditions,
    (Conditions, "time"): WindowDocument,
}


def parse_policy(text: str) -> Policy:
    """Read a document.

    Raises:
        PolicyError: It is not JSON, or not a policy that can mean something.
    """
    if len(text.encode()) > DOCUMENT_SIZE_MAX:
        raise PolicyError(f"more than {DOCUMENT_SIZE_MAX} bytes")
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse_constant)
    except PolicyError:
        raise
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"not JSON: {error}") from None
    if not _is_unicode(value):
        raise PolicyError("not valid Unicode")
    _check_names(value, Policy, "")
    try:
        policy = msgspec.convert(value, Policy)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at `$")
        where = place.rstrip("`").removeprefix(".")
        if where.endswith(".effect"):
            what = "must be 'allow' or 'deny'"
        raise PolicyError(f"{where}: {what}" if where else what) from None
    _check(policy)
    return policy


def format_policy(policy: Policy) -> str:
    """The canonical text of a policy."""
    return msgspec.json.encode(policy).decode()


def permissions_of(statement: Statement) -> frozenset[str]:
    """The permissions a statement speaks of."""
    if statement.role:
        return ROLES[statement.role]
    return PERMISSIONS if EVERYTHING in statement.operations else frozenset(statement.operations)


def network_rules_of(policy: Policy) -> set[str]:
    """The network rules that statements of a policy require."""
    return {s.conditions.network_rule for s in policy.statements} - {""}


def _is_unicode(value: Any) -> bool:
    """Whether all texts can be written as UTF-8: JSON's escapes can name halves of a character."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise PolicyError(f"{twice!r} is there twice in one object")
    return table


def _refuse_constant(name: str) -> Any:
    raise PolicyError(f"{name} is not a number of JSON")


def _check_names(value: Any, struct: type, place: str) -> None:
    if isinstance(value, list):
        for number, item in enumerate(value):
            _check_names(item, struct, f"{place}[{number}]")
    if not isinstance(value, dict):
        return
    known = [field.name for field in msgspec.structs.fields(struct)]
    for name, item in value.items():
        here = f"{place}.{name}".removeprefix(".")
        if name not in known:
            raise PolicyError(f"{here}: unknown; {nearest(name, known)}")
        inner = _INNER.get((struct, name))
        if inner is not None:
            _check_names(item, inner, here)


def _check(policy: Policy) -> None:
    if not 1 <= len(policy.statements) <= STATEMENTS_MAX:
        raise PolicyError(f"statements: 1 to {STATEMENTS_MAX}, not {len(policy.statements)}")
    names: set[str] = set()
    if len(policy.description) > DESCRIPTION_LENGTH_MAX:
        raise PolicyError(f"description: more than {DESCRIPTION_LENGTH_MAX} characters")
    for number, statement in enumerate(policy.statements):
        place = f"statements[{number}]"
        try:
            for text in (policy.description, statement.name):
                _check_text(text)
            if len(statement.name) > NAME_LENGTH_MAX:
                raise ValueError(f"name: more than {NAME_LENGTH_MAX} characters")
            if statement.name in names:
                raise ValueError(f"name: {statement.name!r} is the name of another statement")
            _check_operations(statement)
            _check_resources(statement)
            _check_conditions(statement)
        except PolicyError:
            raise
        except ValueError as error:
            raise PolicyError(f"{place}.{error}") from None
        names |= {statement.name} - {""}
    _check_denied(policy)


def _check_text(text: str) -> None:
    if not text.isprintable():
        raise PolicyError(f"{text[:80]!r}: names and descriptions are printable characters")


def _check_operations(statement: Statement) -> None:
    if bool(statement.operations) == bool(statement.role):
        raise ValueError("operations: set either operations or role")
    if statement.role and statement.role not in ROLES:
        raise ValueError(f"role: unknown role {statement.role!r}; {nearest(statement.role, ROLES)}")
    for number, name in enumerate(statement.operations):
        if name in PERMISSIONS or statement.operations == (EVERYTHING,):
            continue
        raise ValueError(f"operations[{number}]: {_unknown_operation(name)}")


def _unknown_operation(name: str) -> str:
    if name == EVERYTHING:
        return "* stands for all operations, so it stands alone"
    operation = OPERATIONS.get(name)
    if operation is not None:
        return f"{name} needs the permission {operation.permission!r}; name that"
    return f"unknown operation {name!r}; {nearest(name, PERMISSIONS)}"


def _check_resources(statement: Statement) -> None:
    if not 1 <= len(statement.resources) <= RESOURCES_MAX:
        raise ValueError(f"resources: 1 to {RESOURCES_MAX}, not {len(statement.resources)}")
    for number, resource in enumerate(statement.resources):
        try:
            parse_pattern(resource)
        except ValueError as error:
            raise ValueError(f"resources[{number}]: {error}") from None
    if EVERYTHING in statement.resources:
        return
    for name in statement.operations:
        if name in PERMISSIONS - RESOURCED:
            raise ValueError(
                f"operations: {name} is about no single key, so only the resource * can name it"
            )
    if not permissions_of(statement) & RESOURCED:
        raise ValueError(
            f"resources: the operations of {statement.role} are about no single key, so only the "
            "resource * can name them"
        )


def _check_conditions(statement: Statement) -> None:
    conditions, permissions = statement.conditions, permissions_of(statement)
    try:
        if conditions.context:
            encode_context(conditions.context)
        if conditions.time is not None:
            parse_window(conditions.time)
        if conditions.size_max is not None and statement.effect == "deny":
            raise ValueError("size_max: it bounds what is allowed; here it would deny small data")
        if conditions.size_max is not None and not 0 <= conditions.size_max <= 2**20:
            raise ValueError(f"size_max: 0 to {2**20} bytes, not {conditions.size_max}")
    except ValueError as error:
        part = "time." if str(error).partition(":")[0] in _WINDOW_FIELDS else ""
        raise ValueError(f"conditions.{part}{error}") from None
    for name, able in (("context", WITH_CONTEXT), ("size_max", WITH_SIZE)):
        is_set = getattr(conditions, name) not in ({}, None)
        if is_set and not permissions & able:
            raise ValueError(f"conditions.{name}: no operation here has one; it never holds")


_WINDOW_FIELDS: Final = frozenset(WindowDocument.__struct_fields__)


def _check_denied(policy: Policy) -> None:
    """Refuse an allowance that another statement of the same document takes away as a whole."""
    for denied, denier in _pairs(policy):
        if _covers(policy.statements[denier], policy.statements[denied]):
            raise PolicyError(
                f"statements[{denied}]: all that it allows is denied by statements[{denier}]"
            )


def _pairs(policy: Policy) -> Iterator[tuple[int, int]]:
    numbered = list(enumerate(policy.statements))
    for denied, allowing in numbered:
        for denier, denying in numbered:
            is_sweeping = denying.conditions == Conditions()
            if allowing.effect == "allow" and denying.effect == "deny" and is_sweeping:
                yield denied, denier


def _covers(wider: Statement, narrower: Statement) -> bool:
    if not permissions_of(wider) >= permissions_of(narrower):
        return False
    wide = [parse_pattern(text) for text in wider.resources]
    return all(_is_covered(wide, parse_pattern(text)) for text in narrower.resources)


def _is_covered(wide: list[Pattern], narrow: Pattern) -> bool:
    return any(subsumes(pattern, narrow) for pattern in wide)
