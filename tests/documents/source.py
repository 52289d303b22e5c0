"""What docstrings say, for documents: of constants, of attributes, the first paragraph."""

import ast
import inspect
import itertools
import re
from types import ModuleType
from typing import Any

__all__ = ["attributes_of", "constant_texts", "summary_of"]

_ATTRIBUTE = re.compile(r"^ {4}(\w+): (.*)$")


def _joined(text: str) -> str:
    return " ".join(text.split())


def constant_texts(module: ModuleType) -> dict[str, str]:
    """The text below each constant of a module, by the constant's name."""
    body = ast.parse(inspect.getsource(module)).body
    found = {}
    for node, following in itertools.pairwise(body):
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            found[node.target.id] = _joined(str(following.value.value))
    return found


def summary_of(thing: Any) -> str:
    """The first paragraph of a docstring, in one line."""
    text = inspect.getdoc(thing)
    assert text, f"{thing} has no docstring"
    return _joined(text.split("\n\n")[0])


def attributes_of(thing: Any) -> dict[str, str]:
    """The `Attributes:` section of a docstring."""
    text = inspect.getdoc(thing) or ""
    found: dict[str, str] = {}
    name = ""
    for line in text.partition("Attributes:\n")[2].splitlines():
        started = _ATTRIBUTE.match(line)
        if started:
            name = started[1]
            found[name] = started[2]
        elif line.startswith(" " * 8) and name:
            found[name] += " " + line.strip()
        elif not line.strip():
            break
    return found
