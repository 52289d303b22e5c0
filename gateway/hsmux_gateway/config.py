"""The gateway's configuration: one TOML file, checked against one schema, overridden by
environment.

The schema is the Structs below; `docs/configuration.md` is generated from them. A key that is not
in the schema is refused with the nearest one that is. An environment variable
`HSMUX_GATEWAY__SECTION__KEY` replaces one value (a double underscore a level, upper case); its
text is read as a TOML value where it is one and as plain text where not.

Secrets have no place here: a setting that leads to one names a file (`pin_file`) or a systemd
credential (`pin_credential`), and the process that needs the secret reads it there. A password in
`store.url` is refused; libpq reads it from the file that `passfile` in the URL names.
"""

import ipaddress
import math
import os
import re
import tomllib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from hsmux_protocol.limits import BATCH_ITEMS_MAX
from hsmux_protocol.operations import BYTES_PER_S_MAX, IN_FLIGHT_MAX, REQUESTS_PER_S_MAX

from .audit.segments import SEGMENT_SIZE, SEGMENT_SIZE_MAX, SEGMENT_SIZE_MIN
from .errors import EXIT_CONFIGURATION, OperatorError
from .private_files import read_regular
from .strict import nearest

__all__ = [
    "ENVIRONMENT_PREFIX",
    "EXIT_CONFIGURATION",
    "Audit",
    "Config",
    "Health",
    "Hsm",
    "Keys",
    "Limits",
    "Native",
    "Root",
    "Section",
    "Server",
    "Store",
    "Tls",
    "is_reloaded",
    "load_config",
    "parse_config",
    "restart_settings",
    "split_address",
]

ENVIRONMENT_PREFIX: Final = "HSMUX_GATEWAY__"
TOKENS_MAX: Final = 16
"""Tables `hsm.<name>`."""

CONFIG_SIZE_MAX: Final = 1 << 20
"""Bytes of a configuration file."""

OUTSIDE_CAS_MAX: Final = 16
"""Entries of `tls.outside_cas`."""

RELOADED: Final = {"reloaded": True}
"""Marks a setting that SIGHUP reads again; any other needs a restart."""

_TOKEN_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}", re.ASCII)
_DNS_NAME: Final = re.compile(
    r"(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
    re.ASCII | re.IGNORECASE,
)
_DNS_NAME_SIZE_MAX: Final = 253


_MISSING: Final = re.compile(r"Object missing required field `(\w+)`")

S = TypeVar("S", bound="Section")


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the configuration file."""


class Server(Section, frozen=True, kw_only=True):
    """Where applications connect."""

    listen: Annotated[
        list[str],
        Meta(min_length=1, description="Addresses to listen on, `host:port` or `[v6]:port`."),
    ] = msgspec.field(default_factory=lambda: ["127.0.0.1:7411"])
    names: Annotated[
        list[str],
        Meta(min_length=1, description="Names and addresses that the server certificate carries."),
    ] = msgspec.field(default_factory=lambda: ["localhost", "127.0.0.1"])
    drain_s: Annotated[
        float,
        Meta(ge=0, le=300, description="Seconds that open requests have to finish at a stop."),
    ] = 10.0


class Tls(Section, frozen=True, kw_only=True):
    """The gateway's own certificate (empty: that of `hsmux init`), and other CAs it believes."""

    certificate: Annotated[
        str, Meta(description="PEM file: certificate and its chain.", extra=RELOADED)
    ] = ""
    private_key: Annotated[
        str, Meta(description="PEM file, mode 0600: the private key.", extra=RELOADED)
    ] = ""
    outside_cas: Annotated[
        dict[str, str],
        Meta(
            max_length=OUTSIDE_CAS_MAX,
            description="PEM files of root certificates by a name of the CA, for access points "
            "that are known by certificates of other CAs.",
            extra=RELOADED,
        ),
    ] = msgspec.field(default_factory=dict)


