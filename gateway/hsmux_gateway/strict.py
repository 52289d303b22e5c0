"""What people write by hand: a name that is not known is refused with the nearest that is."""

import difflib
from collections.abc import Collection

__all__ = ["nearest"]


def nearest(name: str, known: Collection[str]) -> str:
    """What to say of an unknown name: which one was probably meant, or which there are."""
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
