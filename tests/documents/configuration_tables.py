"""The tables of docs/configuration.md, made from the schema of the configuration."""

import typing
from collections.abc import Callable
from typing import Any, Final

import msgspec

from hsmux_gateway.config import ENVIRONMENT_PREFIX, Config, is_reloaded

from .sections import Section, table
from .source import summary_of

__all__ = ["CONFIGURATION_SECTIONS", "settings_of"]

_TYPES: Final = {str: "text", int: "integer", float: "number", bool: "true or false"}


class _Setting(typing.NamedTuple):
    """One row."""

    name: str
    kind: str
    default: str
    limits: str
    changed_by: str
    meaning: str


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, msgspec.Struct)


def _inner_section(annotation: Any) -> Any:
    """The section of a table of tables, or None."""
    if typing.get_origin(annotation) is dict and _is_section(typing.get_args(annotation)[1]):
        return typing.get_args(annotation)[1]
    return None


def _kind(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(f'`"{value}"`' for value in inner)
    if origin is list:
        return f"list of {_kind(inner[0])}"
    if origin is dict:
        return f"table of {_kind(inner[1])}"
    return _TYPES[annotation]


def _default(field: Any) -> str:
    if field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    elif field.default is not msgspec.NODEFAULT:
        value = field.default
    else:
        return "required"
    return f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _limits(meta: msgspec.Meta) -> str:
    least, most = meta.ge if meta.ge is not None else meta.gt, meta.le
    if least is not None and most is not None:
        return f"{'more than ' if meta.gt is not None else ''}{least:,} to {most:,}"
    if least is not None:
        return f"{'more than' if meta.gt is not None else 'at least'} {least:,}"
    return "not empty" if meta.min_length else ""


def settings_of(section: Any) -> list[_Setting]:
    """The settings of one section, without the sections inside it."""
    hints = typing.get_type_hints(section, include_extras=True)
    found = []
    for field in msgspec.structs.fields(section):
        annotation = hints[field.name]
        if typing.get_origin(annotation) is not typing.Annotated:
            continue
        kind, meta = typing.get_args(annotation)
        assert isinstance(meta, msgspec.Meta) and meta.description
        found.append(
            _Setting(
                f"`{field.name}`",
                _kind(kind),
                _default(field),
                _limits(meta),
                "SIGHUP" if is_reloaded(annotation) else "restart",
                meta.description,
            )
        )
    return found


def _table(section: Any) -> Callable[[], str]:
    header = ("setting", "type", "default", "limits", "changed by", "meaning")
    return lambda: f"{summary_of(section)}\n\n" + table(header, settings_of(section))


def _sections() -> dict[str, Section]:
    hints = typing.get_type_hints(Config)
    made = {"top-level": _table(Config)}
    for name, annotation in hints.items():
        section = _inner_section(annotation) or annotation
        if _is_section(section):
            made[name] = _table(section)
    return made


def _environment() -> str:
    """One variable for every setting that can be named without knowing the file."""
    rows = []
    for name, annotation in typing.get_type_hints(Config).items():
        inner = _inner_section(annotation)
        if inner is not None:
            path = f"{name}.<name>."
            variable = f"{name.upper()}__<NAME>__"
        else:
            path, variable = f"{name}.", f"{name.upper()}__"
        section = inner or (annotation if _is_section(annotation) else None)
        if section is None:
            rows.append((f"`{name}`", f"`{ENVIRONMENT_PREFIX}{name.upper()}`"))
            continue
        for field in msgspec.structs.fields(section):
            shown = f"{ENVIRONMENT_PREFIX}{variable}{field.name.upper()}"
            rows.append((f"`{path}{field.name}`", f"`{shown}`"))
    return table(("setting", "environment variable"), rows)


CONFIGURATION_SECTIONS: Final[dict[str, Section]] = {**_sections(), "environment": _environment}
