"""Counts of what the gateway did, cheap to add to and read only at a scrape.

Labels are operation, outcome and token: never a key or an access point, whose number has no
bound.
"""

import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

__all__ = ["LATENCY_BOUNDS_US", "Metrics"]

LATENCY_BOUNDS_US: Final = (50, 100, 250, 500, 1_000, 2_500, 10_000, 50_000, 250_000, 1_000_000)
"""Upper bounds of the latency buckets in microseconds."""

UNCOUNTED_MAX: Final = 256
"""Calls that are kept to be counted together, which costs less than one by one."""

_Family = type[GaugeMetricFamily] | type[CounterMetricFamily]


def _no_calls() -> list[int]:
    return [0] * (len(LATENCY_BOUNDS_US) + 1)


class Metrics:
    """Counters of calls, and gauges that are asked when somebody scrapes.

    A `prometheus_client` collector: register it with a `CollectorRegistry`.
    """

    def __init__(self) -> None:
        self._uncounted: list[tuple[str, str, int]] = []
        self._calls: Counter[tuple[str, str]] = Counter()
        self._buckets: dict[str, list[int]] = defaultdict(_no_calls)
        self._elapsed_ns: Counter[str] = Counter()
        self._numbers: list[tuple[_Family, str, str, Callable[[], float]]] = []
        self._families: list[Callable[[], Iterator[Metric]]] = []
        self._started = time.time()

    def count(self, operation: str, outcome: str, elapsed_ns: int) -> None:
        """Add one call that took `elapsed_ns` nanoseconds."""
        self._uncounted.append((operation, outcome, elapsed_ns))
        if len(self._uncounted) >= UNCOUNTED_MAX:
            self._count_all()

    def _count_all(self) -> None:
        for operation, outcome, elapsed_ns in self._uncounted:
            self._calls[operation, outcome] += 1
            self._elapsed_ns[operation] += elapsed_ns
            self._buckets[operation][bisect_left(LATENCY_BOUNDS_US, elapsed_ns // 1000)] += 1
        self._uncounted.clear()

    def add_gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Expose a number that `read` tells at a scrape."""
        self._numbers.append((GaugeMetricFamily, name, text, read))

    def add_counter(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Expose a number that only grows."""
        self._numbers.append((CounterMetricFamily, name, text, read))

    def add_families(self, collect: Callable[[], Iterator[Metric]]) -> None:
        """Expose metric families that `collect` makes at a scrape."""
        self._families.append(collect)

    def collect(self) -> Iterator[Metric]:
        """Every metric now."""
        self._count_all()
        calls = CounterMetricFamily(
            "hsmux_calls", "Calls by operation and outcome.", labels=["operation", "outcome"]
        )
        for (operation, outcome), number in sorted(self._calls.items()):
            calls.add_metric([operation, outcome], number)
        yield calls
        yield self._latencies()
        for family, name, text, read in self._numbers:
            yield family(name, text, value=read())
        for collect in self._families:
            yield from collect()
        yield GaugeMetricFamily(
            "hsmux_start_time_seconds", "Start of the gateway since 1970 UTC.", value=self._started
        )

    def _latencies(self) -> Metric:
        family = HistogramMetricFamily(
            "hsmux_call_seconds", "Time from decode to record.", labels=["operation"]
        )
        for operation, buckets in sorted(self._buckets.items()):
            total, cumulated = 0, []
            for bound, number in zip((*LATENCY_BOUNDS_US, None), buckets, strict=True):
                total += number
                name = "+Inf" if bound is None else repr(bound / 1e6)
                cumulated.append((name, float(total)))
            family.add_metric([operation], cumulated, self._elapsed_ns[operation] / 1e9)
        return family
