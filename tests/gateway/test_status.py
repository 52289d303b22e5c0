"""What operators see of tokens: in people's words, and as metrics."""

from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from hsmux_gateway.assembly import _token_families
from hsmux_gateway.hsm.memory import MemoryToken
from hsmux_gateway.hsm.worker_process import end_in_words
from hsmux_gateway.metrics import Metrics
from hsmux_gateway.status_service import token_condition, token_record
from hsmux_native import Arena

CONDITIONS = {
    ("closed", 2): "up",
    ("closed", 0): "recovering",
    ("half-open", 0): "recovering",
    ("open", 0): "down",
    ("refused", 0): "pin-refused",
}


@pytest.fixture
def token() -> MemoryToken:
    return MemoryToken("main", Arena(1 << 20))


@pytest.mark.parametrize(("breaker", "workers"), CONDITIONS)
def test_a_tokens_state_is_in_peoples_words(token: MemoryToken, breaker: str, workers: int) -> None:
    statistics = replace(token.statistics(), breaker=breaker, workers=workers)
    assert token_condition(statistics) == CONDITIONS[breaker, workers]


def test_a_metric_says_whether_a_token_can_be_used(token: MemoryToken) -> None:
    metrics, registry = Metrics(), CollectorRegistry()
    metrics.add_families(lambda: iter(_token_families([token.statistics()])))
    registry.register(metrics)
    assert b'hsmux_token_up{token="main"} 1.0' in generate_latest(registry)
    assert token_record(token).state == "up"
    token.away = True
    assert b'hsmux_token_up{token="main"} 0.0' in generate_latest(registry)
    assert token_record(token).state == "down"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "exit code 0"),
        (3, "exit code 3"),
        (-9, "killed by SIGKILL"),
        (-40, "killed by signal 40"),
    ],
)
def test_the_end_of_a_worker_is_in_words(code: int, text: str) -> None:
    assert end_in_words(code) == text
