"""A client renews its client key by itself when two thirds of its life are over.

Theory of operation
-------------------
Before each request a client looks at the clock, and now and then at its certificate's file. When it
is time, a thread does what there is to do, on a connection of its own: it asks for a new client
key, writes it beside the old one, proves it by a connection, and lets it take the old one's place
(see `_pair`). The client sees that its connection uses a pair that is not in the files any more,
and makes a new one; open requests are still answered on the old one. The same happens when another
process has replaced the files.

None of this is an error of a request. What goes wrong is logged with what to do about it, and tried
again after a pause that doubles. A program that only closes its client waits a moment for a renewal
that is on its way: otherwise one that lives shorter than a renewal takes would never have one.

Where the private key is made depends on `renewal` of the profile:

    auto      here if `cryptography` can be imported, so that the key never leaves; otherwise by the
              gateway, which sends it once over this connection and keeps no copy
    own-key   here, or not at all
    off       nobody renews; `hsmux client-key renew` does it when it is run

TLS needs no other library, so most installations have none that can make a key pair: `hsmux[renew]`
brings it.
"""

import dataclasses
import logging
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from hsmux_protocol.errors import HsmuxError, InvalidArgument, Unauthenticated

from ._certificate import Validity, validity_of
from ._pair import LockHeld, Pair
from .profiles import OFF, OWN_KEY, Profile

if TYPE_CHECKING:
    from .results import IssuedClientKey

__all__ = ["Renewal", "Renewing", "due_s", "renew_files"]

log = logging.getLogger("hsmux")

DUE: Final = 2 / 3
"""Part of a certificate's life after which it is renewed."""

LOOK_S: Final = 3600.0
"""Seconds between looks at the certificate's file, or a part of its life where that is less."""

LOOKS_IN_A_LIFE: Final = 20
PAUSE_MIN_S: Final = 60.0
TRIES_IN_A_LIFE: Final = 60
HELD_PAUSE_S: Final = 5.0
"""Seconds until a pair is looked at again that somebody else is replacing."""

JITTER: Final = 0.25
"""A pause is longer by up to this part, so that many processes do not ask at once."""

FINISH_S: Final = 5.0
"""Seconds that closing a client waits for a renewal that is on its way."""

_REMEDY: Final = 'run `hsmux client-key renew`, or set renewal = "off" in the profile'


class Renewing(Protocol):
    """A client as a renewal uses it."""

    def __enter__(self) -> "Renewing": ...

    def __exit__(self, *details: Any) -> None: ...

    def renew_client_key(
        self, *, csr: bytes | None, force: bool, timeout_s: float | None
    ) -> "IssuedClientKey":
        """As `Client.renew_client_key`."""


def _connect(profile: Profile) -> Renewing:
    """A blocking client of its own, with the same way to the gateway."""
    from .client import Client

    return Client.connect(
        profile.addresses,
        certificate=profile.certificate,
        private_key=profile.private_key,
        ca=profile.ca,
        server_name=profile.server_name,
        renewal=OFF,
    )


def due_s(validity: Validity) -> float:
    """When a certificate is to be renewed, in seconds since 1970 UTC."""
    return validity.begin_s + validity.life_s * DUE


