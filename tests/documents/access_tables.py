"""The tables of docs/access.md, made from the operation table."""

from typing import Final

from hsmux_protocol.operations import OPERATIONS, PERMISSIONS, ROLES

from .sections import Section, table

__all__ = ["ACCESS_SECTIONS"]

QUORUM: Final = {"never": "no", "always": "yes", "administrators": "if it touches administrators"}
RESOURCES: Final = {"key": "its key", "new key": "the alias and tags it gives", "": "`*` only"}


def _roles() -> str:
    rows = [
        (f"`{role}`", ", ".join(f"`{name}`" for name in sorted(permissions)))
        for role, permissions in ROLES.items()
    ]
    return table(("role", "operations"), rows)


def _permissions() -> str:
    rows = []
    for permission in sorted(PERMISSIONS):
        operations = [o for o in OPERATIONS.values() if o.permission == permission]
        rows.append(
            (
                f"`{permission}`",
                ", ".join(f"`{operation.name}`" for operation in operations),
                RESOURCES[operations[0].resource],
                QUORUM[operations[0].quorum],
            )
        )
    return table(("in a policy", "requests", "resources that can name it", "quorum"), rows)


ACCESS_SECTIONS: Final[dict[str, Section]] = {"roles": _roles, "permissions": _permissions}
