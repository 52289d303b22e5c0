"""The style of the project as far as a test can hold it: size, names, documentation, direction.

Everything is read from the source text; only what an import loads is asked of a new interpreter.
"""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pytest

from tests.documents.sections import ROOT, project_files

FUNCTION_LINES_MAX: Final = 70

PACKAGES: Final = {
    "hsmux_protocol": ROOT / "protocol",
    "hsmux": ROOT / "protocol",
    "hsmux_native": ROOT / "native",
    "hsmux_gateway": ROOT / "gateway",
    "hsmux_tools": ROOT / "tools",
}
"""Our packages and the directories they lie in."""

THIRD_PARTY: Final = {
    "hsmux_protocol": {"msgpack"},
    "hsmux": {"cryptography", "msgpack", "trio"},
    "hsmux_native": {"cffi"},
    "hsmux_gateway": {
        *("alembic", "asn1crypto", "cryptography", "h11", "msgpack", "msgspec", "pkcs11"),
        *("prometheus_client", "sqlalchemy", "structlog", "trio"),
    },
    "hsmux_tools": {"click", "rich", "yaml"},
}
"""What a package may import of others' packages."""

BELOW: Final = {
    "hsmux_protocol": set[str](),
    "hsmux": {"hsmux_protocol"},
    "hsmux_native": set[str](),
    "hsmux_gateway": {"hsmux_protocol", "hsmux_native", "hsmux"},
    "hsmux_tools": {"hsmux_protocol", "hsmux", "hsmux_gateway"},
}
"""What a package may import of ours: data flows one way."""

ONLY_IN: Final = {
    "pkcs11": "hsmux_gateway.hsm",
    "asn1crypto": "hsmux_gateway.hsm",
    "sqlalchemy": "hsmux_gateway.store",
    "alembic": "hsmux_gateway.store",
    "sqlite3": "hsmux_gateway.store",
}
"""Modules that one part of a package alone may import."""

FRONTS: Final = {
    f"hsmux_gateway.{name}"
    for name in ("command", "connection", "daemon", "dev", "health", "listener", "tls")
}
"""What knows the engine; the engine and what it stands on know none of them."""


@dataclass(frozen=True)
class Module:
    """A source file as a module."""

    name: str
    path: Path

    @property
    def package(self) -> str:
        """The outermost package."""
        return self.name.partition(".")[0]

    @cached_property
    def tree(self) -> ast.Module:
        """What is in it."""
        return ast.parse(self.path.read_text(encoding="utf-8"))

    @property
    def exported(self) -> list[str] | None:
        """`__all__`, if there is one."""
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names: list[str] = ast.literal_eval(node.value)
                return names
        return None

    @property
    def definitions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
        """Functions and classes of the module itself."""
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        return [node for node in self.tree.body if isinstance(node, kinds)]

    @property
    def names(self) -> set[str]:
        """What can be imported from the module: defined, assigned or imported names."""
        found = {node.name for node in self.definitions}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.ImportFrom | ast.Import):
                found |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        return found

    def imports(self) -> Iterator[tuple[str, str]]:
        """(module, name) of every import, lazy ones too; an empty name imports the module."""
        base = self.name.split(".")
        if self.path.name != "__init__.py":
            base = base[:-1]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, "") for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                start = base[: len(base) - node.level + 1] if node.level else []
                target = ".".join([*start, *([node.module] if node.module else [])])
                yield from ((target, alias.name) for alias in node.names)


def _modules() -> list[Module]:
    found = []
    for package, directory in PACKAGES.items():
        for path in sorted((directory / package).rglob("*.py")):
            parts = path.relative_to(directory).with_suffix("").parts
            found.append(Module(".".join(parts).removesuffix(".__init__"), path))
    return found


MODULES: Final = _modules()
BY_NAME: Final = {module.name: module for module in MODULES}
SOURCES: Final = [path for path in project_files() if path.suffix == ".py"]
each_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)


def _is_script(module: Module) -> bool:
    """Alembic runs migrations by their names, not by what they export."""
    return ".migrations" in module.name


def _is_program(module: Module) -> bool:
    """A module that is run: its functions are for itself, and `__all__` is what others use."""
    return any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        for node in module.tree.body
    )


