"""The policies that `hsmux init` and `hsmux dev` make."""

from typing import Final

from .policy import Policy, Statement

__all__ = ["ADMINISTRATOR", "EVERYTHING"]

ADMINISTRATOR: Final = Policy(
    description="administers keys and access, reads what is recorded, and uses no key",
    statements=(
        Statement("allow", ("*",), role="access-admin"),
        Statement("allow", ("*",), role="key-admin"),
        Statement("allow", ("*",), role="auditor"),
    ),
)
"""Of the first administrator: what keeps a deployment going, and nothing that uses its keys."""

EVERYTHING: Final = Policy(
    description="everything, for development",
    statements=(Statement("allow", ("*",), operations=("*",)),),
)
"""Of the one access point of a development gateway."""
