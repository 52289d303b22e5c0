"""What both clients do, over a real gateway with a real token: one suite for the two."""

import itertools
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import hsmux
from hsmux import Decrypted, Encrypted
from hsmux_protocol.envelope import HEADER_SIZE
from tests.client.conftest import arguments_of, connected
from tests.gateway.running import Running

PROTECTIONS = {"software": None, "hardware": "hsm"}
PATIENCE_S = 60
_numbers = itertools.count()


def new_name() -> str:
    """A name that nothing has yet, whichever client makes it."""
    return f"n{os.getpid()}-{next(_numbers)}"


@pytest.fixture(scope="module", params=PROTECTIONS)
def key(client: Any, request: pytest.FixtureRequest) -> hsmux.Key:
    """An AES key of either protection."""
    made: hsmux.Key = client.create_key(spec="AES_256", storage=PROTECTIONS[request.param])
    assert made.protection == request.param
    return made


def test_a_key_is_named_in_every_way(client: Any) -> None:
    alias = f"alias/{new_name()}"
    key = client.create_key(spec="AES_256", alias=alias, description="d", tags={"a": "b"})
    assert (key.aliases, key.description, key.tags, key.version) == ((alias,), "d", {"a": "b"}, 1)
    for reference in (key, key.key_id, alias, f"{alias}@1", f"{key.key_id}@1"):
        sealed = client.encrypt(reference, b"x")
        assert (sealed.key_id, sealed.key_version) == (key.key_id, 1)
        assert client.decrypt(sealed.ciphertext, key=reference).plaintext == b"x"
    assert client.show_key(alias) == key
    with pytest.raises(hsmux.Conflict, match="taken"):
        client.create_key(spec="AES_256", alias=alias)
    with pytest.raises(hsmux.NotFound):
        client.encrypt(f"{alias}@2", b"x")


@pytest.mark.parametrize("size", [0, 1, 65536])
def test_sizes(client: Any, key: hsmux.Key, size: int) -> None:
    plaintext = os.urandom(size)
    sealed = client.encrypt(key, plaintext)
    assert client.decrypt(sealed.ciphertext).plaintext == plaintext
    assert (key.key_id, 1) == (sealed.key_id, sealed.key_version)


def test_what_must_not_open(client: Any, key: hsmux.Key) -> None:
    sealed = client.encrypt(key, b"hello", context={"b": "2", "a": "1"}).ciphertext
    assert client.decrypt(sealed, context={"a": "1", "b": "2"}).plaintext == b"hello"
    flipped = [
        bytes([*sealed[:place], sealed[place] ^ 1, *sealed[place + 1 :]])
        for place in (HEADER_SIZE, len(sealed) - 1)
    ]
    for ciphertext, context in [
        (sealed, None),
        (sealed, {"a": "1"}),
        *((changed, {"a": "1", "b": "2"}) for changed in flipped),
        (sealed[:-1], {"a": "1", "b": "2"}),
    ]:
        with pytest.raises(hsmux.InvalidCiphertext):
            client.decrypt(ciphertext, context=context)
    other = client.create_key(spec="AES_256")
    with pytest.raises(hsmux.InvalidCiphertext):
        client.decrypt(sealed, context={"a": "1", "b": "2"}, key=other)
    for malformed in (b"", sealed[:10], b"xx" + sealed[2:]):
        with pytest.raises(hsmux.InvalidArgument):
            client.decrypt(malformed)


def test_many(client: Any, key: hsmux.Key) -> None:
    items = [os.urandom(n % 300) for n in range(5000)] + [os.urandom(65536)]
    sealed = client.encrypt_many(key, items, context={"t": "x"})
    assert all(isinstance(one, Encrypted) for one in sealed)
    opened = client.decrypt_many([one.ciphertext for one in sealed], context={"t": "x"})
    assert [one.plaintext for one in opened] == items
    assert client.encrypt_many(key, []) == [] == client.decrypt_many([])


def test_one_bad_item_fails_alone(client: Any, key: hsmux.Key) -> None:
    sealed = client.encrypt_many(key, [b"a", bytes(65537), b"c"])
    assert [type(one) for one in sealed] == [Encrypted, hsmux.TooLarge, Encrypted]
    good = sealed[0].ciphertext
    results = client.decrypt_many([good, good[:-1], b"", good])
    kinds = [type(one) for one in results]
    assert kinds == [Decrypted, hsmux.InvalidCiphertext, hsmux.InvalidArgument, Decrypted]
    assert results[3].plaintext == b"a"


