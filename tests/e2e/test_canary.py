"""A secret is sent through every operation, in every place that carries data, in good requests and
in bad ones; then everything the gateway has written or said is searched for it, in every spelling.

What is data is read from the operation table: binary values, columns and contexts. What names
something (a reference, a name, a document) is on record by design, as the caller spelled it. The
private keys that the gateway makes for client keys, and the token's PIN, are searched for too.
"""

import base64
import secrets
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hsmux_gateway.audit.reading import export
from hsmux_protocol.columns import pack_column, unpack_column
from hsmux_protocol.context import encode_context
from hsmux_protocol.errors import Denied, HsmuxError, error_from_wire
from hsmux_protocol.fields import Binary, Column, Context, Field, Optional, Text, write_fields
from hsmux_protocol.frames import Error, Request
from hsmux_protocol.operations import OPERATIONS
from tests.gateway.access.test_enforcement import allow, connected, put
from tests.gateway.hardware import PIN, write_hardware_config
from tests.gateway.raw_client import RawClient, client_context, connect
from tests.gateway.running import Running, running_gateway, write_config
from tests.protocol.examples import OPERATION_EXAMPLES

CANARY = "canary" + secrets.token_hex(16)
"""The secret; text, so that it can be a context's value too."""

MARKER = "marker-that-must-be-found"
"""What names something, and so must be found where the secret must not."""

ITEMS = 3


def _spellings(secret: bytes) -> set[bytes]:
    """How bytes can stand in a file: as they are, in hexadecimal, in base64 at any offset."""
    found = {secret, secret.hex().encode(), secret.hex().upper().encode()}
    for offset in range(3):
        # Without the characters at both ends, which depend on what stands beside.
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            found.add(encode(bytes(offset) + secret)[4 : -4 if len(secret) > 12 else None])
    return found


def _data(kind: Any) -> Any:
    """The secret as a value of a field that carries data; None: the field names something."""
    kind = kind.inner if isinstance(kind, Optional) else kind
    if isinstance(kind, Column):
        item = encode_context({"tenant": CANARY}) if kind.items == "context" else CANARY.encode()
        return pack_column([item] * ITEMS)
    if isinstance(kind, Binary):
        return CANARY.encode()[: kind.size_max] if kind.size_max >= len(CANARY) else None
    return {"tenant": CANARY} if isinstance(kind, Context) else None


def _wrong(field: Field) -> Any:
    """The secret as a value of another type than the field's."""
    is_text = isinstance(field.type, Text)
    return CANARY.encode() if is_text else [{"tenant": CANARY}, CANARY.encode()]


class Talk:
    """Requests, and everything that was refused with."""

    def __init__(self, client: RawClient) -> None:
        self.client = client
        self.texts: list[str] = []
        self.done: set[str] = set()

    def call(self, name: str, *arguments: Any) -> list[Any]:
        """The answer; nothing if it is refused."""
        try:
            answer = self.client.call(name, *arguments)
        except HsmuxError as error:
            self.texts.append(f"{error} {error!r} {error.text} {error.reference}")
            return []
        self.done.add(name)
        return answer

    def send(self, name: str, values: list[Any]) -> None:
        """A request that no client would send."""
        number = self.client.request("list_keys", b"", 1)
        assert not isinstance(self.client.receive(), Error)
        request = Request(number + 1, OPERATIONS[name].number, 0, values, {})
        self.client._next_id = number + 1
        self.client.tls.sendall(self.client.protocol.send(request))
        answer = self.client.receive()
        assert isinstance(answer, Error), name
        error = error_from_wire(answer.number, answer.text, reference=answer.reference)
        self.texts.append(f"{error} {error.text}")


def _prepare(admin: RawClient, protection: str) -> None:
    """What the examples of operations name."""
    storage = "hsm" if protection == "hardware" else None
    for alias, spec, usage in (
        ("alias/orders", "AES_256", "ENCRYPT_DECRYPT"),
        ("alias/release", "EC_P256", "SIGN_VERIFY"),
        (f"alias/{MARKER}", "AES_256", "ENCRYPT_DECRYPT"),
    ):
        admin.call("create_key", spec, usage, protection, storage, alias, "", {})
    admin.call("put_network_rule", "office", ["127.0.0.0/8"])


def _send_everything(talk: Talk) -> None:
    """Each operation with the secret wherever data goes, then in places of another type."""
    for name, operation in OPERATIONS.items():
        example = OPERATION_EXAMPLES[name].arguments
        fields = operation.arguments
        data = [_data(field.type) for field in fields]
        mixed = [
            own if own is not None else given for own, given in zip(data, example, strict=True)
        ]
        talk.call(name, *mixed)
        for index, field in enumerate(fields):
            values = write_fields(fields, tuple(mixed))
            talk.send(name, [*values[:index], _wrong(field), *values[index + 1 :]])
        talk.send(name, [*write_fields(fields, tuple(mixed)), CANARY])


