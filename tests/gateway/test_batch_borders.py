"""Batches at their borders: answers at the cap, malformed columns and large items in a token."""

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from hsmux_gateway.keys.batches import (
    DECRYPT_ITEM_SIZE,
    ENCRYPT_ITEM_SIZE,
    check_fits,
    repeat_u32,
    status_column,
)
from hsmux_protocol import errors
from hsmux_protocol.columns import pack_column, unpack_column, unpack_u16_column
from hsmux_protocol.envelope import SUITE_AES_GCM, SUITE_XAES_256_GCM
from hsmux_protocol.frames import Result, encode_frame
from hsmux_protocol.limits import (
    BATCH_ITEMS_MAX,
    FRAME_SIZE_MAX,
    ITEM_SIZE_MAX,
    SECTION_OVERHEAD_SIZE,
)
from tests.gateway.hsm.conftest import softhsm_settings
from tests.gateway.raw_client import RawClient, client_context, connect
from tests.gateway.running import running_gateway

KEY_ID = bytes(16)


def fitting(items: list[bytes], growth_size: int, item_size: int) -> int:
    """How many items a refusal says would fit; all of them when there is none."""
    try:
        check_fits(pack_column(items), growth_size, item_size)
    except errors.TooLarge as error:
        return int(error.text.split("first ")[1].split()[0])
    return len(items)


def answer_size(sizes: list[int], *, versions: bool) -> int:
    """Bytes of the body of the answer to a batch with outputs of these sizes."""
    count = len(sizes)
    version = repeat_u32(1, count) if versions else 1
    values = [status_column([0] * count, (0,)), pack_column([bytes(s) for s in sizes]), KEY_ID]
    return len(encode_frame(Result(2**64 - 1, [*values, version]), size_max=1 << 30)) - 4


@pytest.mark.parametrize("size", [0, 1, 64, 1000, ITEM_SIZE_MAX])
@pytest.mark.parametrize("growth", [SUITE_XAES_256_GCM.overhead_size, -SUITE_AES_GCM.overhead_size])
def test_what_is_said_to_fit_fits_and_one_more_would_not(size: int, growth: int) -> None:
    decrypting = growth < 0
    item_size = DECRYPT_ITEM_SIZE if decrypting else ENCRYPT_ITEM_SIZE
    items = [bytes(size)] * min(BATCH_ITEMS_MAX, 2 * FRAME_SIZE_MAX // (size + 1))
    count = fitting(items, growth, item_size)
    output = max(size + growth, 0)
    most = answer_size([output] * count, versions=decrypting)
    assert most <= FRAME_SIZE_MAX
    if count < len(items):
        assert most + output + item_size > FRAME_SIZE_MAX - SECTION_OVERHEAD_SIZE
        with pytest.raises(errors.TooLarge):
            check_fits(pack_column(items[: count + 1]), growth, item_size)
    check_fits(pack_column(items[:count]), growth, item_size)


def test_a_decrypt_batch_whose_answer_does_not_fit_is_refused(client: RawClient) -> None:
    client.call("create_key", "AES_256", "ENCRYPT_DECRYPT", "software", None, "alias/fit", "", {})
    large = client.call("encrypt", "alias/fit", {}, bytes(60000))[0]
    batch = [b""] * 16300 + [large] * 16
    with pytest.raises(errors.TooLarge, match=r"the first \d+ fit") as refused:
        client.call("decrypt_batch", "alias/fit", {}, None, pack_column(batch))
    count = int(refused.value.text.split("first ")[1].split()[0])
    assert 16300 < count < len(batch)
    answer = client.call("decrypt_batch", "alias/fit", {}, None, pack_column(batch[:count]))
    assert set(unpack_u16_column(answer[0])[16300:]) == {0}


@pytest.fixture(scope="module")
def hardware(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RawClient]:
    """A connection to a gateway with a SoftHSM token and the key `alias/hardware` in it."""
    directory = tmp_path_factory.mktemp("hardware")
    with running_gateway(_write_config(directory)) as running:
        context = client_context(running.administrator)
        with connect(running.address, context) as raw:
            kind = ("AES_256", "ENCRYPT_DECRYPT", "hardware", "hsm")
            raw.call("create_key", *kind, "alias/hardware", "", {})
            yield raw


def _write_config(directory: Path) -> Path:
    token = softhsm_settings(directory)
    conf = token.environment["SOFTHSM2_CONF"]
    path = directory / "hsmux.toml"
    path.write_text(
        f'instance_dir = "{directory}/instance"\n[server]\nlisten = ["127.0.0.1:0"]\n'
        f'[health]\nlisten = "127.0.0.1:0"\n[root]\ntoken = "test"\n'
        f'[hsm.test]\nmodule = "{token.module}"\ntoken_label = "{token.token_label}"\n'
        f'pin_file = "{token.pin_file}"\nenvironment = {{ SOFTHSM2_CONF = "{conf}" }}\n'
    )
    return path


MALFORMED = {
    "no bytes": b"",
    "count without offsets": b"\0\0\0\2",
    "offsets that go down": struct.pack(">5I", 3, 0, 2, 1, 2) + b"ab",
    "a byte behind": struct.pack(">3I", 1, 0, 1) + b"ab",
    "more than a batch": b"\xff\xff\xff\xff" + bytes(8),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_column_costs_no_worker(hardware: RawClient, name: str) -> None:
    for operation in ("encrypt_batch", "decrypt_batch"):
        with pytest.raises(errors.InvalidArgument):
            hardware.call(operation, "alias/hardware", {}, None, MALFORMED[name])
    assert [token.restarts for token in hardware.call("show_status")[-1]] == [0]
    assert hardware.call("encrypt", "alias/hardware", {}, b"still here")


def test_an_item_over_the_limit_fails_alone_in_a_token(hardware: RawClient) -> None:
    items = [b"small", bytes(ITEM_SIZE_MAX + 1), bytes(ITEM_SIZE_MAX)]
    contexts = pack_column([b"\x80", b"\x81\xa1a\xa0", b"\x81\xa1b\xa0"])
    answer = hardware.call("encrypt_batch", "alias/hardware", {}, contexts, pack_column(items))
    assert unpack_u16_column(answer[0]) == [0, errors.TooLarge.number, 0]
    envelopes = unpack_column(answer[1])
    assert envelopes[1] == b""
    for envelope, context, item in (
        (envelopes[0], {}, items[0]),
        (envelopes[2], {"b": ""}, items[2]),
    ):
        assert hardware.call("decrypt", None, context, envelope)[0] == item