def _make_request(renewal: str) -> tuple[bytes, bytes] | None:
    """A new private key as PKCS#8 PEM and a request for it; None: the gateway is to make one.

    Raises:
        InvalidArgument: It has to be made here, and cannot be.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        if renewal == OWN_KEY:
            raise InvalidArgument(
                "the private key is to be made here, which needs a library: pip install "
                "'hsmux[renew]'"
            ) from None
        return None
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, hashes.SHA256())
    private_key = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return private_key, request.public_bytes(serialization.Encoding.DER)


def renew_files(
    profile: Profile,
    *,
    is_due: Callable[[bytes], bool],
    force: bool = False,
    timeout_s: float | None = None,
    connect: Callable[[Profile], Renewing] = _connect,
) -> "IssuedClientKey | None":
    """Replace the client key in a profile's files by a renewed one.

    Args:
        profile: Whose.
        is_due: Whether the certificate in the file, as PEM, is to be renewed still.
        force: Ask for it even if it was renewed just now.
        timeout_s: Seconds for the request.
        connect: Makes the client that asks, and the one that proves.

    Returns:
        What was issued; None if another process had renewed it, or begun to.

    Raises:
        HsmuxError: The gateway refused, or cannot be reached.
        OSError: The files cannot be replaced.
        LockHeld: Somebody else is replacing them.
    """
    pair = Pair(profile.certificate, profile.private_key)
    with pair.locked():
        if pair.resume():
            _prove_and_install(pair, profile, connect)
        if not is_due(pair.certificate.read_bytes()):
            return None
        made = _make_request(profile.renewal)
        pair.prepare()
        try:
            with connect(profile) as client:
                csr = None if made is None else made[1]
                issued = client.renew_client_key(csr=csr, force=force, timeout_s=timeout_s)
        except BaseException:
            pair.discard()
            raise
        private_key = (issued.private_key_pem or "").encode() if made is None else made[0]
        pair.stage(issued.certificate_pem.encode(), private_key)
        _prove_and_install(pair, profile, connect)
        return issued


def _prove_and_install(
    pair: Pair, profile: Profile, connect: Callable[[Profile], Renewing]
) -> None:
    """Let a new pair take its place once the gateway has accepted it.

    Raises:
        HsmuxError: The gateway cannot be reached, and the new pair is kept for the next try; or it
            refuses it, and it is not.
    """
    new = pair.new
    staged = dataclasses.replace(
        profile, certificate=str(new.certificate), private_key=str(new.private_key)
    )
    try:
        with connect(staged):
            pass
    except Unauthenticated:
        pair.discard()
        raise
    pair.install()


def _start_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, name="hsmux-renewal", daemon=True)
    thread.start()
    return thread


class Renewal:
    """When one client's client key is renewed, and whether its connection uses an older one.

    Args:
        profile: Whose files.
        clock: Tells the time in seconds since 1970 UTC.
        start: Lets a work be done at the side.
        renew: Does it; as `renew_files`.

    Attributes:
        is_stale: Whether the files hold another client key than the connection was made with.
    """

    def __init__(
        self,
        profile: Profile,
        *,
        clock: Callable[[], float] = time.time,
        start: Callable[[Callable[[], None]], threading.Thread | None] = _start_thread,
        renew: Callable[..., object] = renew_files,
    ) -> None:
        self._profile = profile
        self._clock = clock
        self._start = start
        self._renew = renew
        self._used = b""
        self._failures = 0
        self._thread: threading.Thread | None = None
        self._look_at_s = float("inf") if profile.renewal == OFF else 0.0
        self.is_stale = False

    def took(self) -> None:
        """A connection is about to be made with what the files hold."""
        self._used = self._read() or self._used
        self.is_stale = False

    def look(self) -> None:
        """Begin a renewal if it is time; waits for nothing and raises nothing."""
        now_s = self._clock()
        if now_s < self._look_at_s or self.is_running:
            return
        # Threads that come at the same moment all look; the lock on the files is for the rest.
        certificate = self._read()
        validity = _validity(certificate)
        if validity is None:
            # Whoever connects next is told what is wrong with the file.
            self._look_at_s = now_s + LOOK_S
            return
        self.is_stale = self.is_stale or certificate != self._used
        if now_s < due_s(validity):
            pause_s = min(LOOK_S, validity.life_s / LOOKS_IN_A_LIFE)
            self._look_at_s = min(due_s(validity), now_s + pause_s)
            return
        self._thread = self._start(lambda: self._run(validity))

    def finish(self, timeout_s: float = FINISH_S) -> None:
        """Wait a moment for a renewal that is on its way."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    @property
    def is_running(self) -> bool:
        """Whether a renewal is on its way."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    def _run(self, validity: Validity) -> None:
        """Renew; in a thread of its own."""
        until_s = self._clock()
        try:
            self._renew(self._profile, is_due=self._is_due)
            self._failures = 0
            self.is_stale = self._read() != self._used
            log.info("the client key in %s is renewed", self._profile.certificate)
        except LockHeld:
            until_s += HELD_PAUSE_S
        except (HsmuxError, OSError, ValueError) as error:
            until_s += self._failed(error, validity)
        self._look_at_s = until_s

    def _is_due(self, certificate: bytes) -> bool:
        return self._clock() >= due_s(validity_of(certificate))

    def _failed(self, error: Exception, validity: Validity) -> float:
        """Log why a renewal failed; the pause before the next."""
        shortest_s = min(PAUSE_MIN_S, validity.life_s / TRIES_IN_A_LIFE)
        longest_s = min(LOOK_S, validity.life_s / LOOKS_IN_A_LIFE)
        pause_s = min(shortest_s * 2.0**self._failures, longest_s)
        pause_s *= 1 + JITTER * random.random()
        self._failures = min(self._failures + 1, 30)
        log.warning(
            "the client key in %s ends on %s and could not be renewed: %s; %s; next try in %.0f s",
            self._profile.certificate,
            time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(validity.end_s)),
            error,
            _REMEDY,
            pause_s,
        )
        return pause_s

    def _read(self) -> bytes:
        """What the certificate's file holds; empty: it cannot be read."""
        try:
            return Path(self._profile.certificate).read_bytes()
        except OSError:
            return b""


def _validity(certificate: bytes) -> Validity | None:
    try:
        return validity_of(certificate)
    except ValueError:
        return None