def long_functions(tree: ast.AST) -> list[str]:
    """Functions of more lines than anybody wants to read at once."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                found.append(f"{node.name} has {lines} lines")
    return found


def wrong_exports(module: Module) -> list[str]:
    """Where `__all__` and the public functions and classes differ."""
    public = {node.name for node in module.definitions if not node.name.startswith("_")}
    exported = module.exported
    if _is_program(module):
        public &= set(exported or ())
    if exported is None:
        return ["no __all__"] if public else []
    twice = {name for name in exported if exported.count(name) > 1}
    return [
        *(f"{name} is public and not in __all__" for name in public - set(exported)),
        *(f"{name} is in __all__ and not there" for name in set(exported) - module.names),
        *(f"{name} is in __all__ twice" for name in twice),
    ]


def unlisted_imports(module: Module) -> list[str]:
    """Names of our other modules that are imported and that those do not export."""
    wrong = []
    for target, name in module.imports():
        source = BY_NAME.get(target)
        if source is None or not name or f"{target}.{name}" in BY_NAME:
            continue
        if name.startswith("_"):
            is_wrong = source.package != module.package and not name.endswith("__")
        else:
            is_wrong = name not in (source.exported or [name])
        if is_wrong:
            wrong.append(f"{target}: {name}")
    return wrong


def _methods(node: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [n for n in node.body if isinstance(n, kinds) and not n.name.startswith("_")]


def undocumented(module: Module, loaded: Any) -> list[str]:
    """What is public and has no docstring.

    A method needs none of its own when it overrides one that has, or when an interface in the same
    module says what methods of its name do.

    Args:
        module: The source.
        loaded: The module itself, which knows what is inherited.
    """
    classes = [node for node in module.definitions if isinstance(node, ast.ClassDef)]
    said = {m.name for node in classes for m in _methods(node) if ast.get_docstring(m)}
    missing = [] if ast.get_docstring(module.tree) else ["the module"]
    for node in module.definitions:
        if node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            missing.append(node.name)
        for method in _methods(node) if isinstance(node, ast.ClassDef) else []:
            made = getattr(getattr(loaded, node.name, None), method.name, None)
            if method.name not in said and not inspect.getdoc(made):
                missing.append(f"{node.name}.{method.name}")
    return missing


def _imported_modules(module: Module) -> set[str]:
    found = set()
    for target, name in module.imports():
        inner = f"{target}.{name}"
        found.add(inner if inner in BY_NAME else target)
    return found


def wrong_imports(module: Module) -> list[str]:
    """Imports that go the wrong way, or of a library that is somebody else's business."""
    allowed = BELOW[module.package] | THIRD_PARTY[module.package] | {module.package}
    wrong = []
    for target in _imported_modules(module):
        top = target.partition(".")[0]
        if top not in allowed and top not in sys.stdlib_module_names:
            wrong.append(target)
        owner = ONLY_IN.get(top)
        if owner is not None and not f"{module.name}.".startswith(f"{owner}."):
            wrong.append(f"{target}: only {owner} may")
    return wrong


def test_all_packages_were_found() -> None:
    assert {module.package for module in MODULES} == PACKAGES.keys()
    assert len(MODULES) > 90


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_short(path: Path) -> None:
    assert not long_functions(ast.parse(path.read_text(encoding="utf-8")))


@each_module
def test_all_lists_what_is_public(module: Module) -> None:
    assert _is_script(module) or not wrong_exports(module)


@each_module
def test_everything_public_is_documented(module: Module) -> None:
    assert _is_script(module) or not undocumented(module, importlib.import_module(module.name))


@each_module
def test_imports_go_one_way(module: Module) -> None:
    assert not wrong_imports(module)
    assert not unlisted_imports(module)


UNTIDY: Final = (
    """
import pkcs11
from hsmux_native import Arena
from hsmux_gateway.engine import log

__all__ = ["Nothing", "Said", "Said"]

class Said:
    \"\"\"A class.\"\"\"

    def silent(self) -> None:
        pass

def long() -> None:
"""
    + "    pass\n" * FUNCTION_LINES_MAX
)


def test_what_is_untidy_is_found(tmp_path: Path) -> None:
    (tmp_path / "page.py").write_text(UNTIDY)
    module = Module("hsmux_tools.page", tmp_path / "page.py")
    assert long_functions(module.tree) == [f"long has {FUNCTION_LINES_MAX + 1} lines"]
    assert wrong_exports(module) == [
        "long is public and not in __all__",
        "Nothing is in __all__ and not there",
        "Said is in __all__ twice",
    ]
    assert undocumented(module, None) == ["the module", "Said.silent", "long"]
    assert sorted(wrong_imports(module)) == [
        "hsmux_native",
        "pkcs11",
        "pkcs11: only hsmux_gateway.hsm may",
    ]
    assert unlisted_imports(module) == ["hsmux_gateway.engine: log"]
    gateway = Module("hsmux_gateway.page", tmp_path / "page.py")
    assert wrong_imports(gateway) == ["pkcs11: only hsmux_gateway.hsm may"]


