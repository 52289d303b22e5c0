"""Profiles: where a gateway is and with which client key to go there, by name.

They live in one TOML file, `${XDG_CONFIG_HOME:-~/.config}/hsmux/profiles.toml`, readable by its
owner only and replaced as a whole, so a reader never sees half of it:

    default = "dev"

    [profiles.dev]
    addresses = ["127.0.0.1:7474"]
    certificate = "/home/ada/client.pem"
    private_key = "/home/ada/client.key"
    ca = "/home/ada/ca.pem"
    server_name = "localhost"

The profile that is used: the one that is named, else the one named by `HSMUX_PROFILE`, else the
default. It holds paths only, never a key.
"""

import difflib
import json
import os
import re
import tempfile
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from hsmux_protocol.errors import InvalidArgument, NotFound

__all__ = [
    "AUTO",
    "OFF",
    "OWN_KEY",
    "RENEWALS",
    "Profile",
    "check_profile_files",
    "check_profile_name",
    "default_profile",
    "list_profiles",
    "load_profile",
    "profiles_path",
    "resolve_profile",
    "save_profile",
    "split_address",
    "use_profile",
]

AUTO, OWN_KEY, OFF = "auto", "own-key", "off"
RENEWALS: Final = (AUTO, OWN_KEY, OFF)
"""How a client key is renewed by the clients that use it: `own-key` never asks the gateway to make
the private key.
"""

ENVIRONMENT: Final = "HSMUX_PROFILE"
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_PORT: Final = re.compile(r"[0-9]{1,5}", re.ASCII)
_REMEDY: Final = "start `hsmux dev`, which writes one, or add one with `hsmux profile add`"


@dataclass(frozen=True, slots=True)
class Profile:
    """How to reach a gateway.

    Attributes:
        addresses: "host:port" or "[v6]:port", at least one; connections spread over them.
        certificate: PEM file of the client certificate.
        private_key: PEM file of its private key, not encrypted.
        ca: PEM file of the CA that signs the gateway's certificate.
        server_name: The name or IP address the gateway's certificate must have; None: the
            address' host.
        renewal: One of `RENEWALS`.
    """

    addresses: tuple[str, ...]
    certificate: str
    private_key: str
    ca: str
    server_name: str | None = None
    renewal: str = AUTO


def profiles_path() -> Path:
    """The file that profiles are kept in."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(base, "hsmux", "profiles.toml")


def load_profile(name: str | None = None) -> Profile:
    """A saved profile.

    Args:
        name: Which one; None: the one `HSMUX_PROFILE` names, else the default.

    Raises:
        NotFound: There is no such profile; the text says how to make one.
        InvalidArgument: The file is malformed; the text names the place.
    """
    default, profiles = _read()
    chosen = name or os.environ.get(ENVIRONMENT) or default
    if chosen is None:
        raise NotFound(f"no profile is chosen in {profiles_path()}; {_REMEDY}")
    if chosen not in profiles:
        raise _unknown(chosen, profiles)
    return profiles[chosen]


def _unknown(name: str, profiles: Collection[str]) -> NotFound:
    near = difflib.get_close_matches(name, profiles, 1)
    if near:
        return NotFound(f"no profile {name!r} in {profiles_path()}; did you mean {near[0]!r}?")
    known = ", ".join(profiles) or "none"
    return NotFound(f"no profile {name!r} in {profiles_path()} (known: {known}); {_REMEDY}")


def list_profiles() -> dict[str, Profile]:
    """All saved profiles by name, in the order of the file.

    Raises:
        InvalidArgument: The file is malformed; the text names the place.
    """
    return _read()[1]


def default_profile() -> str | None:
    """The name of the default profile, or None; `HSMUX_PROFILE` is not looked at.

    Raises:
        InvalidArgument: The file is malformed; the text names the place.
    """
    return _read()[0]


def check_profile_name(name: str) -> None:
    """Refuse what cannot be the name of a profile.

    Raises:
        InvalidArgument: It is not 1 to 64 characters of `A-Za-z0-9_-`.
    """
    if not _NAME.fullmatch(name):
        raise InvalidArgument(f"profile {name!r}: a name is 1 to 64 characters A-Z a-z 0-9 _ -")


def check_profile_files(profile: Profile) -> None:
    """Refuse a profile that no connection can be made with: its files are looked at as then.

    Raises:
        InvalidArgument: A file cannot be read or is not what it should be, the private key is not
            the certificate's, or others can use it; the text names the file.
    """
    from ._tls import make_client_context

    make_client_context(profile)


def save_profile(name: str, profile: Profile, default: bool = False) -> None:
    """Save a profile under a name, replacing one of that name; relative paths become absolute.

    Args:
        name: 1 to 64 characters of `A-Za-z0-9_-`.
        profile: What to save.
        default: Make it the default; the first profile becomes the default anyway.

    Raises:
        InvalidArgument: The name or the profile is malformed, or the file cannot be read or
            written.
    """
    check_profile_name(name)
    _check(name, profile)
    previous, profiles = _read()
    paths = {path: _absolute(getattr(profile, path)) for path in _PATHS}
    profiles[name] = replace(profile, addresses=tuple(profile.addresses), **paths)
    _write(name if default or previous is None else previous, profiles)


def use_profile(name: str) -> None:
    """Make a saved profile the default.

    Raises:
        NotFound: There is no such profile.
        InvalidArgument: The file cannot be read or written.
    """
    profiles = _read()[1]
    if name not in profiles:
        raise _unknown(name, profiles)
    _write(name, profiles)


def resolve_profile(
    addresses: Sequence[str] | str | None,
    *,
    profile: str | None,
    certificate: str | os.PathLike[str] | None,
    private_key: str | os.PathLike[str] | None,
    ca: str | os.PathLike[str] | None,
    server_name: str | None,
    renewal: str | None = None,
) -> Profile:
    """What is given, completed from a profile where something is missing.

    No file is read when nothing is missing and no profile is named.

    Raises:
        NotFound: A profile is needed and there is none; the text says how to make one.
        InvalidArgument: The profile or an argument is malformed.
    """
    if isinstance(addresses, str):
        addresses = (addresses,)
    given: dict[str, Any] = {
        "addresses": None if addresses is None else tuple(addresses),
        "certificate": None if certificate is None else os.fspath(certificate),
        "private_key": None if private_key is None else os.fspath(private_key),
        "ca": None if ca is None else os.fspath(ca),
    }
    if profile is None and all(value is not None for value in given.values()):
        resolved = Profile(**given, server_name=server_name, renewal=renewal or AUTO)
    else:
        base = load_profile(profile)
        changes = {name: value for name, value in given.items() if value is not None}
        if server_name is not None:
            changes["server_name"] = server_name
        if renewal is not None:
            changes["renewal"] = renewal
        resolved = replace(base, **changes)
    _check(profile or "(arguments)", resolved)
    return resolved


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`.

    Raises:
        ValueError: It is neither.
    """
    host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    name = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    is_ambiguous = ":" in name and name == host
    if not name or is_ambiguous or not _PORT.fullmatch(port) or not 0 < int(port) < 2**16:
        raise ValueError(f"{address!r} is not host:port or [v6]:port")
    return name, int(port)


