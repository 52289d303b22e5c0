"""Garbage of every kind beside a client that goes on: nothing of its is lost, no worker dies."""

import hashlib
import os
import random
import ssl
import struct
import threading
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hsmux_protocol import errors
from hsmux_protocol.columns import pack_column, unpack_u16_column
from hsmux_protocol.envelope import HEADER_SIZE, SUITE_AES_GCM, SUITE_XAES_256_GCM, make_header
from hsmux_protocol.frames import Error, Request, Result
from hsmux_protocol.limits import FRAME_SIZE_MAX
from hsmux_protocol.operations import OPERATIONS
from hsmux_protocol.records import KeyRecord
from tests.gateway.hardware import write_hardware_config
from tests.gateway.raw_client import RawClient, client_context, connect
from tests.gateway.running import Running, running_gateway
from tests.gateway.test_borders import ARGUMENTS, MALFORMED

COUNTS = [pytest.param(300, id="few"), pytest.param(10_000, id="many", marks=pytest.mark.long)]
REFUSED = (errors.InvalidCiphertext, errors.InvalidArgument, errors.NotFound)


class Witness(threading.Thread):
    """A client that encrypts, decrypts and signs all the time and checks every answer."""

    def __init__(self, running: Running, context: ssl.SSLContext) -> None:
        super().__init__()
        self._address, self._context = running.address, context
        self._over = threading.Event()
        self.rounds = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Until `stop`."""
        try:
            with connect(self._address, self._context) as client:
                while not self._over.is_set():
                    self._round(client, b"%d" % self.rounds)
                    self.rounds += 1
        except BaseException as error:
            self.failure = error

    def _round(self, client: RawClient, plaintext: bytes) -> None:
        for alias in ("alias/software", "alias/hardware"):
            envelope = client.call("encrypt", alias, {"a": "b"}, plaintext)[0]
            assert client.call("decrypt", None, {"a": "b"}, envelope)[0] == plaintext
        digest = hashlib.sha256(plaintext).digest()
        signature = client.call("sign", "alias/signing", "ECDSA_SHA_256", True, digest)[0]
        client.call("verify", "alias/signing", "ECDSA_SHA_256", False, plaintext, signature)

    def stop(self) -> None:
        """End, after at least one more whole round."""
        before = self.rounds
        while self.is_alive() and self.rounds <= before:
            self.join(0.01)
        self._over.set()
        self.join(20)
        if self.failure is not None:
            raise self.failure


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A gateway over SoftHSM with a key of each kind; at the end no worker was replaced."""
    config = write_hardware_config(tmp_path_factory.mktemp("garbage"))
    with running_gateway(config) as gateway:
        context = client_context(gateway.administrator)
        with connect(gateway.address, context) as client:
            aes, ec = ("AES_256", "ENCRYPT_DECRYPT"), ("EC_P256", "SIGN_VERIFY")
            client.call("create_key", *aes, "software", None, "alias/software", "", {})
            client.call("create_key", *aes, "hardware", "hsm", "alias/hardware", "", {})
            client.call("create_key", *ec, "hardware", "hsm", "alias/signing", "", {})
        yield gateway
        with connect(gateway.address, context) as client:
            (token,) = client.call("show_status")[-1]
            assert (token.restarts, token.workers, token.state) == (0, 2, "up")
        assert "Traceback" not in gateway.log.read_text()


@pytest.fixture(scope="module")
def context(running: Running) -> ssl.SSLContext:
    """TLS as the administrator."""
    return client_context(running.administrator)


@pytest.fixture
def witness(running: Running, context: ssl.SSLContext) -> Iterator[Witness]:
    """A client beside the test; it has lost nothing when the test ends."""
    witness = Witness(running, context)
    witness.start()
    yield witness
    witness.stop()


@pytest.fixture
def client(running: Running, context: ssl.SSLContext) -> Iterator[RawClient]:
    """A connection that sends the garbage."""
    with connect(running.address, context) as raw:
        yield raw


def _key(client: RawClient, alias: str) -> KeyRecord:
    (key,) = client.call("show_key", alias)
    assert isinstance(key, KeyRecord)
    return key


def test_malformed_frames_end_their_connection_only(
    running: Running, context: ssl.SSLContext, witness: Witness
) -> None:
    for data in MALFORMED.values():
        with connect(running.address, context) as hostile:
            hostile.tls.sendall(data)
            frame = hostile.receive()
            assert isinstance(frame, Error) and frame.id == 0
            assert hostile.tls.recv(1) == b""


def test_malformed_arguments_cost_an_answer_only(client: RawClient, witness: Witness) -> None:
    for _ in range(3):
        for number, (operation, arguments, options, expected) in enumerate(ARGUMENTS.values()):
            request = Request(number + 1, operation, 0, arguments, options)
            client.tls.sendall(client.protocol.send(request))
            frame = client.receive()
            assert isinstance(frame, Error)
            assert (frame.id, frame.number) == (number + 1, expected.number)


