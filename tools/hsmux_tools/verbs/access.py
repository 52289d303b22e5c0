"""`hsmux access-point create|list|show|update|delete` and `hsmux client-key
create|list|show|renew|revoke`.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from hsmux_protocol.operations import (
    BYTES_PER_S_MAX,
    IN_FLIGHT_MAX,
    REQUESTS_PER_S_MAX,
    VALIDITY_DAYS_MAX,
)
from hsmux_protocol.references import SPKI_PREFIX, URI_PREFIX

from ..failure import EXIT_CONFLICT, EXIT_FAILED, EXIT_USAGE, Failure
from ..output import record_of, show_list, show_record, talk, write_file
from ..settings import FILE, Settings, verb
from ..source import read_input
from .connection import connect
from .profiles import refuse_taken, replace_option

if TYPE_CHECKING:
    from hsmux import IssuedClientKey

__all__ = [
    "create_access_point",
    "create_client_key",
    "delete_access_point",
    "list_access_points",
    "list_client_keys",
    "renew_client_key",
    "revoke_client_key",
    "show_access_point",
    "show_client_key",
    "update_access_point",
]

ACCESS_POINT_COLUMNS: Final = (
    *("access_point_id", "name", "state", "policies", "mtls", "description"),
)
CLIENT_KEY_COLUMNS: Final = ("client_key_id", "access_point", "state", "not_after", "serial")
CSR_SIZE_MAX: Final = 16384
VALIDITY_DAYS_DEFAULT: Final = 365

F = TypeVar("F", bound=Callable[..., Any])


def _names(option: str, text: str) -> Callable[[F], F]:
    """An option that takes the name of a policy or network rule, as often as wanted."""
    return click.option(option, multiple=True, metavar="NAME", help=f"{text} May be repeated.")


def _uris(*option: str, text: str) -> Callable[[F], F]:
    """An option that takes URIs of certificates of other CAs."""
    return click.option(*option, multiple=True, metavar="URI", help=f"{text} May be repeated.")


def _public_keys(*option: str, text: str) -> Callable[[F], F]:
    """An option that takes SHA-256 of public keys of certificates of other CAs."""
    return click.option(*option, multiple=True, metavar="HEX", help=f"{text} May be repeated.")


def _known_by(uris: tuple[str, ...], public_keys: tuple[str, ...]) -> list[str]:
    """Both as the gateway names them; other tools write digests with colons and large letters."""
    digests = (digest.replace(":", "").lower() for digest in public_keys)
    return [*(URI_PREFIX + uri for uri in uris), *(SPKI_PREFIX + digest for digest in digests)]


def _limits(function: F) -> F:
    """Options of the limits of an access point."""
    for option, most, text in (
        ("--in-flight", IN_FLIGHT_MAX, "Requests that may be in work at a time."),
        ("--bytes-per-s", BYTES_PER_S_MAX, "Bytes of requests a second."),
        ("--requests-per-s", REQUESTS_PER_S_MAX, "Requests a second; items of batches count."),
    ):
        kind = click.IntRange(0, most)
        text += " 0: what the configuration says."
        function = click.option(option, type=kind, metavar="N", help=text)(function)
    return function


@verb(
    "create",
    "hsmux access-point create billing --policy orders --description 'invoices'",
    "hsmux access-point create billing --mtls-uri spiffe://example.org/billing",
    "hsmux access-point create billing --policy orders --requests-per-s 500 --in-flight 64",
)
@click.argument("name", metavar="NAME")
@click.option("--description", default="", metavar="TEXT")
@_names("--policy", "A policy it has; without one it may do nothing.")
@_uris("--mtls-uri", text="A URI in its certificate of an outside CA, such as a SPIFFE ID.")
@_public_keys("--mtls-spki", text="SHA-256 of its public key in a certificate of an outside CA.")
@_limits
@click.pass_obj
def create_access_point(
    settings: Settings,
    name: str,
    description: str,
    policy: tuple[str, ...],
    mtls_uri: tuple[str, ...],
    mtls_spki: tuple[str, ...],
    requests_per_s: int | None,
    bytes_per_s: int | None,
    in_flight: int | None,
) -> None:
    """Make an access point.

    It is the identity of one application; client keys are issued to it, or it is known by its
    certificate of an outside CA, and policies say what it may do.
    """
    with connect(settings) as client:
        made = client.create_access_point(
            name,
            description=description,
            policies=policy,
            mtls=_known_by(mtls_uri, mtls_spki),
            requests_per_s=requests_per_s,
            bytes_per_s=bytes_per_s,
            in_flight=in_flight,
            timeout_s=settings.timeout_s,
        )
    show_record(record_of(made), settings)


@verb("show", "hsmux access-point show billing")
@click.argument("access_point", metavar="NAME")
@click.pass_obj
def show_access_point(settings: Settings, access_point: str) -> None:
    """Show one access point."""
    with connect(settings) as client:
        found = client.show_access_point(access_point, timeout_s=settings.timeout_s)
    show_record(record_of(found), settings)


@verb(
    "update",
    "hsmux access-point update billing --add-policy orders --remove-policy trial",
    "hsmux access-point update billing --add-network-rule office",
    "hsmux access-point update billing --mtls-uri spiffe://example.org/billing",
    "hsmux access-point update billing --requests-per-s 500",
    "hsmux access-point update billing --disable",
)
@click.argument("access_point", metavar="NAME")
@click.option("--description", metavar="TEXT")
@click.option("--enable/--disable", "enabled", default=None, help="Whether it is accepted.")
@_names("--add-policy", "A policy it gets.")
@_names("--remove-policy", "A policy it loses.")
@_names("--add-network-rule", "A network rule; it has to be inside one of those it has.")
@_names("--remove-network-rule", "A network rule it loses.")
@_uris("--mtls-uri", "--add-mtls-uri", text="A URI it is known by in an outside CA's certificate.")
@_public_keys("--mtls-spki", "--add-mtls-spki", text="SHA-256 of a public key it is known by.")
@_uris("--remove-mtls-uri", text="A URI it is known by no more.")
@_public_keys("--remove-mtls-spki", text="SHA-256 of a public key it is known by no more.")
@_limits
@click.pass_obj
def update_access_point(
    settings: Settings,
    access_point: str,
    description: str | None,
    enabled: bool | None,
    add_policy: tuple[str, ...],
    remove_policy: tuple[str, ...],
    add_network_rule: tuple[str, ...],
    remove_network_rule: tuple[str, ...],
    mtls_uri: tuple[str, ...],
    mtls_spki: tuple[str, ...],
    remove_mtls_uri: tuple[str, ...],
    remove_mtls_spki: tuple[str, ...],
    requests_per_s: int | None,
    bytes_per_s: int | None,
    in_flight: int | None,
) -> None:
    """Change an access point.

    Only what is named changes, at once, on open connections too. Nobody changes its own access
    point's policies, network rules, certificates, limits or state, and the last one that
    administers access stays.
    """
    lists = (
        *(add_policy, remove_policy, add_network_rule, remove_network_rule),
        *(mtls_uri, mtls_spki, remove_mtls_uri, remove_mtls_spki),
    )
    others = (description, enabled, requests_per_s, bytes_per_s, in_flight)
    if not any(lists) and all(other is None for other in others):
        raise click.UsageError("nothing to change: name at least one option.")
    with connect(settings) as client:
        changed = client.update_access_point(
            access_point,
            description=description,
            enabled=enabled,
            add_policies=add_policy,
            remove_policies=remove_policy,
            add_network_rules=add_network_rule,
            remove_network_rules=remove_network_rule,
            add_mtls=_known_by(mtls_uri, mtls_spki),
            remove_mtls=_known_by(remove_mtls_uri, remove_mtls_spki),
            requests_per_s=requests_per_s,
            bytes_per_s=bytes_per_s,
            in_flight=in_flight,
            timeout_s=settings.timeout_s,
        )
    show_record(record_of(changed), settings)


@verb("delete", "hsmux access-point delete billing")
@click.argument("access_point", metavar="NAME")
@click.pass_obj
def delete_access_point(settings: Settings, access_point: str) -> None:
    """Delete an access point.

    It is refused from now on, for ever. Its name is not given again, so that records stay clear.
    """
    with connect(settings) as client:
        gone = client.delete_access_point(access_point, timeout_s=settings.timeout_s)
    show_record(record_of(gone), settings)


@verb("list", "hsmux access-point list", "hsmux access-point list --field name")
@click.pass_obj
def list_access_points(settings: Settings) -> None:
    """List access points."""
    with connect(settings) as client:
        records = [
            record_of(item) for item in client.list_access_points(timeout_s=settings.timeout_s)
        ]
    show_list(records, ACCESS_POINT_COLUMNS, settings)


@verb(
    "create",
    "hsmux client-key create --access-point billing --out billing --profile-name billing",
    "hsmux client-key create --access-point billing --csr billing.csr --out billing",
)
@click.option("--access-point", required=True, metavar="NAME", help="Whom it is issued to.")
@click.option(
    "--csr",
    type=FILE,
    metavar="FILE",
    help="A PKCS#10 request; without one the gateway makes the private key and keeps no copy.",
)
@click.option(
    "--validity-days",
    type=click.IntRange(1, VALIDITY_DAYS_MAX),
    default=VALIDITY_DAYS_DEFAULT,
    show_default=True,
    metavar="DAYS",
)
@click.option(
    "--out", "prefix", required=True, type=FILE, metavar="PREFIX", help="Begin of the file names."
)
@click.option("--profile-name", metavar="NAME", help="Save a profile that uses it.")
@replace_option
@click.pass_obj
def create_client_key(
    settings: Settings,
    access_point: str,
    csr: str | None,
    validity_days: int,
    prefix: str,
    profile_name: str | None,
    replace: bool,
) -> None:
    """Issue a client key.

    Writes PREFIX.pem, PREFIX.key (for its owner only; not with --csr) and PREFIX-ca.pem. The
    profile has the addresses of the one in use, and with --csr takes the private key from
    PREFIX.key.
    """
    if profile_name is not None:
        refuse_taken(profile_name, replace=replace)
    request = None
    if csr is not None:
        request = read_input(csr, CSR_SIZE_MAX, "this is not a PKCS#10 request")
    paths = _free_paths(prefix, with_key=csr is None)
    with connect(settings) as client:
        issued = client.create_client_key(
            access_point, csr=request, validity_days=validity_days, timeout_s=settings.timeout_s
        )
    _save(paths, issued, prefix)
    if profile_name is not None:
        _add_profile(settings, profile_name, paths)
    show_record(record_of(issued.client_key), settings)


def _free_paths(prefix: str, *, with_key: bool) -> tuple[Path, Path, Path]:
    """Certificate, private key and CA; checked before anything is issued."""
    certificate, private_key, ca = (
        Path(f"{prefix}.pem"),
        Path(f"{prefix}.key"),
        Path(f"{prefix}-ca.pem"),
    )
    for path in (certificate, private_key, ca) if with_key else (certificate, ca):
        if os.path.lexists(path):
            raise Failure(f"{path} is there already; move it or use another --out", EXIT_CONFLICT)
    if not os.access(certificate.parent, os.W_OK | os.X_OK):
        raise Failure(f"{certificate.parent}: files cannot be written there", EXIT_USAGE)
    return certificate, private_key, ca


def _save(paths: tuple[Path, Path, Path], issued: "IssuedClientKey", prefix: str) -> None:
    """Write what was issued, or say what to do about it."""
    try:
        _write_files(paths, issued)
    except OSError as error:
        raise Failure(
            f"{error.filename or prefix}: {error.strerror}; the client key was issued but is not "
            f"saved: run `hsmux client-key revoke {issued.client_key.client_key_id}` and try again",
            EXIT_FAILED,
        ) from None


def _write_files(paths: tuple[Path, Path, Path], issued: "IssuedClientKey") -> None:
    certificate, private_key, ca = paths
    if issued.private_key_pem is not None:
        write_file(private_key, issued.private_key_pem.encode(), secret=True)
        talk(f"wrote {private_key}")
    write_file(certificate, issued.certificate_pem.encode())
    write_file(ca, issued.ca_pem.encode())
    talk(f"wrote {certificate} and {ca}")


def _add_profile(settings: Settings, name: str, paths: tuple[Path, Path, Path]) -> None:
    from hsmux.profiles import Profile, load_profile, save_profile

    used = load_profile(settings.profile)
    certificate, private_key, ca = map(str, paths)
    save_profile(name, Profile(used.addresses, certificate, private_key, ca, used.server_name))
    talk(f"saved profile {name}")
    if not os.path.exists(private_key):
        talk(f"the private key is not there yet: the profile takes it from {private_key}")


@verb("list", "hsmux client-key list", "hsmux client-key list -o json")
@click.pass_obj
def list_client_keys(settings: Settings) -> None:
    """List client keys."""
    with connect(settings) as client:
        records = [
            record_of(item) for item in client.list_client_keys(timeout_s=settings.timeout_s)
        ]
    show_list(records, CLIENT_KEY_COLUMNS, settings)


@verb("show", "hsmux client-key show ck-aaaqeayeaudaocajbifqydiob4")
@click.argument("client_key", metavar="CLIENT_KEY")
@click.pass_obj
def show_client_key(settings: Settings, client_key: str) -> None:
    """Show one client key."""
    with connect(settings) as client:
        found = client.show_client_key(client_key, timeout_s=settings.timeout_s)
    show_record(record_of(found), settings)


@verb(
    "renew",
    "hsmux client-key renew",
    "hsmux client-key renew ck-aaaqeayeaudaocajbifqydiob4 --csr billing-2.csr --out billing-2",
)
@click.argument("client_key", metavar="[CLIENT_KEY]", required=False)
@click.option(
    "--csr", type=FILE, metavar="FILE", help="A PKCS#10 request with a new key; needs --out."
)
@click.option(
    "--out", "prefix", type=FILE, metavar="PREFIX", help="Begin of the file names; needs a key."
)
@click.option(
    "--force", is_flag=True, help="Also if it was renewed just now; a policy has to allow it."
)
@click.pass_obj
def renew_client_key(
    settings: Settings, client_key: str | None, csr: str | None, prefix: str | None, force: bool
) -> None:
    """Renew a client key.

    The new one is valid as long as the old one was, which stays accepted until it ends. Without
    CLIENT_KEY it is the one in use, for which no policy is needed; without --out as well, the new
    one takes its place in the profile's files. With --out it is written as by `client-key create`.
    """
    if prefix is None:
        if client_key is not None or csr is not None:
            raise Failure("say where the new client key is written: --out PREFIX", EXIT_USAGE)
        _renew_in_place(settings, force)
        return
    request = None
    if csr is not None:
        request = read_input(csr, CSR_SIZE_MAX, "this is not a PKCS#10 request")
    paths = _free_paths(prefix, with_key=csr is None)
    with connect(settings) as client:
        issued = client.renew_client_key(
            client_key, csr=request, force=force, timeout_s=settings.timeout_s
        )
    _save(paths, issued, prefix)
    show_record(record_of(issued.client_key), settings)


def _renew_in_place(settings: Settings, force: bool) -> None:
    """Replace the client key in the files of the profile in use."""
    from hsmux.profiles import load_profile
    from hsmux.renewal import renew_profile

    profile = load_profile(settings.profile)
    try:
        issued = renew_profile(profile, force=force, timeout_s=settings.timeout_s)
    except OSError as error:
        raise Failure(
            f"{error.filename or profile.certificate}: {error.strerror}: it cannot be replaced; "
            "run this as its owner, or use --out",
            EXIT_FAILED,
        ) from None
    talk(f"replaced {profile.certificate} and {profile.private_key}")
    show_record(record_of(issued.client_key), settings)


@verb("revoke", "hsmux client-key revoke ck-aaaqeayeaudaocajbifqydiob4")
@click.argument("client_key", metavar="CLIENT_KEY")
@click.pass_obj
def revoke_client_key(settings: Settings, client_key: str) -> None:
    """Refuse a client key for ever.

    Takes effect at once, on open connections too. CLIENT_KEY is ck-<identifier>.
    """
    with connect(settings) as client:
        revoked = client.revoke_client_key(client_key, timeout_s=settings.timeout_s)
    show_record(record_of(revoked), settings)