class Hsm(Section, frozen=True, kw_only=True):
    """One HSM token; the table's name is the token's name."""

    module: Annotated[str, Meta(min_length=1, description="The vendor's PKCS#11 module.")]
    token_label: Annotated[str, Meta(min_length=1, description="Label of the token to use.")]
    pin_file: Annotated[str, Meta(description="File, mode 0600, that holds the user PIN.")] = ""
    pin_credential: Annotated[
        str, Meta(description="systemd credential that holds the user PIN, instead of a file.")
    ] = ""
    parameters: Annotated[
        str, Meta(description="LibraryParameters for C_Initialize; NSS needs them.")
    ] = ""
    environment: Annotated[
        dict[str, str], Meta(description="Environment of the worker processes.")
    ] = msgspec.field(default_factory=dict)
    workers: Annotated[
        int, Meta(ge=1, le=64, description="Worker processes, each with one session to work in.")
    ] = 2
    queue_items_max: Annotated[
        int,
        Meta(
            ge=BATCH_ITEMS_MAX,
            le=1_000_000,
            description="Items that may wait for a worker; an access point that has as many as are "
            "left for the others gets BUSY.",
        ),
    ] = 65536
    sessions_max: Annotated[
        int,
        Meta(
            ge=0,
            le=65536,
            description="Sessions the token has for this gateway; 0: as many as it says itself.",
        ),
    ] = 0
    verify_every: Annotated[
        int,
        Meta(ge=1, le=65536, description="One in so many of the token's results is verified."),
    ] = 256


class Root(Section, frozen=True, kw_only=True):
    """What seals the key-encryption keys: a key in a token, or a file for development."""

    token: Annotated[str, Meta(description="Name of the `hsm` table that holds the root key.")] = ""
    file: Annotated[
        str, Meta(description="Development only: a root key file, mode 0600, without any HSM.")
    ] = ""


class Store(Section, frozen=True, kw_only=True):
    """Where keys, access points and client keys are kept."""

    url: Annotated[
        str,
        Meta(
            description="`sqlite:////PATH` or `postgresql://USER@HOST/NAME?passfile=FILE`; "
            "empty: a SQLite file in `instance_dir`."
        ),
    ] = ""
    poll_ms: Annotated[
        int, Meta(ge=10, le=10_000, description="Milliseconds between looks for others' changes.")
    ] = 250
    stale_s: Annotated[
        float,
        Meta(ge=1, le=3600, description="Seconds decisions hold while the store is away."),
    ] = 30.0


class Audit(Section, frozen=True, kw_only=True):
    """The record of every request."""

    directory: Annotated[
        str, Meta(description="Where records are written; empty: `audit` in `instance_dir`.")
    ] = ""
    keep_days: Annotated[
        int,
        Meta(
            ge=0,
            le=36_500,
            description="Days that records are kept; segments that are older are removed. "
            "0: for ever.",
        ),
    ] = 0
    keep_bytes: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 50,
            description="Bytes that segments may take; beyond that the oldest are removed, never "
            "the present one. 0: as many as it takes.",
        ),
    ] = 0
    segment_bytes: Annotated[
        int,
        Meta(
            ge=SEGMENT_SIZE_MIN,
            le=SEGMENT_SIZE_MAX,
            description="Bytes of a segment, taken when it is made; there are two at least.",
        ),
    ] = SEGMENT_SIZE
    sync: Annotated[
        Literal["interval", "before-answer"],
        Meta(
            description="When the records of requests that only use keys are on the disk: within "
            "50 ms of their answers, or before them. Others are always there before.",
        ),
    ] = "interval"


class Health(Section, frozen=True, kw_only=True):
    """`/healthz`, `/readyz` and `/metrics` over plain HTTP."""

    listen: Annotated[str, Meta(description="Address, `host:port`; empty: no health server.")] = (
        "127.0.0.1:7412"
    )