def test_contexts_of_items(client: Any, key: hsmux.Key) -> None:
    contexts = [{"row": str(n)} for n in range(50)]
    sealed = client.encrypt_many(key, [b"v"] * 50, contexts=contexts)
    ciphertexts = [one.ciphertext for one in sealed]
    opened = client.decrypt_many(ciphertexts, contexts=contexts)
    assert [one.plaintext for one in opened] == [b"v"] * 50
    swapped = client.decrypt_many(ciphertexts, contexts=[contexts[1], contexts[0], *contexts[2:]])
    kinds = [type(one) for one in swapped]
    assert kinds == [hsmux.InvalidCiphertext] * 2 + [Decrypted] * 48
    with pytest.raises(hsmux.InvalidArgument, match="not both"):
        client.encrypt_many(key, [b""], context={"a": "b"}, contexts=[{}])
    with pytest.raises(hsmux.InvalidArgument, match="2 for 1"):
        client.encrypt_many(key, [b""], contexts=[{}, {}])


def test_many_of_several_keys_and_of_none(client: Any) -> None:
    keys = [client.create_key(spec="AES_256") for _ in range(3)]
    sealed = [client.encrypt(key, key.key_id.encode()).ciphertext for key in keys * 4]
    unknown = bytes([*sealed[0][:4], *bytes(16), *sealed[0][20:]])
    opened = client.decrypt_many([*sealed, unknown])
    assert [one.plaintext.decode() for one in opened[:-1]] == [key.key_id for key in keys * 4]
    assert isinstance(opened[-1], hsmux.NotFound)
    with pytest.raises(hsmux.NotFound):
        client.decrypt_many([unknown] * 3)
    with pytest.raises(hsmux.NotFound):
        client.encrypt_many("alias/nobody", [b"x"] * 3)
    pinned = client.decrypt_many(sealed[:3], key=keys[1])
    kinds = [type(one) for one in pinned]
    assert kinds == [hsmux.InvalidCiphertext, Decrypted, hsmux.InvalidCiphertext]


@pytest.mark.parametrize("storage", PROTECTIONS.values(), ids=PROTECTIONS)
@pytest.mark.parametrize(
    ("spec", "algorithm"),
    [
        ("EC_P256", "ECDSA_SHA_256"),
        ("EC_P384", "ECDSA_SHA_512_RAW"),
        ("RSA_2048", "RSA_PSS_SHA_256"),
    ],
)
def test_signatures(client: Any, spec: str, algorithm: str, storage: str | None) -> None:
    key = client.create_key(spec=spec, storage=storage)
    signed = client.sign(key, b"message", algorithm=algorithm)
    assert (signed.algorithm, signed.key_id, signed.key_version) == (algorithm, key.key_id, 1)
    client.verify(key, b"message", signed.signature, algorithm=algorithm)
    with pytest.raises(hsmux.InvalidSignature):
        client.verify(key, b"massage", signed.signature, algorithm=algorithm)
    with pytest.raises(hsmux.WrongState):
        client.encrypt(key, b"x")
    with pytest.raises(hsmux.InvalidArgument):
        client.sign(
            key, b"x", algorithm="ECDSA_SHA_256" if spec == "RSA_2048" else "RSA_PSS_SHA_256"
        )


