"""The Trio client: the methods of `Client`, to await.

One `TrioClient` is one connection, shared by any number of tasks. It is an async context manager
and has no background task: errors come out of the methods as they are, never in an exception group.
Cancelling a method cancels its request with the gateway; of a change that was sent already nobody
can then say whether it was done.
"""

import os
import ssl
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import trio

from hsmux_protocol.errors import HsmuxError

from . import _calls
from ._addresses import Addresses, why_none
from ._batches import WINDOW, Batch, Batches, decrypt_many, encrypt_many
from ._calls import VALIDITY_DAYS_DEFAULT, Call, KeyName, Page
from ._link import Link
from ._renewal import Renewal
from ._retry import CONNECT_TIMEOUT_S, FAILURES, Effort, check_timeout, unreachable
from ._tls import ClientClosed, ConnectionLost, make_client_context
from ._trio_link import TrioLink, TrioTicket, connect_socket
from .profiles import Profile, resolve_profile, split_address
from .results import (
    AccessPoint,
    ClientKey,
    Decrypted,
    Encrypted,
    Explanation,
    IssuedClientKey,
    Key,
    NetworkRule,
    PendingRequest,
    Policy,
    PolicyDecision,
    PublicKey,
    Quorum,
    Signature,
    Status,
)

__all__ = ["TrioClient"]

T = TypeVar("T")


