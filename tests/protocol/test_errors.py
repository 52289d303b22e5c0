"""The error table: numbers, families and exit codes; errors keep what they carry."""

import pickle

import pytest

from hsmux_protocol.errors import (
    ERROR_BY_NUMBER,
    ERRORS,
    Busy,
    HsmuxError,
    InternalError,
    error_from_wire,
)

# Family and exit code of each class, as the command and both clients promise them.
EXIT_CODES = {
    "argument": 2,
    "not-found": 3,
    "denied": 4,
    "unauthenticated": 4,
    "busy": 5,
    "deadline": 5,
    "unavailable": 5,
    "conflict": 6,
    "state": 6,
    "integrity": 7,
    "protocol": 1,
    "outcome-unknown": 1,
    "internal": 1,
}


def subclasses(base: type[HsmuxError]) -> set[type[HsmuxError]]:
    return {base}.union(*(subclasses(kind) for kind in base.__subclasses__()))


def test_every_class_is_in_the_table_once() -> None:
    own = {kind for kind in subclasses(HsmuxError) if kind.__module__ == "hsmux_protocol.errors"}
    assert own - {HsmuxError} == set(ERRORS)
    assert len(ERROR_BY_NUMBER) == len(ERRORS) == len(set(ERRORS))
    assert [error.number for error in ERRORS] == sorted(ERROR_BY_NUMBER)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_numbers_families_and_exit_codes(error: type[HsmuxError]) -> None:
    assert 0 < error.number < 2**16  # 0 is "done" in a column of statuses
    assert EXIT_CODES[error.family] == error.exit_code
    assert error.__doc__ and error.__doc__.strip().endswith(".")


def test_every_family_is_used() -> None:
    assert {error.family for error in ERRORS} == set(EXIT_CODES)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_from_the_wire_and_back(error: type[HsmuxError]) -> None:
    made = error_from_wire(error.number, "text", reference="r-1", retry_after_ms=5)
    assert type(made) is error
    assert (made.text, made.reference, made.retry_after_ms) == ("text", "r-1", 5)
    assert str(made) == "text (reference r-1)"
    assert repr(made) == f"{error.__name__}('text', reference='r-1')"
    again = pickle.loads(pickle.dumps(made))
    assert type(again) is error and vars(again) == vars(made)


def test_a_number_of_a_later_version() -> None:
    made = error_from_wire(999, "text", reference="r-1", retry_after_ms=5)
    assert type(made) is InternalError
    assert (made.text, made.reference, made.retry_after_ms) == ("error 999: text", "r-1", 5)


def test_without_a_reference() -> None:
    assert str(Busy("full")) == "full"