_PATHS: Final = ("certificate", "private_key", "ca")
_FIELDS: Final = tuple(field.name for field in fields(Profile))
_REQUIRED: Final = ("addresses", *_PATHS)


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _check(name: str, profile: Profile) -> None:
    if not profile.addresses:
        raise InvalidArgument(f"profile {name}: addresses: at least one host:port")
    for address in profile.addresses:
        try:
            split_address(address)
        except ValueError as error:
            raise InvalidArgument(f"profile {name}: addresses: {error}") from None
    for path in _PATHS:
        if not isinstance(getattr(profile, path), str) or not getattr(profile, path):
            raise InvalidArgument(f"profile {name}: {path}: the path of a PEM file")
    if profile.server_name is not None and not isinstance(profile.server_name, str):
        raise InvalidArgument(f"profile {name}: server_name: a name or an IP address")
    if profile.renewal not in RENEWALS:
        raise InvalidArgument(f"profile {name}: renewal: one of {', '.join(RENEWALS)}")


def _read() -> tuple[str | None, dict[str, Profile]]:
    path = profiles_path()
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, {}
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise InvalidArgument(f"{path}: {problem}; mend it or remove it") from None
    default, profiles = document.pop("default", None), document.pop("profiles", {})
    if document or not isinstance(default, str | None) or not isinstance(profiles, dict):
        unknown = ", ".join(document) or "default, profiles"
        raise InvalidArgument(f"{path}: {unknown}: expected default = NAME and [profiles.NAME]")
    return default, {name: _parse(path, name, table) for name, table in profiles.items()}


def _parse(path: Path, name: str, table: object) -> Profile:
    if not isinstance(table, dict):
        raise InvalidArgument(f"{path}: profiles.{name} must be a table")
    missing = [field for field in _REQUIRED if field not in table]
    unknown = [field for field in table if field not in _FIELDS]
    if missing or unknown:
        problem = f"has no {missing[0]}" if missing else f"has an unknown entry {unknown[0]!r}"
        raise InvalidArgument(f"{path}: profiles.{name} {problem}")
    addresses = table["addresses"]
    if not isinstance(addresses, list):
        raise InvalidArgument(f"{path}: profiles.{name}.addresses must be an array of host:port")
    profile = Profile(**{**table, "addresses": tuple(addresses)})
    _check(name, profile)
    return profile


def _write(default: str | None, profiles: Mapping[str, Profile]) -> None:
    lines = [] if default is None else [f"default = {_quoted(default)}"]
    for name, profile in profiles.items():
        lines += ["", f"[profiles.{name}]"]
        addresses = ", ".join(_quoted(address) for address in profile.addresses)
        lines.append(f"addresses = [{addresses}]")
        for field in _FIELDS[1:]:
            value = getattr(profile, field)
            if value is not None and (field, value) != ("renewal", AUTO):
                lines.append(f"{field} = {_quoted(value)}")
    path = profiles_path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _replace(path, "\n".join(lines) + "\n")
    except (OSError, UnicodeEncodeError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise InvalidArgument(f"{path}: cannot be written: {problem}") from None


def _quoted(text: str) -> str:
    """A TOML basic string: JSON's escapes are among TOML's, and DEL is the one JSON leaves."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _replace(path: Path, text: str) -> None:
    """Replace a file at once; the new one is for its owner only."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".profiles-")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