class TrioClient:
    """A gateway, for Trio programs: `async with TrioClient.connect() as client:`.

    Every method takes `timeout_s` and `idempotency_token` as those of `hsmux.Client` do, and may
    raise what they raise.
    """

    def __init__(self, profile: Profile, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        self._profile = profile
        self._connect_timeout_s = check_timeout(connect_timeout_s)
        self._addresses = Addresses(profile.addresses, trio.current_time)
        self._connecting = trio.Lock()
        self._link: TrioLink | None = None
        self._opening: TrioLink | None = None
        self._leaving: list[TrioLink] = []
        self._closed = trio.Event()
        self._renewal = Renewal(profile)

    @classmethod
    def connect(
        cls,
        addresses: Sequence[str] | str | None = None,
        *,
        profile: str | None = None,
        certificate: str | os.PathLike[str] | None = None,
        private_key: str | os.PathLike[str] | None = None,
        ca: str | os.PathLike[str] | None = None,
        server_name: str | None = None,
        renewal: str | None = None,
        timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> Self:
        """A client that connects when it is entered; what is not given comes from a profile.

        Args:
            addresses: "host:port", or several: one is chosen, the others are tried after it.
            profile: Name of a profile; None: `HSMUX_PROFILE`, else the default profile.
            certificate: PEM file of the client certificate.
            private_key: PEM file of its private key, for its owner only.
            ca: PEM file of the CA of the gateway's certificate.
            server_name: The name the gateway's certificate must have; None: the address' host.
            renewal: "auto": the client key is renewed when two thirds of its life are over, if the
                files can be written, with a private key that is made here if `cryptography` is
                installed and by the gateway otherwise; "own-key": made here or not at all; "off":
                not renewed. None: as the profile says, or "auto".
            timeout_s: Seconds for connecting, now and whenever the connection must be replaced.

        Raises:
            NotFound: A profile is needed and there is none.
            InvalidArgument: An argument or profile is not what it should be.
        """
        resolved = resolve_profile(
            addresses,
            profile=profile,
            certificate=certificate,
            private_key=private_key,
            ca=ca,
            server_name=server_name,
            renewal=renewal,
        )
        return cls(resolved, timeout_s)

    def __repr__(self) -> str:
        state = "closed" if self._closed.is_set() else repr(self._link)
        return f"TrioClient({', '.join(self._profile.addresses)}, {state})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a TrioClient is a connection: it cannot be copied or pickled; make a new one"
        )

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            InvalidArgument: A file is not what it should be; the text names it.
            Unauthenticated: The gateway refused the client key, or this side its certificate.
            Unavailable: No address answered.
        """
        try:
            await self._usable_link(trio.current_time() + self._connect_timeout_s)
        except ConnectionLost as error:
            raise unreachable(error) from None
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        if self._renewal.is_running:
            # It has a thread and a connection of its own, and ends soon.
            await trio.to_thread.run_sync(self._renewal.finish, abandon_on_cancel=True)
        await trio.lowlevel.checkpoint_if_cancelled()

    def close(self) -> None:
        """End the connection; tasks that wait for answers get Unavailable or OutcomeUnknown."""
        self._closed.set()
        for each in (self._link, self._opening, *self._leaving):
            if each is not None:
                each.close()

    # Using keys

    async def encrypt(
        self,
        key: KeyName,
        plaintext: bytes,
        *,
        context: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Encrypted:
        """Encrypt up to 64 KiB under the newest version of a key.

        Args:
            key: `key-<id>`, `alias/<name>`, either with `@version`, or a `Key`.
            plaintext: 0 to 65,536 bytes.
            context: Authenticated with the ciphertext, not secret: at most 16 entries, 4 KiB.
            timeout_s: Seconds.

        Raises:
            NotFound: There is no such key.
            WrongState: The key is disabled, or not for encryption.
        """
        return await self._perform(_calls.encrypt(key, plaintext, context), timeout_s)

    async def decrypt(
        self,
        ciphertext: bytes,
        *,
        context: Mapping[str, str] | None = None,
        key: KeyName | None = None,
        timeout_s: float | None = None,
    ) -> Decrypted:
        """Open an envelope that `encrypt` made; it names its key.

        Args:
            ciphertext: The envelope.
            context: As it was encrypted with.
            key: Refuse an envelope of any other key.
            timeout_s: Seconds.

        Raises:
            InvalidCiphertext: It does not open: changed, or another context; never says which.
            NotFound: Its key is not there.
            WrongState: The key is disabled.
        """
        return await self._perform(_calls.decrypt(ciphertext, context, key), timeout_s)

    async def encrypt_many(
        self,
        key: KeyName,
        plaintexts: Sequence[bytes],
        *,
        context: Mapping[str, str] | None = None,
        contexts: Sequence[Mapping[str, str] | None] | None = None,
        timeout_s: float | None = None,
    ) -> list[Encrypted | HsmuxError]:
        """Encrypt many plaintexts under one key, any number, in batches.

        Args:
            key: As for `encrypt`.
            plaintexts: Each 0 to 65,536 bytes.
            context: For all of them.
            contexts: One for each of them, instead.
            timeout_s: Seconds for all of them; None: 30 s for each batch.

        Returns:
            A result or an error for each plaintext, in their order. An item that fails is never
            raised; a failure of a whole batch is, when no other batch was done.
        """
        return await self._perform_many(encrypt_many(key, plaintexts, context, contexts), timeout_s)

    async def decrypt_many(
        self,
        ciphertexts: Sequence[bytes],
        *,
        context: Mapping[str, str] | None = None,
        contexts: Sequence[Mapping[str, str] | None] | None = None,
        key: KeyName | None = None,
        timeout_s: float | None = None,
    ) -> list[Decrypted | HsmuxError]:
        """Open many envelopes, of one key or of many; as `encrypt_many`."""
        return await self._perform_many(
            decrypt_many(ciphertexts, context, contexts, key), timeout_s
        )

    async def sign(
        self,
        key: KeyName,
        message: bytes,
        *,
        algorithm: str,
        digest: bool = False,
        timeout_s: float | None = None,
    ) -> Signature:
        """Sign a message, or its digest.

        Args:
            key: As for `encrypt`; a key for SIGN_VERIFY.
            message: 0 to 65,536 bytes; or the digest, as long as the algorithm's hash.
            algorithm: A name of `hsmux_protocol.keys.ALGORITHMS`, such as "ECDSA_SHA_256".
            digest: Whether `message` is the digest.
            timeout_s: Seconds.

        Raises:
            NotFound: There is no such key.
            WrongState: The key is disabled, or not for signing.
        """
        return await self._perform(_calls.sign(key, message, algorithm, digest), timeout_s)

    async def verify(
        self,
        key: KeyName,
        message: bytes,
        signature: bytes,
        *,
        algorithm: str,
        digest: bool = False,
        timeout_s: float | None = None,
    ) -> None:
        """Verify a signature; returns when it is valid.

        Raises:
            InvalidSignature: It does not belong to this message and key.
            NotFound: There is no such key.
            WrongState: The key is disabled, or not for signing.
        """
        await self._perform(_calls.verify(key, message, signature, algorithm, digest), timeout_s)

    async def public_key(self, key: KeyName, *, timeout_s: float | None = None) -> PublicKey:
        """The public part of a signing key.

        Raises:
            NotFound: There is no such key.
            WrongState: The key has no public part.
        """
        return await self._perform(_calls.public_key(key), timeout_s)

    async def generate_random(self, length: int, *, timeout_s: float | None = None) -> bytes:
        """1 to 4,096 random bytes: the operating system's, mixed with the token's."""
        return await self._perform(_calls.generate_random(length), timeout_s)

    # Managing

    async def create_key(
        self,
        *,
        spec: str,
        usage: str | None = None,
        protection: str | None = None,
        storage: str | None = None,
        alias: str | None = None,
        description: str = "",
        tags: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        idempotency_token: bytes | None = None,
    ) -> Key:
        """Make a key.

        Args:
            spec: "AES_256", "RSA_2048", "RSA_3072", "RSA_4096", "EC_P256" or "EC_P384".
            usage: "ENCRYPT_DECRYPT" or "SIGN_VERIFY"; None: what the spec is for.
            protection: "software" or "hardware"; None: hardware where `storage` is given.
            storage: "hsm": the key lives in the token.
            alias: `alias/<name>` for it.
            description: At most 8 KiB.
            tags: At most 50.
            timeout_s: Seconds.
            idempotency_token: 16 bytes.

        Raises:
            Conflict: The alias is taken.
            Unsupported: The token cannot make such a key.
        """
        call = _calls.create_key(spec, usage, protection, storage, alias, description, tags)
        return await self._perform(call, timeout_s, idempotency_token)

    async def list_keys(self, *, timeout_s: float | None = None) -> list[Key]:
        """All keys, in the order of their identifiers."""
        return await self._perform_pages(_calls.list_keys, timeout_s)

    async def show_key(self, key: KeyName, *, timeout_s: float | None = None) -> Key:
        """One key without its material.

        Raises:
            NotFound: There is no such key.
        """
        return await self._perform(_calls.show_key(key), timeout_s)

    async def create_access_point(
        self,
        name: str,
        *,
        description: str = "",
        policies: Sequence[str] = (),
        mtls: Sequence[str] = (),
        requests_per_s: int | None = None,
        bytes_per_s: int | None = None,
        in_flight: int | None = None,
        timeout_s: float | None = None,
        idempotency_token: bytes | None = None,
    ) -> AccessPoint:
        """Make an access point: the identity of one application.

        Args:
            name: Unique in the deployment.
            description: What for.
            policies: Names of at most 16 policies; without any it may do nothing.
            mtls: By what it is known in certificates of the gateway's outside CAs: `uri:` and a URI
                of the subject alternative names, or `spki:` and the SHA-256 of the public key.
            requests_per_s: Requests a second it may send, items of batches counted; more are Busy.
                None or 0: as many as the gateway's configuration says.
            bytes_per_s: Bytes of requests a second, likewise.
            in_flight: Requests that may be in work at a time, likewise.
            timeout_s: Seconds.
            idempotency_token: 16 bytes.

        Raises:
            Conflict: The name is taken, or another access point is known by such a certificate.
            NotFound: There is no such policy.
        """
        limits = (requests_per_s, bytes_per_s, in_flight)
        call = _calls.create_access_point(name, description, policies, mtls, limits)
        return await self._perform(call, timeout_s, idempotency_token)

    async def show_access_point(
        self, access_point: str, *, timeout_s: float | None = None
    ) -> AccessPoint:
        """One access point, by its name or `ap-<identifier>`.

        Raises:
            NotFound: There is none.
        """
        return await self._perform(_calls.show_access_point(access_point), timeout_s)

    async def update_access_point(
        self,
        access_point: str,
        *,
        description: str | None = None,
        enabled: bool | None = None,
        add_policies: Sequence[str] = (),
        remove_policies: Sequence[str] = (),
        add_network_rules: Sequence[str] = (),
        remove_network_rules: Sequence[str] = (),
        add_mtls: Sequence[str] = (),
        remove_mtls: Sequence[str] = (),
        requests_per_s: int | None = None,
        bytes_per_s: int | None = None,
        in_flight: int | None = None,
        timeout_s: float | None = None,
        idempotency_token: bytes | None = None,
    ) -> AccessPoint:
        """Change an access point; takes effect at once, on open connections too.

        Args:
            access_point: Its name, or `ap-<identifier>`.
            description: New words; None: those that are there.
            enabled: Whether it is accepted; None: as it is.
            add_policies: Names of policies it gets.
            remove_policies: Names of policies it loses.
            add_network_rules: Names of network rules; it has to be inside one of all it has.
            remove_network_rules: Names of network rules it loses.
            add_mtls: By what it is known in certificates of other CAs from now on.
            remove_mtls: By what it is known no more.
            requests_per_s: Requests a second it may send, items of batches counted; None: as
                before, 0: as many as the gateway's configuration says.
            bytes_per_s: Bytes of requests a second, likewise.
            in_flight: Requests that may be in work at a time, likewise.
            timeout_s: Seconds.
            idempotency_token: 16 bytes.

        Raises:
            NotFound: There is no such access point, policy or network rule.
            Denied: It is the caller's own.
            Conflict: Nobody would be left who could administer access, or another access point is
                known by such a certificate.
        """
        moved = (
            *(add_policies, remove_policies, add_network_rules, remove_network_rules),
            *(add_mtls, remove_mtls),
        )
        limits = (requests_per_s, bytes_per_s, in_flight)
        call = _calls.update_access_point(access_point, description, enabled, moved, limits)
        return await self._perform(call, timeout_s, idempotency_token)

    async def delete_access_point(
        self,
        access_point: str,
        *,
        timeout_s: float | None = None,
        idempotency_token: bytes | None = None,
    ) -> AccessPoint:
        """Refuse an access point for ever; its name stays taken.

        Raises:
            NotFound: There is none.
            Denied: It is the caller's own.
            Conflict: Nobody would be left who could administer access.
        """
        call = _calls.delete_access_point(access_point)
        return await self._perform(call, timeout_s, idempotency_token)

    async def list_access_points(self, *, timeout_s: float | None = None) -> list[AccessPoint]:
        """All access points, in the order of their identifiers."""
        return await self._perform_pages(_calls.list_access_points, timeout_s)

    async def create_client_key(
        self,
        access_point: str,
        *,
        csr: bytes | None = None,
        validity_days: int = VALIDITY_DAYS_DEFAULT,
        timeout_s: float | None = None,
        idempotency_token: bytes | None = None,
    ) -> IssuedClientKey:
        """Issue a client key to an access point.

        Args:
            access_point: Its name, or `ap-<identifier>`.
            csr: A PKCS#10 request, PEM or DER, whose private key stays where it is; None: the
                gateway makes a private key, which is in the answer and nowhere else.
            validity_days: 1 to 1,830.
            timeout_s: Seconds.
            idempotency_token: 16 bytes; an answer with a private key is not given twice.

        Raises:
            NotFound: There is no such access point.
        """
        call = _calls.create_client_key(access_point, csr, validity_days)
        return await self._perform(call, timeout_s, idempotency_token)

    async def renew_client_key(
        self,
        client_key_id: str | None = None,
        *,
        csr: bytes | None = None,
        force: bool = False,
        timeout_s: float | None = None,
        idempotency_token: bytes | None = None,
    ) -> IssuedClientKey:
        """Issue a client key in the place of another, which stays accepted until it ends.

        The new one is of the same access point and is valid as long as the old one was. A client
        with files it may write renews by itself; this is for everybody else.

        Args:
            client_key_id: `ck-<identifier>`; None: the one this client uses, for which no policy
                is needed.
            csr: A PKCS#10 request with a new key, PEM or DER; None: the gateway makes a private
                key, which is in the answer and nowhere else.
            force: Renew what was renewed within the last hour; a policy has to allow it.
            timeout_s: Seconds.
            idempotency_token: 16 bytes; an answer with a private key is not given twice.

        Raises:
            NotFound: There is no such client key.
            WrongState: It is revoked or has ended.
            Conflict: It was renewed just now, or its access point has too many client keys.
        """
        call = _calls.renew_client_key(client_key_id, csr, force)
        return await self._perform(call, timeout_s, idempotency_token)

    async def list_client_keys(self, *, timeout_s: float | None = None) -> list[ClientKey]:
        """All client keys, in the order of their identifiers."""
        return await self._perform_pages(_calls.list_client_keys, timeout_s)

    async def revoke_client_key(
        self,
        client_key_id: str,
        *,
        timeout_s: float | None = None,
        idempotency_token: bytes | None = None,
    ) -> ClientKey:
        """Refuse a client key (`ck-<identifier>`) from now on, on open connections too.

        Raises:
            NotFound: There is no such client key.
            Conflict: It is the one this client uses.
        """
        call = _calls.revoke_client_key(client_key_id)
        return await self._perform(call, timeout_s, idempotency_token)

    async def show_client_key(
        self, client_key_id: str, *, timeout_s: float | None = None
    ) -> ClientKey:
        """One client key (`ck-<identifier>`).

        Raises:
            NotFound: There is no such client key.
        """
        return await self._perform(_calls.show_client_key(client_key_id), timeout_s)

    async def set_quorum(
        self,
        approvals: int,
        *,
        timeout_s: float | None = None,
        idempotency_token: bytes | None = None,
    ) -> Quorum:
        """Set how many approvals changes of administrators need.

        Args:
            approvals: 0 to 16; 0: none.
            timeout_s: Seconds.
            idempotency_token: 16 bytes.

        Raises:
            Conflict: So many cannot be given, by others than the caller.
            ApprovalsMissing: Others have to approve it first.
        """
        return await self._perform(_calls.set_quorum(approvals), timeout_s, idempotency_token)

    async def show_quorum(self, *, timeout_s: float | None = None) -> Quorum:
        """How many approvals changes of administrators need, and who can approve."""
        return await self._perform(_calls.show_quorum(), timeout_s)

    async def approve_request(
        self,
        request: str,
        *,
        timeout_s: float | None = None,
        idempotency_token: bytes | None = None,
    ) -> PendingRequest:
        """Approve what another access point asks.

        Args:
            request: 64 hexadecimal digits, as `ApprovalsMissing` and `list_requests` name it.
            timeout_s: Seconds.
            idempotency_token: 16 bytes.

        Raises:
            NotFound: No such request waits.
            Denied: It is the caller's own, or the caller's access point is younger than 24 hours.
        """
        return await self._perform(_calls.approve_request(request), timeout_s, idempotency_token)

    async def list_requests(self, *, timeout_s: float | None = None) -> list[PendingRequest]:
        """All requests that wait for approvals, without their arguments."""
        return await self._perform_pages(_calls.list_requests, timeout_s)

    async def show_request(self, request: str, *, timeout_s: float | None = None) -> PendingRequest:
        """One request that waits for approvals, with its arguments.

        Raises:
            NotFound: No such request waits.
        """
        return await self._perform(_calls.show_request(request), timeout_s)

    async def withdraw_request(
        self,
        request: str,
        *,
        timeout_s: float | None = None,
        idempotency_token: bytes | None = None,
    ) -> PendingRequest:
        """Forget a request that waits for approvals, and those it has.

        Raises:
            NotFound: No such request waits.
        """
        return await self._perform(_calls.withdraw_request(request), timeout_s, idempotency_token)

    async def put_policy(
        self,
        name: str,
        document: str,
        *,
        timeout_s: float | None = None,
        idempotency_token: bytes | None = None,
    ) -> Policy:
        """Make a policy, or replace it for all access points that have it.

        Args:
            name: 1 to 64 of a-z 0-9 . _ -, a letter or digit first.
            document: JSON of at most 16 KiB; docs/access.md says what it holds.
            timeout_s: Seconds.
            idempotency_token: 16 bytes.

        Raises:
            InvalidArgument: The document is no policy; the text names the place.
            NotFound: It requires a network rule that is not there.
            Denied: The caller's own access point has it.
            Conflict: Nobody would be left who could administer access.
        """
        call = _calls.put_policy(name, document)
        return await self._perform(call, timeout_s, idempotency_token)

    async def show_policy(self, name: str, *, timeout_s: float | None = None) -> Policy:
        """One policy with its document.

        Raises:
            NotFound: There is none.
        """
        return await self._perform(_calls.show_policy(name), timeout_s)

    async def list_policies(self, *, timeout_s: float | None = None) -> list[Policy]:
        """All policies in the order of their names, without their documents."""
        return await self._perform_pages(_calls.list_policies, timeout_s)

    async def delete_policy(
        self,
        name: str,
        *,
        timeout_s: float | None = None,
        idempotency_token: bytes | None = None,
    ) -> Policy:
        """Remove a policy.

        Raises:
            NotFound: There is none.
            Conflict: An access point has it.
        """
        return await self._perform(_calls.delete_policy(name), timeout_s, idempotency_token)

    async def test_policy(
        self,
        access_point: str,
        operation: str,
        *,
        resource: KeyName | None = None,
        context: Mapping[str, str] | None = None,
        address: str | None = None,
        size: int = 0,
        timeout_s: float | None = None,
    ) -> PolicyDecision:
        """What would be decided of a request, and by which statement.

        Args:
            access_point: Who would ask: a name, or `ap-<identifier>`.
            operation: What it would ask for, such as "encrypt".
            resource: The key it would name; None: none.
            context: The encryption context it would send.
            address: The IP address it would come from; None: unknown, inside no network.
            size: Bytes of the data it would send.
            timeout_s: Seconds.

        Raises:
            NotFound: There is no such access point.
            InvalidArgument: There is no such operation.
        """
        call = _calls.test_policy(access_point, operation, resource, context, address, size)
        return await self._perform(call, timeout_s)

    async def explain_reference(
        self, reference: str, *, timeout_s: float | None = None
    ) -> Explanation:
        """What was decided of a request that has left a reference, and what would be now.

        Args:
            reference: From a refusal or an answer of this gateway, or its log.
            timeout_s: Seconds.

        Raises:
            NotFound: The gateway that was asked has no such record, or only an older one.
            InvalidArgument: It is no reference.
        """
        return await self._perform(_calls.explain_reference(reference), timeout_s)

    async def put_network_rule(
        self,
        name: str,
        networks: Sequence[str],
        *,
        timeout_s: float | None = None,
        idempotency_token: bytes | None = None,
    ) -> NetworkRule:
        """Make a network rule, or replace it wherever it is required.

        Args:
            name: 1 to 64 of a-z 0-9 . _ -, a letter or digit first.
            networks: 1 to 256 IPv4 and IPv6 networks as CIDR.
            timeout_s: Seconds.
            idempotency_token: 16 bytes.

        Raises:
            InvalidArgument: One is no network; the text names it.
            Denied: The caller's own access point depends on it.
            Conflict: Nobody would be left who could administer access.
        """
        call = _calls.put_network_rule(name, networks)
        return await self._perform(call, timeout_s, idempotency_token)

    async def show_network_rule(self, name: str, *, timeout_s: float | None = None) -> NetworkRule:
        """One network rule.

        Raises:
            NotFound: There is none.
        """
        return await self._perform(_calls.show_network_rule(name), timeout_s)

    async def list_network_rules(self, *, timeout_s: float | None = None) -> list[NetworkRule]:
        """All network rules, in the order of their names."""
        return await self._perform_pages(_calls.list_network_rules, timeout_s)

    async def delete_network_rule(
        self,
        name: str,
        *,
        timeout_s: float | None = None,
        idempotency_token: bytes | None = None,
    ) -> NetworkRule:
        """Remove a network rule.

        Raises:
            NotFound: There is none.
            Conflict: A policy or an access point requires it.
        """
        call = _calls.delete_network_rule(name)
        return await self._perform(call, timeout_s, idempotency_token)

    async def status(self, *, timeout_s: float | None = None) -> Status:
        """What the gateway is and how it fares."""
        return await self._perform(_calls.status(), timeout_s)

    # How it is done

    async def _perform(
        self, call: Call[T], timeout_s: float | None, idempotency_token: bytes | None = None
    ) -> T:
        """Do one request, again where that is safe, until the deadline."""
        options = _calls.options_of(call, idempotency_token)
        effort = Effort(call.operation, trio.current_time() + _calls.timeout_of(call, timeout_s))
        while True:
            ticket: TrioTicket | None = None
            try:
                link, ticket = await self._submit(call, options, effort)
                return call.result(await link.wait(ticket, effort.deadline))
            except FAILURES as error:
                pause_s = effort.failed(error, trio.current_time(), sent=ticket is not None)
            await self._pause(pause_s)

    async def _submit(
        self, call: Call[Any], options: dict[str, Any], effort: Effort
    ) -> tuple[TrioLink, TrioTicket]:
        now = trio.current_time()
        effort.check(now)
        self._renewal.look()
        link = await self._usable_link(min(effort.deadline, now + self._connect_timeout_s))
        return link, await link.submit(call.operation, call.arguments, options, effort.deadline)

    async def _pause(self, pause_s: float) -> None:
        """Wait before the next try, unless the client is closed."""
        with trio.move_on_after(pause_s):
            await self._closed.wait()

    async def _perform_pages(
        self, page_call: Callable[[bytes], Call[Page[T]]], timeout_s: float | None
    ) -> list[T]:
        """Every page of a list; the time is for each page unless one is named for all."""
        end = _calls.end_of(trio.current_time(), timeout_s)
        items: list[T] = []
        following = b""
        while True:
            left_s = None if end is None else end - trio.current_time()
            page = await self._perform(page_call(following), left_s)
            items += page.items
            following = _calls.following_page(page, following)
            if not following:
                return items

    async def _perform_many(
        self, batches: Batches[T], timeout_s: float | None
    ) -> list[T | HsmuxError]:
        """Keep `WINDOW` batches on their way; one that fails in the window is done by itself."""
        end = _calls.end_of(trio.current_time(), timeout_s)
        window: deque[tuple[Batch[T], Effort, tuple[TrioLink, TrioTicket] | None]] = deque()
        await trio.lowlevel.checkpoint()
        try:
            for batch in batches.pending():
                own_end = trio.current_time() + _calls.timeout_of(batch.call, None)
                effort = Effort(batch.call.operation, own_end if end is None else end)
                window.append((batch, effort, await self._try_submit(batch.call, effort)))
                if len(window) == WINDOW:
                    await self._finish_batch(batches, *window.popleft())
            while window:
                await self._finish_batch(batches, *window.popleft())
        finally:
            for _, _, sent in window:
                if sent is not None:
                    link, ticket = sent
                    link.give_up(ticket)
        return batches.results()

    async def _try_submit(
        self, call: Call[Any], effort: Effort
    ) -> tuple[TrioLink, TrioTicket] | None:
        try:
            return await self._submit(call, {}, effort)
        except FAILURES:
            return None

    async def _finish_batch(
        self,
        batches: Batches[T],
        batch: Batch[T],
        effort: Effort,
        sent: tuple[TrioLink, TrioTicket] | None,
    ) -> None:
        try:
            if sent is not None:
                link, ticket = sent
                try:
                    batches.done(batch, batch.call.result(await link.wait(ticket, effort.deadline)))
                    return
                except FAILURES as error:
                    pause_s = effort.failed(error, trio.current_time(), sent=True)
                await self._pause(pause_s)
            left_s = effort.deadline - trio.current_time()
            batches.done(batch, await self._perform(batch.call, left_s))
        except HsmuxError as error:
            batches.failed(batch, error)

    async def _usable_link(self, deadline: float) -> TrioLink:
        """The connection, or a new one.

        Raises:
            HsmuxError: It is refused.
            ConnectionLost: No address answers, or the client is closed.
        """
        if (link := self._open_link()) is not None and not self._renewal.is_stale:
            return link
        with trio.move_on_at(deadline):
            async with self._connecting:
                if (link := self._open_link()) is None:
                    self._retire_link()
                    return await self._connect(deadline)
                if not self._renewal.is_stale:
                    return link
                return await self._connect_anew(link, deadline)
        raise ConnectionLost("the gateway did not answer in time")

    def _open_link(self) -> TrioLink | None:
        if self._closed.is_set():
            raise ClientClosed
        return self._link if self._link is not None and self._link.link.is_open else None

    async def _connect_anew(self, link: TrioLink, deadline: float) -> TrioLink:
        """A connection with the client key that the files hold now; without one, the old one goes
        on.
        """
        now = trio.current_time()
        try:
            return await self._connect(now + (deadline - now) / 2)
        except ClientClosed:
            raise
        except (ConnectionLost, HsmuxError):
            return link

    def _retire_link(self) -> None:
        """Let a connection go when its last request is answered."""
        if self._link is None:
            return
        self._leaving = [each for each in self._leaving if not each.is_closed]
        self._leaving.append(self._link)
        if self._link.link.goaway is not None:
            self._addresses.leave(self._link.address, self._link.link.goaway.retry_after_ms)
        self._link.retire()
        self._link = None

    async def _connect(self, deadline: float) -> TrioLink:
        """Try the addresses in turn; only one task does at a time."""
        self._renewal.took()
        context = make_client_context(self._profile)
        failures: list[tuple[str, HsmuxError | ConnectionLost]] = []
        for address, until in self._addresses.turns(deadline):
            try:
                with trio.move_on_at(until):
                    return await self._open(context, address, until)
                failures.append((address, ConnectionLost("the gateway did not answer in time")))
            except ClientClosed:
                raise
            except (ConnectionLost, HsmuxError) as error:
                failures.append((address, error))
        raise why_none(failures)

    async def _open(self, context: ssl.SSLContext, address: str, until: float) -> TrioLink:
        """Connect to an address; what comes of it is the client's connection."""
        host, port = split_address(address)
        link = Link(context, self._profile.server_name or host)
        connected = await connect_socket(host, port, until)
        try:
            self._opening = TrioLink(link, connected, address)
        except OSError as error:
            raise ConnectionLost(f"cannot connect: {error.strerror}") from None
        opening = self._opening
        try:
            if self._closed.is_set():
                raise ClientClosed
            await opening.open()
            # One that is still open serves until there is another.
            self._retire_link()
            self._link = opening
        except BaseException:
            opening.close()
            raise
        finally:
            self._opening = None
        return opening
