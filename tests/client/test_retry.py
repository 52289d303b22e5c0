"""When a request is sent again: a pure decision over errors and times."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmux import (
    Busy,
    DeadlineExceeded,
    Denied,
    HsmuxError,
    InvalidArgument,
    InvalidCiphertext,
    NotFound,
    OutcomeUnknown,
    Unavailable,
    WrongState,
)
from hsmux._retry import (
    PAUSE_MAX_S,
    TIMEOUT_S_MAX,
    Effort,
    TimedOut,
    budget_ms,
    check_timeout,
)
from hsmux._tls import ClientClosed, ConnectionLost
from hsmux_protocol.operations import OPERATIONS, Operation

READS, CHANGES = OPERATIONS["encrypt"], OPERATIONS["create_key"]


@pytest.mark.parametrize("operation", [READS, CHANGES])
@pytest.mark.parametrize("error", [Denied, NotFound, WrongState, InvalidCiphertext])
def test_a_refusal_is_never_repeated(operation: Operation, error: type[HsmuxError]) -> None:
    refusal = error("no")
    with pytest.raises(error) as caught:
        Effort(operation, 100).failed(refusal, 0, sent=True)
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


@pytest.mark.parametrize("sent", [False, True])
def test_a_closed_client_is_not_tried_again(sent: bool) -> None:
    with pytest.raises(Unavailable, match="was closed; make a new one"):
        Effort(READS, 10).failed(ClientClosed(), 0, sent=sent)
    with pytest.raises(OutcomeUnknown if sent else Unavailable):
        Effort(CHANGES, 10).failed(ClientClosed(), 0, sent=sent)


def test_an_answer_for_now_does_not_tell_what_became_of_the_lost_one() -> None:
    effort = Effort(CHANGES, 10)
    effort.failed(ConnectionLost("cut"), 0, sent=True)
    effort.failed(Busy("full"), 1, sent=True)
    with pytest.raises(OutcomeUnknown):
        effort.failed(Busy("full", retry_after_ms=60_000), 2, sent=True)


def test_what_a_request_says_of_its_time_fits_the_wire() -> None:
    assert budget_ms(10, 0) == 10_000
    assert budget_ms(10, 9.9999) == budget_ms(10, 11) == 1
    assert budget_ms(1e12, 0) == 2**32 - 1


@pytest.mark.parametrize("timeout_s", [-1, 0, 0.5, 3, TIMEOUT_S_MAX])
def test_a_timeout_is_a_number_of_seconds(timeout_s: float) -> None:
    assert check_timeout(timeout_s) == timeout_s


@pytest.mark.parametrize("timeout_s", [float("inf"), 1e300, TIMEOUT_S_MAX + 1])
def test_an_endless_timeout_has_an_end(timeout_s: float) -> None:
    assert check_timeout(timeout_s) == TIMEOUT_S_MAX


@pytest.mark.parametrize("timeout_s", ["5", None, True, float("nan"), [1]])
def test_a_timeout_that_is_no_number_is_refused(timeout_s: object) -> None:
    with pytest.raises(InvalidArgument, match="timeout_s: must be a number of seconds"):
        check_timeout(timeout_s)  # type: ignore[arg-type]