def test_openssl_agrees_with_a_public_key(client: Any, tmp_path: Path) -> None:
    key = client.create_key(spec="EC_P256", storage="hsm")
    (tmp_path / "m").write_bytes(b"message")
    signed = client.sign(key, b"message", algorithm="ECDSA_SHA_256")
    (tmp_path / "s").write_bytes(signed.signature)
    (tmp_path / "p").write_text(client.public_key(key).pem)
    command = ["openssl", "dgst", "-sha256", "-verify", "p", "-signature", "s", "m"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout == b"Verified OK\n"


def test_lists_have_every_page(client: Any) -> None:
    names = [new_name() for _ in range(120)]
    for name in names:
        client.create_access_point(name, description="one of many")
    found = [one.name for one in client.list_access_points()]
    assert set(names) <= set(found) and len(found) == len(set(found))
    keys = client.list_keys()
    assert len({key.key_id for key in keys}) == len(keys) > 3


@pytest.mark.parametrize("form", ["pem", "der"])
def test_a_client_key_for_a_request(
    client: Any, kind: str, gateway: Running, tmp_path: Path, form: str
) -> None:
    owner = client.create_access_point(new_name(), policies=["administrator"])
    private_key = ec.generate_private_key(ec.SECP256R1())
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(private_key, hashes.SHA256())
    )
    encoding = {"pem": serialization.Encoding.PEM, "der": serialization.Encoding.DER}[form]
    issued = client.create_client_key(owner.name, csr=request.public_bytes(encoding))
    assert issued.private_key_pem is None and issued.client_key.access_point == owner.name
    (tmp_path / "c.pem").write_text(issued.certificate_pem)
    (tmp_path / "k.pem").touch(mode=0o600)
    (tmp_path / "k.pem").write_bytes(
        private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    pair = {"certificate": tmp_path / "c.pem", "private_key": tmp_path / "k.pem"}
    with connected(kind, **arguments_of(gateway, **pair)) as application:
        application.generate_random(1)
        revoked = client.revoke_client_key(issued.client_key.client_key_id)
        assert revoked.state == "Revoked"
        with pytest.raises(hsmux.Unauthenticated):
            application.generate_random(1)
    with pytest.raises(hsmux.Unauthenticated):
        with connected(kind, **arguments_of(gateway, **pair)):
            pass


def test_an_access_point_cannot_be_named_like_another(client: Any) -> None:
    victim = client.create_access_point(new_name())
    with pytest.raises(hsmux.InvalidArgument, match="identifier"):
        client.create_access_point(victim.access_point_id)
    with pytest.raises(hsmux.InvalidArgument, match=r"name: character 2 is U\+200B"):
        client.create_access_point(victim.name[:1] + "\u200b" + victim.name[1:])
    with pytest.raises(hsmux.Conflict, match="an access point has this name already"):
        client.create_access_point(victim.name)


def test_an_access_point_is_known_by_certificates_of_other_cas(client: Any) -> None:
    uri, spki = f"uri:spiffe://example.org/{new_name()}", f"spki:{os.urandom(32).hex()}"
    made = client.create_access_point(new_name(), mtls=[uri])
    assert made.mtls == (uri,)
    with pytest.raises(hsmux.Conflict, match="another access point is known by"):
        client.create_access_point(new_name(), mtls=[uri])
    changed = client.update_access_point(made.name, add_mtls=[spki], remove_mtls=[uri])
    assert changed.mtls == (spki,)
    assert client.show_access_point(made.name) == changed
    with pytest.raises(hsmux.InvalidArgument, match="mtls"):
        client.update_access_point(made.name, add_mtls=["cn:somebody"])


def test_a_client_key_with_a_private_key_is_shown_once(client: Any) -> None:
    owner = client.create_access_point(new_name(), policies=["administrator"])
    token = os.urandom(16)
    issued = client.create_client_key(owner.access_point_id, idempotency_token=token)
    assert "PRIVATE KEY" in issued.private_key_pem
    assert "PRIVATE" not in repr(issued)
    with pytest.raises(hsmux.Conflict):
        client.create_client_key(owner.access_point_id, idempotency_token=token)
    mine = [k for k in client.list_client_keys() if k.access_point == owner.name]
    assert mine == [issued.client_key]


def test_a_token_makes_a_change_once(client: Any) -> None:
    token, name = os.urandom(16), new_name()
    made = [client.create_access_point(name, idempotency_token=token) for _ in range(3)]
    assert made[0] == made[1] == made[2]
    with pytest.raises(hsmux.Conflict):
        client.create_access_point(new_name(), idempotency_token=token)
    with pytest.raises(hsmux.InvalidArgument, match="idempotency_token"):
        client.create_access_point(new_name(), idempotency_token=b"short")


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("encrypt", {"key": "nonsense", "plaintext": b""}),
        ("encrypt", {"key": "alias/a", "plaintext": bytes(65537)}),
        ("encrypt", {"key": "alias/a", "plaintext": "text"}),
        ("encrypt", {"key": "alias/a", "plaintext": b"", "context": {"hsmux:x": "y"}}),
        ("encrypt", {"key": "alias/a", "plaintext": b"", "context": {"a": 1}}),
        ("create_key", {"spec": "AES_512"}),
        ("create_key", {"spec": "AES_256", "alias": "no-prefix"}),
        ("create_key", {"spec": "AES_256", "usage": "SIGN_VERIFY"}),
        ("generate_random", {"length": 0}),
        ("generate_random", {"length": 4097}),
        ("sign", {"key": "alias/a", "message": b"", "algorithm": "MD5"}),
        ("revoke_client_key", {"client_key_id": "ck-1"}),
        ("encrypt_many", {"key": "alias/a", "plaintexts": ["text"]}),
        ("encrypt_many", {"key": "nonsense", "plaintexts": [b"x"]}),
    ],
)
def test_bad_arguments_are_named(client: Any, method: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(hsmux.InvalidArgument) as caught:
        getattr(client, method)(**arguments)
    assert len(str(caught.value)) > 10


def test_status_and_repr(client: Any) -> None:
    status = client.status()
    assert status.root == "token test"
    # One is enough to be ready; the other is there soon.
    ready_by = time.monotonic() + PATIENCE_S
    while client.status().tokens[0].workers < 2:
        assert time.monotonic() < ready_by
    assert len(client.generate_random(4096)) == 4096
    key = client.create_key(spec="AES_256")
    sealed = client.encrypt(key, b"very secret text")
    for shown in (repr(sealed), repr(client.decrypt(sealed.ciphertext))):
        assert "secret" not in shown and key.key_id in shown
