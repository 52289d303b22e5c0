"""What TLS stands on: the gateway's certificate and private key, and the roots it believes.

Theory of operation
-------------------
They are loaded together and checked together, and what comes of it is never changed: a reload makes
new `Credentials` and puts them in the place of the old in one step, or says in one line what is
wrong and leaves the old where they are. New connections take the new; those that are open keep
their keys, and what their certificates may do is asked again at once (see `access.identities`).

A start is lenient where a reload is strict. At a reload there are old ones to keep, so a
certificate that has ended, a chain out of order or a root that has ended is refused. At a start
there is nothing to keep, and a gateway that does not start serves nobody: it warns.

Whether the private key belongs to the certificate is tried, not compared: an EC private key carries
its public key beside it, and one damaged bit leaves that as it was. So new credentials shake hands
with themselves first (`_try_out`).

The certificate that `hsmux init` made is renewed by the gateway itself when two thirds of its life
are over (`renewal_due`): a new private key, certified by the deployment's CA. The pair is two
files, which no file system replaces at once: the new private key is written beside the old one
(`server.next.key`), then the certificate is replaced, then the private key. Whoever reads the pair
looks for a next key first (`settle_pair`): one that fits the certificate takes the old one's place,
another was left by a crash before anything was replaced, and goes.
"""

import datetime
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from .access.administration import Authority
from .access.authority import MALFORMED, SERVER_VALIDITY, issue, server_names
from .access.trust import Trust, parse_certificates, read_outside_cas
from .config import Tls
from .errors import OperatorError
from .hsm.errors import TokenError
from .instance import Instance, sync_directory, write_file
from .logs import structlog
from .private_files import check_secret, read_regular
from .tls import make_server_context

__all__ = [
    "Credentials",
    "ServerCredentials",
    "load_credentials",
    "make_pair",
    "renewal_due",
    "settle_pair",
]

log = structlog.get_logger("hsmux.credentials")

PEM_SIZE_MAX: Final = 1 << 20
"""Bytes of a file with a certificate and its chain, or a private key."""

STEPS_MAX: Final = 8
"""Steps of a handshake with itself; three are enough."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a handshake needs, and what it is believed for.

    Attributes:
        context: For new connections.
        trust: The roots in it.
        certificate: The gateway's own.
    """

    context: ssl.SSLContext
    trust: Trust
    certificate: x509.Certificate


def load_credentials(
    tls: Tls, instance: Instance, own_ca: x509.Certificate, *, at: datetime.datetime | None = None
) -> Credentials:
    """Load what the configuration names.

    Args:
        tls: Its section.
        instance: Has the pair that `hsmux init` made.
        own_ca: The certificate of the deployment's CA.
        at: Everything must be valid then and tried out; None: what can be loaded is taken.

    Raises:
        OperatorError: It cannot be used; says what is wrong and what to do.
    """
    certificate, private_key = _paths(tls, instance)
    trust = Trust(own_ca, read_outside_cas(tls.outside_cas, own_ca, at=at))
    if at is None:
        context = make_server_context(certificate, private_key, trust.roots)
        return Credentials(context, trust, _read_chain(certificate)[0])
    before = _read_chain(certificate)
    check_secret("tls.private_key", private_key)
    _check_chain(certificate, before, own_ca, at)
    context = make_server_context(certificate, private_key, trust.roots)
    _try_out(context, certificate, private_key)
    if _read_chain(certificate) != before:
        raise OperatorError(f"tls: {certificate} changed while it was read: reload once more")
    return Credentials(context, trust, before[0])


def _paths(tls: Tls, instance: Instance) -> tuple[Path, Path]:
    """Certificate and private key; of the pair that `init` made, the one that fits."""
    if tls.certificate:
        return Path(tls.certificate), Path(tls.private_key)
    settle_pair(instance)
    return instance.server_certificate, instance.server_key


def _read_chain(path: Path) -> list[x509.Certificate]:
    found = parse_certificates(read_regular("tls.certificate", path, PEM_SIZE_MAX))
    if not found:
        raise OperatorError(f"tls.certificate: {path} holds no PEM certificate, or a damaged one")
    return found


def _check_chain(
    path: Path, chain: Sequence[x509.Certificate], own_ca: x509.Certificate, at: datetime.datetime
) -> None:
    """Refuse a chain that clients would refuse, as far as that does not depend on them."""
    for number, certificate in enumerate(chain, 1):
        which = f"tls.certificate: certificate {number} of {path}"
        if at >= certificate.not_valid_after_utc:
            raise OperatorError(f"{which} ended on {certificate.not_valid_after_utc:%Y-%m-%d}")
        if at < certificate.not_valid_before_utc:
            raise OperatorError(f"{which} begins on {certificate.not_valid_before_utc:%Y-%m-%d}")
    last = chain[-1]
    issuers = [*chain[1:], *(ca for ca in (last, own_ca) if last.issuer == ca.subject)]
    for number, (subject, issuer) in enumerate(zip(chain, issuers, strict=False), 1):
        if not _has_issued(issuer, subject):
            raise OperatorError(
                f"tls.certificate: certificate {number} of {path} is not signed by what follows "
                "it: the gateway's comes first, then each one's issuer"
            )
    if not _is_for_servers(chain[0]):
        raise OperatorError(f"tls.certificate: the certificate of {path} is not for servers")


def _has_issued(issuer: x509.Certificate, subject: x509.Certificate) -> bool:
    try:
        subject.verify_directly_issued_by(issuer)
    except (*MALFORMED, InvalidSignature):
        return False
    return True


def _is_for_servers(certificate: x509.Certificate) -> bool:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    except MALFORMED:
        return False
    return ExtendedKeyUsageOID.SERVER_AUTH in usage


