"""When a request is sent again: a pure decision over errors and times."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmux import (
    Busy,
    DeadlineExceeded,
    Denied,
    HsmuxError,
    InvalidCiphertext,
    NotFound,
    OutcomeUnknown,
    Unavailable,
    WrongState,
)
from hsmux._retry import PAUSE_MAX_S, Effort, TimedOut, budget_ms
from hsmux._tls import ConnectionLost
from hsmux_protocol.operations import OPERATIONS

READS, CHANGES = OPERATIONS["encrypt"], OPERATIONS["create_key"]


@pytest.mark.parametrize("operation", [READS, CHANGES])
@pytest.mark.parametrize("error", [Denied, NotFound, WrongState, InvalidCiphertext])
def test_a_refusal_is_never_repeated(operation: object, error: type[HsmuxError]) -> None:
    refusal = error("no")
    with pytest.raises(error) as caught:
        Effort(OPERATIONS["encrypt"], 100).failed(refusal, 0, sent=True)
    assert caught.value is refusal


def test_busy_waits_as_long_as_the_gateway_asks() -> None:
    effort = Effort(READS, 100)
    assert effort.failed(Busy("full", retry_after_ms=3000), 0, sent=True) >= 3
    with pytest.raises(Busy):
        effort.failed(Busy("full", retry_after_ms=3000), 98, sent=True)


def test_pauses_double_up_to_a_limit() -> None:
    effort = Effort(READS, 10_000)
    assert effort.failed(ConnectionLost("cut"), 0, sent=True) == 0
    pauses = [effort.failed(ConnectionLost("cut"), 0, sent=False) for _ in range(20)]
    assert all(0 < pause <= PAUSE_MAX_S for pause in pauses)
    assert pauses[0] < PAUSE_MAX_S / 4 and min(pauses[-5:]) >= PAUSE_MAX_S / 2


def test_a_change_whose_answer_was_lost_ends_as_unknown() -> None:
    effort = Effort(CHANGES, 10)
    effort.failed(ConnectionLost("cut"), 0, sent=True)
    for error in (Unavailable("away"), ConnectionLost("refused"), TimedOut()):
        with pytest.raises(OutcomeUnknown, match="idempotency_token"):
            effort.failed(error, 10, sent=False)
    # What the gateway says about the repeated change is the truth about it.
    with pytest.raises(Denied):
        effort.failed(Denied("no"), 1, sent=True)


def test_a_change_that_never_left_was_not_done() -> None:
    with pytest.raises(Unavailable, match="check that the gateway runs"):
        Effort(CHANGES, 10).failed(ConnectionLost("refused"), 10, sent=False)
    with pytest.raises(DeadlineExceeded):
        Effort(CHANGES, 10).failed(TimedOut(), 10, sent=False)


def test_a_computation_whose_answer_was_lost_is_only_late() -> None:
    with pytest.raises(DeadlineExceeded, match="encrypt"):
        Effort(READS, 10).failed(TimedOut(), 10, sent=True)


@given(
    errors=st.lists(st.sampled_from(["busy", "lost", "away"]), max_size=60),
    deadline=st.floats(0, 50),
)
def test_nothing_is_sent_again_after_the_deadline(errors: list[str], deadline: float) -> None:
    made = {"busy": Busy("b"), "lost": ConnectionLost("c"), "away": Unavailable("a")}
    effort, now = Effort(READS, deadline), 0.0
    for name in errors:
        try:
            now += effort.failed(made[name], now, sent=True)
        except HsmuxError:
            return
        assert now < deadline
        assert 1 <= budget_ms(deadline, now) <= 50_000