def test_the_command_reaches_the_gateway_at_its_border_alone() -> None:
    using = {
        module.name
        for module in MODULES
        if module.package == "hsmux_tools"
        and any(target.partition(".")[0] == "hsmux_gateway" for target, _ in module.imports())
    }
    assert using == {"hsmux_tools.verbs.border"}


def test_the_engine_knows_no_front() -> None:
    assert FRONTS <= BY_NAME.keys()
    reached, waiting = set[str](), ["hsmux_gateway.engine", "hsmux_gateway.effects"]
    while waiting:
        name = waiting.pop()
        if name in BY_NAME and name not in reached:
            reached.add(name)
            waiting += _imported_modules(BY_NAME[name])
    assert "hsmux_gateway.store.store" in reached
    assert not reached & FRONTS


def test_the_store_and_the_tokens_stand_alone() -> None:
    """They know nothing of requests, connections or each other."""
    foreign = {"call", "catalog", "connection", "effects", "engine", "access", "audit"}
    for module in MODULES:
        for part, other in (("store", "hsm"), ("hsm", "store")):
            if module.name.startswith(f"hsmux_gateway.{part}."):
                names = {t.split(".")[1] for t in _imported_modules(module) if "gateway." in t}
                assert not names & (foreign | {other}), module.name


THIN: Final = """
import sys
{imports}
print("\\n".join(sys.modules))
"""
HEAVY: Final = {"trio", "cffi", "_cffi_backend", "cryptography", "pkcs11", "sqlalchemy", "click"}


@pytest.mark.parametrize("name", ["hsmux", "hsmux_protocol"])
def test_the_client_is_thin(name: str) -> None:
    """Every module of the client, and nothing of the gateway, the C module or an event loop."""
    inside = [module.name for module in MODULES if module.package == name]
    own = [n for n in inside if "trio" not in n.rpartition(".")[2]]
    program = THIN.format(imports="\n".join(f"import {module}" for module in (name, *own)))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = {line.partition(".")[0] for line in done.stdout.split()}
    assert name in loaded
    assert not loaded & (HEAVY | {"hsmux_native", "hsmux_gateway", "hsmux_tools"})


NAMES_REFUSED: Final = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}


def test_modules_are_named_by_what_they_do() -> None:
    stems = {path.stem.strip("_") for path in SOURCES} | {path.parent.name for path in SOURCES}
    assert not stems & NAMES_REFUSED


TEXTS: Final = [
    path
    for path in project_files()
    if path.suffix not in {".json", ".so"} and path.name != "LICENSE"
]

# Spelled in two parts, so that this file does not find itself.
REFUSED: Final = {
    "work that was left": r"\b(TO" r"DO|FIX" r"ME|X" r"XX)\b",
    "a directory of somebody's machine": r"/(home/(?!ada/)|Us" r"ers/|ro" r"ot/)\w",
    "a package registry": r"py"
    r"pi\.|python"
    r"hosted|npm"
    r"js\.|crates\."
    r"io|proxy\."
    r"golang",
}


@pytest.mark.parametrize("what", REFUSED)
def test_no_text_has(what: str) -> None:
    pattern = re.compile(REFUSED[what])
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in TEXTS
        if (match := pattern.search(path.read_text(encoding="utf-8")))
    ]
    assert not found


def test_no_text_names_this_checkout_or_this_user() -> None:
    here = [str(ROOT), *(str(home) for home in [Path.home()] if len(home.parts) > 2)]
    for path in project_files():
        text = path.read_bytes()
        assert not [name for name in here if name.encode() in text], path


COMMAND: Final = re.compile(r"`hsmux ([a-z][a-z-]*(?: [a-z][a-z-]*)?)")


def test_commands_in_messages_are_there() -> None:
    """What errors and docstrings tell people to run exists."""
    from hsmux_tools.table import GROUPS, VERBS

    unknown = set()
    for module in MODULES:
        for words in COMMAND.findall(" ".join(module.path.read_text(encoding="utf-8").split())):
            first = words.partition(" ")[0]
            if not {words, first} & VERBS.keys() and words not in GROUPS:
                unknown.add(f"{module.name}: hsmux {words}")
    assert not unknown