def _try_out(context: ssl.SSLContext, certificate: Path, private_key: Path) -> None:
    """Shake hands until a client has verified the gateway's signature."""
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.verify_mode = ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(to_server, to_client, server_side=True)
    client = client_context.wrap_bio(to_client, to_server)
    try:
        for _ in range(STEPS_MAX):
            if _is_done(client):
                return
            _is_done(server)
    except ssl.SSLError as error:
        raise OperatorError(
            f"tls: {private_key} does not sign for {certificate} ({error.reason or error}): "
            "give both files of one pair"
        ) from None
    raise AssertionError("a handshake takes three steps")


def _is_done(side: ssl.SSLObject) -> bool:
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def make_pair(
    instance: Instance,
    authority: Authority,
    names: list[str],
    now: datetime.datetime,
) -> None:
    """Make the gateway's certificate and private key; blocks while the CA signs.

    Args:
        instance: Where its files are.
        authority: The deployment's CA.
        names: DNS names and addresses it carries.
        now: When its life begins.

    Raises:
        TokenError: The CA's key cannot be used now.
        OSError: The files cannot be written.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = issue(
        authority.certificate,
        authority.open_key(),
        key.public_key(),
        common_name=names[0],
        now=now,
        validity=SERVER_VALIDITY,
        names=server_names(names),
    )
    private_key = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    encoding = serialization.Encoding.PEM
    chain = certificate.public_bytes(encoding) + authority.certificate.public_bytes(encoding)
    write_file(instance.next_server_key, private_key)
    write_file(instance.server_certificate, chain, mode=0o644)
    settle_pair(instance)


def settle_pair(instance: Instance) -> None:
    """Finish what replaced the pair, or forget what a crash left of it."""
    path = instance.next_server_key
    if not path.exists():
        return
    if _belong(instance.server_certificate, path):
        path.rename(instance.server_key)
    else:
        path.unlink()
    sync_directory(path.parent)


def _belong(certificate: Path, private_key: Path) -> bool:
    try:
        loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
        key = serialization.load_pem_private_key(private_key.read_bytes(), None)
        return bool(key.public_key() == loaded.public_key())
    except (OSError, *MALFORMED):
        return False


def renewal_due(certificate: x509.Certificate, at: datetime.datetime) -> bool:
    """Whether two thirds of a certificate's life are over."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return at >= begins + (ends - begins) * 2 / 3


class ServerCredentials:
    """The credentials that new connections take, and how they become others.

    Args:
        tls: Section of the configuration.
        instance: Has the pair that `hsmux init` made.
        authority: The deployment's CA as it is now.
        now: The wall clock.

    Attributes:
        current: What new connections take.

    Raises:
        OperatorError: There is nothing to begin with.
    """

    def __init__(
        self,
        tls: Tls,
        instance: Instance,
        authority: Callable[[], Authority],
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self._tls = tls
        self._instance = instance
        self._authority = authority
        self._now = now
        self._lock = trio.Lock()
        self._listeners: list[Callable[[Credentials], None]] = []
        self.current = load_credentials(tls, instance, authority().certificate)

    def __repr__(self) -> str:
        return f"ServerCredentials({self.current.trust})"

    def on_change(self, listener: Callable[[Credentials], None]) -> None:
        """Call `listener` with the credentials, now and whenever they become others."""
        self._listeners.append(listener)
        listener(self.current)

    async def reload(self, tls: Tls | None = None) -> None:
        """Load everything again; what is open goes on.

        Args:
            tls: Another section of the configuration; None: the one before.

        Raises:
            OperatorError: It cannot be used, and everything is as before.
        """
        async with self._lock:
            await self._reload(self._tls if tls is None else tls)

    async def _reload(self, tls: Tls) -> None:
        own_ca = self._authority().certificate

        def load() -> Credentials:
            return load_credentials(tls, self._instance, own_ca, at=self._now())

        loaded = await trio.to_thread.run_sync(load)
        self._tls, self.current = tls, loaded
        for listener in self._listeners:
            listener(loaded)

    async def renew(self, names: list[str]) -> bool:
        """Make another certificate if it is time and the one that is there was made here.

        Args:
            names: DNS names and addresses that the certificate carries.

        Returns:
            Whether new connections get another one.
        """
        async with self._lock:
            authority = self._authority()
            if not self._is_due():
                return False
            if not await trio.to_thread.run_sync(self._may_replace, authority.certificate):
                log.warning("certificate not renewed: another is in its place, SIGHUP takes it")
                return False
            try:
                await trio.to_thread.run_sync(
                    make_pair, self._instance, authority, names, self._now()
                )
                await self._reload(self._tls)
            except (TokenError, OSError, OperatorError) as error:
                ends = f"{self.current.certificate.not_valid_after_utc:%Y-%m-%d}"
                log.warning("certificate not renewed, tried again", ends=ends, error=str(error))
                return False
            ends = f"{self.current.certificate.not_valid_after_utc:%Y-%m-%d}"
            log.info("certificate renewed", ends=ends)
            return True

    def _is_due(self) -> bool:
        certificate = self.current.certificate
        if self._tls.certificate or not renewal_due(certificate, self._now()):
            return False
        return _has_issued(self._authority().certificate, certificate)

    def _may_replace(self, own_ca: x509.Certificate) -> bool:
        """Whether nobody has put another one there meanwhile: what they put, they replace."""
        try:
            in_place = _read_chain(self._instance.server_certificate)[0]
        except OperatorError:
            # Gone or damaged: there is nothing to lose.
            return True
        return _has_issued(own_ca, in_place)