class Limits(Section, frozen=True, kw_only=True):
    """What the gateway takes on at most."""

    connections_max: Annotated[
        int,
        Meta(
            ge=1,
            le=100_000,
            description="Open connections; more are closed at once. At most a quarter of them have "
            "not said yet who they are.",
        ),
    ] = 2000
    requests_max: Annotated[
        int,
        Meta(
            ge=64,
            le=1_000_000,
            description="Requests in work in all; an access point that has as many as are left for "
            "the others gets BUSY.",
        ),
    ] = 16384
    large_buffer_bytes_max: Annotated[
        int,
        Meta(
            ge=16 << 20,
            le=1 << 40,
            description="Bytes of buffers beyond 64 KiB a connection, all connections; an access "
            "point gets at most as much of it as is left for the others.",
        ),
    ] = 128 << 20
    handshake_timeout_s: Annotated[
        float, Meta(gt=0, le=60, description="Seconds for a TLS handshake and HELLO.")
    ] = 5.0
    frame_timeout_s: Annotated[
        float,
        Meta(gt=0, le=600, description="Seconds for a frame once begun, and a second per KiB."),
    ] = 10.0
    idle_timeout_s: Annotated[
        float, Meta(gt=0, le=86400, description="Seconds without any request before closing.")
    ] = 300.0
    send_timeout_s: Annotated[
        float, Meta(gt=0, le=600, description="Seconds a peer may leave answers unread.")
    ] = 30.0
    access_point_requests_per_s: Annotated[
        int,
        Meta(
            ge=0,
            le=REQUESTS_PER_S_MAX,
            description="Requests a second, items of batches counted, of an access point that has "
            "no limit of its own. 0: as many as come.",
        ),
    ] = 0
    access_point_bytes_per_s: Annotated[
        int,
        Meta(
            ge=0,
            le=BYTES_PER_S_MAX,
            description="Bytes of requests a second, likewise.",
        ),
    ] = 0
    access_point_in_flight: Annotated[
        int,
        Meta(ge=0, le=IN_FLIGHT_MAX, description="Requests in work at a time, likewise."),
    ] = 0


class Keys(Section, frozen=True, kw_only=True):
    """Rules for keys."""

    cached_private_keys_max: Annotated[
        int, Meta(ge=1, le=10_000, description="Software private keys kept ready in memory.")
    ] = 256
    cached_private_key_idle_s: Annotated[
        float, Meta(gt=0, le=3600, description="Seconds an unused one of them is kept.")
    ] = 60.0


class Native(Section, frozen=True, kw_only=True):
    """The C module."""

    arena_size_bytes: Annotated[
        int,
        Meta(ge=1 << 20, le=1 << 30, description="Locked memory for unsealed symmetric keys."),
    ] = 4 << 20


class Config(Section, frozen=True, kw_only=True):
    """The whole file."""

    instance_dir: Annotated[
        str,
        Meta(min_length=1, description="Directory of this gateway's state, owned by it alone."),
    ]
    server: Server = Server()
    tls: Tls = Tls()
    hsm: dict[str, Hsm] = msgspec.field(default_factory=dict)
    root: Root = Root()
    store: Store = Store()
    audit: Audit = Audit()
    health: Health = Health()
    limits: Limits = Limits()
    keys: Keys = Keys()
    native: Native = Native()


def _fail(path: str, text: str) -> OperatorError:
    return OperatorError(f"configuration: {path}: {text}", exit_code=EXIT_CONFIGURATION)


def _struct_of(annotation: Any) -> Any:
    """The Struct behind an annotation, for a table or a table of tables; None for a value."""
    origin = typing.get_origin(annotation)
    if origin is dict:
        return _struct_of(typing.get_args(annotation)[1])
    is_section = isinstance(annotation, type) and issubclass(annotation, Section)
    return annotation if is_section else None


