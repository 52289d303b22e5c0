"""From a call that is over to its record."""

import pytest

from hsmux_gateway.audit.records import DONE
from hsmux_protocol.columns import pack_column, pack_u16_column
from hsmux_protocol.context import EMPTY_CONTEXT
from hsmux_protocol.errors import InvalidCiphertext
from tests.gateway.journals import RECORDS
from tests.gateway.parts import make_call

BAD = InvalidCiphertext.number


@pytest.mark.parametrize(
    ("statuses", "failed"),
    [
        ([], 0),
        ([0], 0),
        ([0] * 1900, 0),
        ([BAD], 1),
        ([BAD, *[0] * 1899], 1),
        ([*[0] * 1899, BAD], 1),
        ([0, BAD, 0, 1 << 8, 0], 2),
        ([BAD] * 3, 3),
    ],
)
def test_items_that_failed_are_counted(statuses: list[int], failed: int) -> None:
    column = pack_column([b"x"] * len(statuses))
    call = make_call("decrypt_batch", None, EMPTY_CONTEXT, None, column)
    values = [pack_u16_column(statuses), column, bytes(16), 1]
    record = RECORDS.request(call, statement="", outcome=DONE, values=values, elapsed_us=1)
    assert (record.items, record.items_failed) == (len(statuses), failed)


def test_of_a_batch_that_was_refused_no_item_failed_by_itself() -> None:
    call = make_call("decrypt_batch", None, EMPTY_CONTEXT, None, pack_column([b"x"] * 3))
    record = RECORDS.request(call, statement="", outcome=97, values=[], elapsed_us=1)
    assert (record.items, record.items_failed) == (3, 0)