@pytest.mark.parametrize("alias", ["alias/software", "alias/hardware"])
def test_malformed_ciphertexts_cost_an_answer_only(
    client: RawClient, witness: Witness, alias: str
) -> None:
    key = _key(client, alias)
    other = _key(client, {"alias/software": "alias/hardware"}.get(alias, "alias/software"))
    whole = client.call("encrypt", alias, {}, b"a record")[0]
    head, body = whole[:HEADER_SIZE], whole[HEADER_SIZE:]
    suite = SUITE_AES_GCM if alias == "alias/hardware" else SUITE_XAES_256_GCM
    wrong_suite = SUITE_XAES_256_GCM if suite is SUITE_AES_GCM else SUITE_AES_GCM
    bad = {
        "empty": b"",
        "header only": head,
        "no ciphertext": head + bytes(suite.nonce_size + suite.tag_size),
        "short of a tag": whole[: HEADER_SIZE + suite.nonce_size + suite.tag_size - 1],
        "another version": make_header(suite, key.key_id, 2) + body,
        "version 0": head[:-4] + bytes(4) + body,
        "the last version": make_header(suite, key.key_id, 2**32 - 1) + body,
        "another suite": make_header(wrong_suite, key.key_id, 1) + body + bytes(12),
        "an unknown suite": head[:3] + b"\xff" + head[4:] + body,
        "an unknown format": head[:2] + b"\xff" + head[3:] + body,
        "no magic": b"XX" + whole[2:],
        "another key": make_header(suite, other.key_id, 1) + body,
        "no key": make_header(suite, bytes(16), 1) + body,
        "longer": whole + b"\0",
        "twice": whole * 2,
        "zeroes": head + bytes(len(body)),
        "the largest": head + os.urandom(65536),
    }
    for name, ciphertext in bad.items():
        with pytest.raises(REFUSED):
            client.call("decrypt", None, {}, ciphertext)
        with pytest.raises(REFUSED):
            client.call("decrypt", alias, {}, ciphertext)
        statuses = client.call(
            "decrypt_batch", alias, {}, None, pack_column([whole, ciphertext, whole])
        )[0]
        assert unpack_u16_column(statuses) == [0, errors.InvalidCiphertext.number, 0], name
    for index in range(len(whole)):
        changed = bytearray(whole)
        changed[index] ^= 0x80
        with pytest.raises(REFUSED):
            client.call("decrypt", None, {}, bytes(changed))


@pytest.mark.parametrize("count", COUNTS)
def test_garbage_under_a_hardware_key_restarts_no_worker(
    client: RawClient, witness: Witness, count: int
) -> None:
    header = make_header(SUITE_AES_GCM, _key(client, "alias/hardware").key_id, 1)
    chance = random.Random(count)
    invalid = errors.InvalidCiphertext.number
    for _ in range(count // 4):
        with pytest.raises(errors.InvalidCiphertext):
            client.call("decrypt", None, {}, header + chance.randbytes(chance.randint(28, 300)))
    items = [header + chance.randbytes(chance.randint(0, 60)) for _ in range(count)]
    for start in range(0, count, 1000):
        some = items[start : start + 1000]
        statuses = client.call("decrypt_batch", None, {}, None, pack_column(some))[0]
        assert set(unpack_u16_column(statuses)) == {invalid}
    (token,) = client.call("show_status")[-1]
    assert token.restarts == 0


PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text(max_size=40)
    | st.binary(max_size=200)
    | st.sampled_from(["alias/software", "alias/hardware", "AES_256", "software", "hsm", "\0"])
)


def _nested(plain: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        plain,
        lambda inner: (
            st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner, max_size=6)
        ),
        max_leaves=12,
    )


BUDGETS = st.integers(0, 2**32 - 1)
LIVE = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@LIVE
@given(st.lists(st.binary(max_size=400), max_size=5))
@example([b"\0\0"])
def test_random_bytes_are_an_error_or_wait_for_more(
    running: Running, context: ssl.SSLContext, pieces: list[bytes]
) -> None:
    whole = b"".join(pieces)
    # A length that a frame may have is waited for, and nothing is refused before.
    first = int.from_bytes((whole + b"\xff" * 4)[:4], "big")
    missing = 4 + first - len(whole) if first <= FRAME_SIZE_MAX else 0
    with connect(running.address, context) as hostile:
        for piece in pieces:
            hostile.tls.sendall(piece)
        hostile.tls.sendall(b"\xff" * max(800, missing))
        frame = hostile.receive()
        assert isinstance(frame, Error)
        assert (frame.id, frame.number) == (0, errors.ProtocolError.number)


@LIVE
@given(st.lists(_nested(PLAIN | st.floats(allow_nan=False)), max_size=8))
def test_random_frames_are_an_error(
    running: Running, context: ssl.SSLContext, values: list[Any]
) -> None:
    body = msgpack.packb(values)
    with connect(running.address, context) as hostile:
        hostile.tls.sendall(struct.pack(">I", len(body)) + body + b"\xff" * 4)
        frame = hostile.receive()
        assert isinstance(frame, Error)
        assert (frame.id, frame.number) == (0, errors.ProtocolError.number)


@LIVE
@given(st.sampled_from(sorted(OPERATIONS)), st.lists(_nested(PLAIN), max_size=8), BUDGETS)
def test_random_arguments_have_one_typed_answer(
    client: RawClient, name: str, arguments: list[Any], budget_ms: int
) -> None:
    client._next_id += 1
    request = Request(client._next_id, OPERATIONS[name].number, budget_ms, arguments, {})
    try:
        data = client.protocol.send(request)
    except errors.LocalProtocolError:
        return
    client.tls.sendall(data)
    frame = client.receive()
    assert isinstance(frame, Error | Result) and frame.id == client._next_id
    assert not isinstance(frame, Error) or frame.number != errors.InternalError.number