def _use(talk: Talk) -> None:
    """The ways that succeed, and those in which only the data is wrong."""
    key, context, secret = "alias/orders", {"tenant": CANARY}, CANARY.encode()
    (envelope, *_) = talk.call("encrypt", key, context, secret)
    assert talk.call("decrypt", None, context, envelope)[0] == secret
    talk.call("decrypt", None, {"tenant": CANARY + "x"}, envelope)
    talk.call("decrypt", None, context, envelope[:-1] + bytes([envelope[-1] ^ 1]))
    (_, sealed, *_) = talk.call("encrypt_batch", key, context, None, pack_column([secret] * ITEMS))
    (_, opened, *_) = talk.call("decrypt_batch", None, context, None, sealed)
    assert unpack_column(opened) == [secret] * ITEMS
    (signature, *_) = talk.call("sign", "alias/release", "ECDSA_SHA_256", False, secret)
    assert talk.call("verify", "alias/release", "ECDSA_SHA_256", False, secret, signature)
    talk.call("verify", "alias/release", "ECDSA_SHA_256", False, secret + b"x", signature)


def _private_bytes(pem: bytes) -> bytes:
    """The number that a private key is."""
    key = serialization.load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.private_numbers().private_value.to_bytes(32, "big")


@contextmanager
def _refused(running: Running, talk: Talk, directory: Path) -> Iterator[list[bytes]]:
    """An application whose policy looks at the context is refused, and that is explained."""
    admin = talk.client
    policy = put(admin, allow(["encrypt"], "alias/orders", context={"tenant": "a"}))
    (point,) = admin.call("create_access_point", "looked-at", "", [policy], [], None)
    keys = [_private_bytes(admin.call("create_client_key", "looked-at", None, 30)[3])]
    with connected(running, admin, point, directory) as client:
        with pytest.raises(Denied) as refused:
            client.call("encrypt", "alias/orders", {"tenant": CANARY}, CANARY.encode())
        talk.texts.append(repr(admin.call("explain_reference", refused.value.reference)))
        talk.texts.append(refused.value.text)
        (_, _, _, renewed) = client.call("renew_client_key", None, None, False)
        keys.append(_private_bytes(renewed))
    yield keys


def _written(directory: Path) -> dict[str, bytes]:
    """Every file that the gateway or its token has written, but those that hold one by design."""
    secret = {"pin", "root.key", "administrator.key", "server.key"}
    return {
        str(path): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name not in secret and path.parent.name != "client"
    }


def _pages(running: Running) -> str:
    pages = ("metrics", "healthz", "readyz")
    return "".join(
        urllib.request.urlopen(f"http://{running.health}/{page}").read().decode() for page in pages
    )


@pytest.mark.parametrize(
    ("write", "protection"),
    [(write_config, "software"), (write_hardware_config, "hardware")],
    ids=["software", "hardware"],
)
def test_a_secret_appears_nowhere(
    tmp_path: Path, write: Callable[[Path], Path], protection: str
) -> None:
    config = write(tmp_path)
    with running_gateway(config) as running:
        with connect(running.address, client_context(running.administrator)) as admin:
            talk = Talk(admin)
            _prepare(admin, protection)
            _send_everything(talk)
            _use(talk)
            (tmp_path / "client").mkdir()
            with _refused(running, talk, tmp_path / "client") as private_keys:
                said = "\n".join(talk.texts) + repr(admin.call("show_status"))
        said += _pages(running)
        found = {"said": said.encode(), **_written(tmp_path)}
        assert running.stop() == 0
        assert running.process.stderr is not None
        found["stderr"] = running.process.stderr.read().encode()
    found |= {f"{path}, stopped": data for path, data in _written(tmp_path).items()}
    found["exported"] = repr(list(export(tmp_path / "instance" / "audit"))).encode()

    # It did what it was asked, and what names something is found.
    assert talk.done >= {"encrypt", "encrypt_batch", "sign", "verify", "put_policy"}
    with_marker = {place for place, data in found.items() if MARKER.encode() in data}
    assert any("store.db" in place for place in with_marker)
    assert any("audit" in place for place in with_marker)
    assert any("gateway.log" in place for place in with_marker)

    for secret in (CANARY.encode(), PIN.encode(), *private_keys):
        for spelling in _spellings(secret):
            assert [place for place, data in found.items() if spelling in data] == []


def test_a_spelling_is_found_wherever_it_stands() -> None:
    secret = CANARY.encode()
    for offset in range(6):
        around = b"x" * offset + secret + b"yz"
        for text in (around, around.hex().encode(), base64.b64encode(around)):
            assert any(spelling in text for spelling in _spellings(secret))