def _check_names(table: Mapping[str, Any], section: type[Section], path: str) -> None:
    """Refuse names the schema does not have, with the nearest one it does."""
    known = typing.get_type_hints(section, include_extras=False)
    for name, value in table.items():
        here = f"{path}.{name}" if path else name
        if name not in known:
            raise _fail(here, f"unknown; {nearest(name, known)}")
        inner = _struct_of(known[name])
        if inner is None or not isinstance(value, dict):
            continue
        if typing.get_origin(known[name]) is dict:
            for key, item in value.items():
                if isinstance(item, dict):
                    _check_names(item, inner, f"{here}.{key}")
        else:
            _check_names(value, inner, here)


def _read_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _override(table: dict[str, Any], environment: Mapping[str, str]) -> None:
    for name, text in environment.items():
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        *parents, last = name.removeprefix(ENVIRONMENT_PREFIX).split("__")
        # The names in a worker's environment are its own, upper case and all.
        last = last if parents and parents[-1].lower() == "environment" else last.lower()
        inner = table
        for parent in map(str.lower, parents):
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise _fail(name, f"{parent} is a value, not a table")
        inner[last] = _read_value(text)


def _check_values(value: Any, path: str) -> None:
    """Refuse what TOML can say and nothing here can mean: NaN, infinity, control characters."""
    if isinstance(value, dict):
        for name, item in value.items():
            _check_values(item, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _check_values(item, f"{path}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise _fail(path, f"{value} is not a number to reckon with")
    elif isinstance(value, str) and any(ord(character) < 32 for character in value):
        raise _fail(path, "must be one line without control characters")


def _check_rules(config: Config) -> None:
    """What the schema cannot say: values that depend on each other."""
    if bool(config.root.token) == bool(config.root.file):
        raise _fail("root", "set exactly one of token (an HSM) and file (development)")
    if config.root.token and config.root.token not in config.hsm:
        known = ", ".join(sorted(config.hsm)) or "none"
        raise _fail("root.token", f"no table hsm.{config.root.token}; there are: {known}")
    if bool(config.tls.certificate) != bool(config.tls.private_key):
        raise _fail("tls", "set both certificate and private_key, or neither")
    for name in config.tls.outside_cas:
        if not _TOKEN_NAME.fullmatch(name):
            raise _fail(f"tls.outside_cas.{name!r}", "a CA's name is 1 to 64 of A-Z a-z 0-9 _ -")
    if len(config.hsm) > TOKENS_MAX:
        raise _fail("hsm", f"{len(config.hsm)} tokens; at most {TOKENS_MAX}")
    for name, hsm in config.hsm.items():
        if not _TOKEN_NAME.fullmatch(name):
            raise _fail(f"hsm.{name!r}", "a token's name is 1 to 64 of A-Z a-z 0-9 _ -")
        if bool(hsm.pin_file) == bool(hsm.pin_credential):
            raise _fail(f"hsm.{name}", "set exactly one of pin_file and pin_credential")
    for server_name in config.server.names:
        if not _is_server_name(server_name):
            raise _fail("server.names", f"{server_name!r} is neither a DNS name nor an IP address")
    _check_addresses(config)
    _check_store_url(config.store.url)


def _check_addresses(config: Config) -> None:
    """Each is an address, and no two ask for the same port of one host or of all hosts."""
    taken: dict[tuple[str, int], str] = {}
    for path, address in _addresses(config):
        host, port = split_address(address, path)
        every = "::" if ":" in host else "0.0.0.0"
        for (other, used), where in taken.items():
            is_same_family = (":" in other) == (":" in host)
            if (
                port
                and used == port
                and is_same_family
                and (other == host or every in (other, host))
            ):
                raise _fail(path, f"{address} is what {where} listens on; choose another port")
        taken[host, port] = path


def _addresses(config: Config) -> Iterator[tuple[str, str]]:
    for number, address in enumerate(config.server.listen):
        yield f"server.listen[{number}]", address
    if config.health.listen:
        yield "health.listen", config.health.listen


def _is_server_name(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return bool(_DNS_NAME.fullmatch(name)) and len(name) <= _DNS_NAME_SIZE_MAX
    return True


def _check_store_url(url: str) -> None:
    if not url:
        return
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.partition("+")[0] not in ("sqlite", "postgresql"):
        raise _fail("store.url", "begins with sqlite:// or postgresql://")
    authority, _, query = rest.partition("?")
    user, at, _ = authority.partition("/")[0].rpartition("@")
    if (at and ":" in user) or "password=" in query:
        raise _fail(
            "store.url",
            "a password has no place here: put it into a file for libpq and add ?passfile=FILE",
        )


def split_address(address: str, path: str = "address") -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`.

    Args:
        address: The text.
        path: Which setting it is.

    Raises:
        OperatorError: It is neither.
    """
    host, separator, port = address.rpartition(":")
    is_port = port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535
    is_host = bool(host) and (host.startswith("[") == host.endswith("]") == (":" in host))
    if not (separator and is_port and is_host):
        raise _fail(path, f"{address!r} is no address: use host:port or [v6]:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _convert(table: Any, section: type[S], path: str) -> S:
    try:
        return msgspec.convert(table, section)
    except msgspec.ValidationError as error:
        what, _, inner = str(error).partition(" - at `$")
        here = (path + inner.rstrip("`")).lstrip(".")
        if missing := _MISSING.fullmatch(what):
            here, what = f"{here}.{missing[1]}".lstrip("."), "is missing"
        raise _fail(here or "file", what[0].lower() + what[1:]) from None


def parse_config(text: str, environment: Mapping[str, str]) -> Config:
    """Check a configuration text.

    Args:
        text: The TOML file's text.
        environment: Variables that may override values.

    Raises:
        OperatorError: It is not TOML, or a name or value does not fit; exit code 2.
    """
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _fail("not TOML", str(error)) from None
    _override(table, environment)
    _check_names(table, Config, "")
    _check_values(table, "")
    tokens = table.get("hsm")
    if isinstance(tokens, dict):
        # One by one, because msgspec does not tell the name of a table that is wrong.
        for name, token in tokens.items():
            _convert(token, Hsm, f"hsm.{name}")
    config = _convert(table, Config, "")
    _check_rules(config)
    return config


def is_reloaded(annotation: Any) -> bool:
    """Whether SIGHUP reads a setting of this annotation again."""
    metas = typing.get_args(annotation)[1:]
    return any(isinstance(meta, Meta) and meta.extra == RELOADED for meta in metas)


def restart_settings(old: Section, new: Section, path: str = "") -> list[str]:
    """Settings that differ and need a restart.

    Args:
        old: A section, or the whole, as it is in force.
        new: The same as it was read.
        path: Its name.
    """
    hints = typing.get_type_hints(type(old), include_extras=True)
    found: list[str] = []
    for name in old.__struct_fields__:
        before, after, here = getattr(old, name), getattr(new, name), f"{path}{name}"
        if before == after or is_reloaded(hints[name]):
            continue
        if isinstance(before, Section):
            found += restart_settings(before, after, f"{here}.")
        elif _struct_of(hints[name]) is not None:
            found += [f"{here}.{key}" for key in sorted(set(before) ^ set(after))]
            for key in sorted(set(before) & set(after)):
                found += restart_settings(before[key], after[key], f"{here}.{key}.")
        else:
            found.append(here)
    return found


def load_config(path: Path) -> Config:
    """Read and check a configuration file.

    Raises:
        OperatorError: It cannot be read, or does not fit; exit code 2.
    """
    try:
        text = read_regular("configuration", path, CONFIG_SIZE_MAX).decode()
    except UnicodeDecodeError:
        raise _fail(str(path), "cannot be read: it is not text in UTF-8") from None
    except OperatorError as error:
        raise OperatorError(error.text, exit_code=EXIT_CONFIGURATION) from None
    return parse_config(text, os.environ)
