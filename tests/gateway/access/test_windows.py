"""Time windows: when they are open, and until when that is sure."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmux_gateway.access.windows import DAYS, FOREVER_MS, WindowDocument, parse_window


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).astimezone(UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("document", "moment", "expected"),
    [
        (WindowDocument(), "2030-01-01T00:00Z", True),
        (WindowDocument(not_before="2030-01-01T00:00Z"), "2029-12-31T23:59:59.999Z", False),
        (WindowDocument(not_before="2030-01-01T00:00Z"), "2030-01-01T00:00Z", True),
        (WindowDocument(not_after="2030-01-01T02:00+02:00"), "2029-12-31T23:59:59.999Z", True),
        (WindowDocument(not_after="2030-01-01T02:00+02:00"), "2030-01-01T00:00Z", False),
        (WindowDocument(days=("tue",)), "2030-01-01T12:00Z", True),
        (WindowDocument(days=("mon", "wed")), "2030-01-01T12:00Z", False),
        (WindowDocument(hours="08:00-18:00"), "2030-01-01T07:59:59Z", False),
        (WindowDocument(hours="08:00-18:00"), "2030-01-01T08:00Z", True),
        (WindowDocument(hours="08:00-18:00"), "2030-01-01T18:00Z", False),
        (WindowDocument(hours="18:00-24:00"), "2030-01-01T23:59:59Z", True),
    ],
)
def test_when_it_is_open(document: WindowDocument, moment: str, expected: bool) -> None:
    assert parse_window(document).holds(ms(moment)) is expected


@pytest.mark.parametrize(
    ("document", "place"),
    [
        (WindowDocument(not_before="2030-01-01T00:00"), "not_before"),
        (WindowDocument(not_before="tomorrow"), "not_before"),
        (WindowDocument(not_before="1969-12-31T00:00Z"), "not_before"),
        (WindowDocument(not_before="2030-01-01T00:00Z", not_after="2030-01-01T00:00Z"), "not_aft"),
        (WindowDocument(not_before="9999-12-31T23:59:59-23:59"), "not_before"),
        (WindowDocument(not_after="0001-01-01T00:00:00+23:59"), "not_after"),
        (WindowDocument(days=("monday",)), "days"),
        (WindowDocument(hours="8-18"), "hours"),
        (WindowDocument(hours="18:00-08:00"), "hours"),
        (WindowDocument(hours="08:00-24:01"), "hours"),
        (WindowDocument(hours="08:00-08:00"), "hours"),
    ],
)
def test_what_is_no_window(document: WindowDocument, place: str) -> None:
    with pytest.raises(ValueError, match=f"^{place}"):
        parse_window(document)


@st.composite
def documents(draw: st.DrawFn) -> WindowDocument:
    minutes = sorted(draw(st.sets(st.integers(0, 24 * 60), min_size=2, max_size=2)))
    hours = "-".join(f"{minute // 60:02}:{minute % 60:02}" for minute in minutes)
    days = draw(st.lists(st.sampled_from(DAYS), max_size=7))
    bounds = {"not_before": "2030-01-02T03:04Z", "not_after": "2030-01-09T10:11:12Z"}
    chosen = draw(st.sets(st.sampled_from(sorted(bounds))))
    return WindowDocument(
        days=tuple(days),
        hours=draw(st.sampled_from(["", hours])),
        **{name: bounds[name] for name in chosen},
    )


@given(documents(), st.integers(ms("2029-12-30T00:00Z"), ms("2030-01-12T00:00Z")), st.data())
def test_nothing_changes_before_the_next_edge(
    document: WindowDocument, now_ms: int, data: st.DataObject
) -> None:
    window = parse_window(document)
    edge_ms = window.next_edge_ms(now_ms)
    assert edge_ms > now_ms
    later_ms = data.draw(st.integers(now_ms, min(edge_ms - 1, now_ms + 20 * 86_400_000)))
    assert window.holds(later_ms) == window.holds(now_ms)


def test_a_window_without_bounds_never_changes() -> None:
    assert parse_window(WindowDocument()).next_edge_ms(0) == FOREVER_MS
