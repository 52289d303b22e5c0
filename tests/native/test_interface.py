"""What the package says of itself: types, documentation, and the C interface under it."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hsmux_native
from hsmux_native import _bridge, _native, aead, arena, errors, faults, pkcs11

NATIVE = Path(__file__).parents[2] / "native"
HEADER = (NATIVE / "include" / "hsmux_native.h").read_text()
CDEF = (NATIVE / "src" / "native.cdef").read_text()
STUB = ast.parse((NATIVE / "hsmux_native" / "_native.pyi").read_text())
PUBLIC = [hsmux_native, aead, arena, errors, faults, pkcs11]


def declarations(text: str) -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """The functions that a text declares: type of the result, and name and type of arguments."""
    found = {}
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    for match in re.finditer(r"^([a-z][\w ]*[ *])(hs_\w+)\(([^;{]*)\);", text, re.MULTILINE):
        result, name, inside = match.groups()
        words = [] if inside == "void" else [" ".join(word.split()) for word in inside.split(",")]
        splits = [re.fullmatch(r"(.*?)(\w+)", word) for word in words]
        found[name] = (result.strip(), [(m[2], m[1].strip()) for m in splits if m])
    return found


def python_type(c_type: str) -> str:
    """How the stub writes a C type."""
    if "*" in c_type:
        return "_Pointer"
    return "None" if c_type == "void" else "int"


def test_the_cdef_is_the_header() -> None:
    assert len(declarations(CDEF)) > 30
    assert declarations(CDEF) == declarations(HEADER)
    structures = r"typedef struct \{(.*?)\}"
    for header, cdef in zip(
        re.findall(structures, HEADER, re.DOTALL),
        re.findall(structures, CDEF, re.DOTALL),
        strict=True,
    ):
        assert re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL).split() == cdef.split()


def test_every_status_is_an_exception() -> None:
    statuses = re.findall(r"^    (HS_\w+) = (\d+)", HEADER, re.MULTILINE)
    assert statuses == re.findall(r"^    (HS_\w+) = (\d+)", CDEF, re.MULTILINE)
    for name, number in statuses:
        assert getattr(_native.lib, name) == int(number)
        if int(number) == 0:
            _bridge.check(0)
            continue
        with pytest.raises((hsmux_native.NativeError, ValueError)):
            _bridge.check(int(number))


def test_the_stub_is_the_cdef() -> None:
    (stub,) = [node for node in STUB.body if isinstance(node, ast.ClassDef)]
    constants = {ast.unparse(node.target) for node in stub.body if isinstance(node, ast.AnnAssign)}
    named = re.findall(r"^(?:#define|   ) (\w+) (?:\.\.\.|= \d+)", CDEF, re.MULTILINE)
    assert constants == set(named) and len(named) > 20
    functions = {
        node.name: (
            ast.unparse(node.returns or node),
            [
                (argument.arg, ast.unparse(argument.annotation or node))
                for argument in [*node.args.posonlyargs, *node.args.args]
                if argument.arg != "self"
            ],
        )
        for node in stub.body
        if isinstance(node, ast.FunctionDef)
    }
    assert functions == {
        name: (python_type(result), [(word, python_type(kind)) for word, kind in arguments])
        for name, (result, arguments) in declarations(CDEF).items()
    }
    assert constants | functions.keys() == set(dir(_native.lib))


def test_the_package_is_typed() -> None:
    installed = Path(hsmux_native.__file__).parent
    assert (installed / "py.typed").exists() and (installed / "_native.pyi").exists()


def public_callables() -> Iterator[tuple[str, Any]]:
    """Every public function, class and method that is ours, and its name."""
    for module in PUBLIC:
        for name in module.__all__:
            value = getattr(module, name)
            if not (inspect.isfunction(value) or inspect.isclass(value)):
                continue
            yield f"{module.__name__}.{name}", value
            if inspect.isclass(value):
                for method, function in vars(value).items():
                    if not method.startswith("_") and inspect.isfunction(function):
                        yield f"{module.__name__}.{name}.{method}", function


@pytest.mark.parametrize("name", ["AES-256-GCM", "XAES-256-GCM", "HMAC-SHA-256"])
def test_algorithms_name_their_standard(name: str) -> None:
    documented = " ".join(inspect.getdoc(value) or "" for _, value in public_callables())
    sources = {
        "AES-256-GCM": "NIST SP 800-38D",
        "XAES-256-GCM": "c2sp.org/XAES-256-GCM",
        "HMAC-SHA-256": "RFC 2104",
    }
    assert name in documented and sources[name] in documented


def test_lines_of_c_fit() -> None:
    for path in [*NATIVE.rglob("*.[ch]"), *NATIVE.rglob("*.cdef")]:
        long = [line for line in path.read_text().splitlines() if len(line) > 100]
        assert long == [], path
