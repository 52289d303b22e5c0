"""All policies of one access point, compiled: which rules speak about an operation on a resource.

The rules of all documents stand in one row: those that deny, then those that allow without
conditions, then those that allow with some. A decision goes along the row and ends at the first
that holds, so a denial wins, and an allowance that depends on nothing is found before one that
does. For each permission an index tells which rules of the row name a resource.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from .networks import Networks
from .patterns import Index, Resource, parse_pattern
from .policy import Policy, Statement, permissions_of
from .windows import Window, parse_window

__all__ = ["NO_GRANTS", "Grants", "Rule", "compile_grants", "title_of"]


class Rule(NamedTuple):
    """A statement, ready to be decided on.

    Attributes:
        label: Policy and statement, for explanations.
        is_allowing: The effect.
        networks: Of the network rule it requires, or None.
        network_rule: Its name, or "".
        context: Entries it requires.
        size_max: Bytes, or None.
        window: When it holds, or None.
    """

    label: str
    is_allowing: bool
    networks: Networks | None
    network_rule: str
    context: tuple[tuple[str, str], ...]
    size_max: int | None
    window: Window | None

    @property
    def needs(self) -> frozenset[str]:
        """The facts of a request that its conditions look at."""
        looked_at = {
            "network": self.networks is not None,
            "context": bool(self.context),
            "size": self.size_max is not None,
            "time": self.window is not None,
        }
        return frozenset(name for name, is_needed in looked_at.items() if is_needed)


class Grants:
    """The compiled policies of an access point.

    Args:
        policies: By name.
        networks: Network rules by name.

    Attributes:
        remembered: Decisions that hold as long as these grants; see `decision`.

    Raises:
        KeyError: A policy requires a network rule that is not there.
    """

    def __init__(self, policies: Mapping[str, Policy], networks: Mapping[str, Networks]) -> None:
        self.remembered: dict[tuple[str, Resource | None], Any] = {}
        written = [
            (_rule(f"{name} {title_of(number, statement)}", statement, networks), statement)
            for name, policy in policies.items()
            for number, statement in enumerate(policy.statements)
        ]
        written.sort(key=lambda pair: (pair[0].is_allowing, bool(pair[0].needs)))
        self._rules = [rule for rule, _ in written]
        self._patterns = [list(map(parse_pattern, s.resources)) for _, s in written]
        spoken: dict[str, list[int]] = {}
        for number, (_, statement) in enumerate(written):
            for permission in permissions_of(statement):
                spoken.setdefault(permission, []).append(number)
        self._spoken = {permission: tuple(numbers) for permission, numbers in spoken.items()}
        self._looked_at = {
            permission: frozenset[str]().union(*(self._rules[n].needs for n in numbers))
            for permission, numbers in spoken.items()
        }
        # Made when first asked for; permissions that the same rules speak about share one.
        self._indexes: dict[tuple[int, ...], Index] = {}

    def __repr__(self) -> str:
        return f"Grants({len(self._rules)} rules for {len(self._spoken)} permissions)"

    def rules(self, permission: str, resource: Resource | None) -> list[Rule]:
        """The rules that speak about an operation on a resource, in the order of the row."""
        numbers = self._spoken.get(permission)
        if numbers is None:
            return []
        index = self._indexes.get(numbers)
        if index is None:
            index = Index((pattern, n) for n in numbers for pattern in self._patterns[n])
            self._indexes[numbers] = index
        return [self._rules[number] for number in index.find(resource)]

    def all_rules(self, permission: str) -> list[Rule]:
        """The rules that speak about an operation, on whatever resource."""
        return [self._rules[number] for number in self._spoken.get(permission, ())]

    def needs(self, permission: str, resource: Resource | None) -> frozenset[str]:
        """The facts that rules about an operation on a resource look at."""
        if not self._looked_at.get(permission):
            return NOTHING
        return NOTHING.union(*(rule.needs for rule in self.rules(permission, resource)))


NOTHING: Final = frozenset[str]()


def title_of(number: int, statement: Statement) -> str:
    """How explanations name a statement of a policy; `number` counts from 0."""
    return f"statement {statement.name or number + 1}"


def _rule(label: str, statement: Statement, networks: Mapping[str, Networks]) -> Rule:
    conditions = statement.conditions
    name, time = conditions.network_rule, conditions.time
    return Rule(
        label,
        statement.effect == "allow",
        networks[name] if name else None,
        name or "",
        tuple(conditions.context.items()),
        conditions.size_max,
        None if time is None else parse_window(time),
    )


NO_GRANTS: Final = Grants({}, {})
"""Of an access point without policies: everything is denied."""


def compile_grants(
    names: Iterable[str], policies: Mapping[str, Policy], networks: Mapping[str, Networks]
) -> Grants:
    """The grants of an access point with the policies of these names.

    What is gone could have denied as well as allowed, so without it nothing is granted.
    """
    try:
        return Grants({name: policies[name] for name in names}, networks)
    except KeyError:
        return NO_GRANTS
