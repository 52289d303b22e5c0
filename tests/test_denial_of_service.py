"""What docs/denial-of-service.md leaves out: no limit of a border, and no setting."""

import msgspec
import pytest

from hsmux_gateway.config import Limits
from tests.documents.denial_tables import BORDERS, module_of, named, value_of

MODULES = (
    *("listener", "tls", "connection", "answers", "buffers", "fairness", "requests", "health"),
    *("access.limits", "audit.floods", "log_sink", "hsmux_protocol.limits"),
)
"""Modules at the borders: whatever number has a name there is a limit, or stands below."""

NO_LIMITS = {
    "buffers.ANSWER_GROWTH": "an estimate",
    "connection.GOAWAY_PING": "a mark on the wire",
    "connection.RETRY_AFTER_MS": "what a caller is told",
    "fairness.RETRY_AFTER_MS": "what a caller is told",
    "access.limits.RETRY_MS_MAX": "what the wire can tell",
    "requests.ANSWER_SIZE": "an estimate",
    "tls.RECORD_SIZE": "of TLS",
    "log_sink.CLOSE_TIMEOUT_S": "of the gateway's own end",
    "log_sink.PIECE_SIZE": "of a system call",
    "hsmux_protocol.limits.ID_MAX": "of the wire",
    "hsmux_protocol.limits.SECTION_OVERHEAD_SIZE": "an estimate",
}
"""Numbers that stop nobody, and what they are."""


@pytest.mark.parametrize("path", MODULES)
def test_every_limit_of_a_border_is_in_the_document(path: str) -> None:
    module = module_of(f"{path}.")
    limits = {
        f"{path}.{name}"
        for name in module.__annotations__
        if name[0] != "_" and isinstance(getattr(module, name), int | float)
    }
    assert limits
    assert limits - named() - set(NO_LIMITS) == set()


def test_every_setting_of_limits_is_in_the_document() -> None:
    settings = {f"limits.{field.name}" for field in msgspec.structs.fields(Limits)}
    assert settings <= named()


def test_what_stops_nobody_is_there_and_not_in_the_document() -> None:
    assert not named() & set(NO_LIMITS)
    for name in NO_LIMITS:
        assert isinstance(value_of(name), int | float)


@pytest.mark.parametrize("border", BORDERS)
def test_each_attack_ends_at_something(border: str) -> None:
    for attack in BORDERS[border]:
        assert attack.limits and all(value_of(name) is not None for name in attack.limits)


def test_a_setting_or_constant_that_is_not_there_is_found() -> None:
    with pytest.raises(AttributeError):
        value_of("listener.NOTHING_MAX")
    with pytest.raises((KeyError, ValueError)):
        value_of("limits.nothing_max")
