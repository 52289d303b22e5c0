"""Frames: one table drives encoder and decoder, whole, a byte at a time and with bytes behind."""

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmux_protocol.errors import LocalProtocolError, RemoteProtocolError
from hsmux_protocol.frames import (
    FRAMES,
    Error,
    Frame,
    FrameReader,
    Hello,
    Ping,
    Request,
    Result,
    decode_frame,
    encode_frame,
)
from hsmux_protocol.limits import (
    DEPTH_MAX,
    ELEMENTS_MAX,
    FRAME_SIZE_MAX,
    FRAME_SIZE_MAX_OPENING,
)

from .examples import FRAME_EXAMPLES, MALFORMED_BODIES, REASON_TEXTS, Malformed

examples = pytest.mark.parametrize("frame", FRAME_EXAMPLES.values(), ids=FRAME_EXAMPLES.keys())


def encode(frame: Frame) -> bytes:
    return encode_frame(frame, size_max=FRAME_SIZE_MAX)


def read_all(reader: FrameReader) -> list[Frame]:
    frames = []
    while (body := reader.next_body()) is not None:
        frames.append(decode_frame(body))
    return frames


def test_every_kind_has_an_example() -> None:
    assert {type(frame) for frame in FRAME_EXAMPLES.values()} == {
        kind for kind, _ in FRAMES.values()
    }


@examples
def test_whole(frame: Frame) -> None:
    reader = FrameReader()
    reader.feed(encode(frame))
    assert read_all(reader) == [frame]
    assert reader.buffered_size == 0


@examples
def test_a_reader_tells_what_is_missing(frame: Frame) -> None:
    reader, data = FrameReader(), encode(frame)
    for index, byte in enumerate(data):
        assert reader.missing_size == (len(data) - index if index >= 4 else 0)
        reader.feed(bytes([byte]))
    assert reader.missing_size == 0
    assert read_all(reader) == [frame]
    assert reader.missing_size == 0


@examples
def test_a_byte_at_a_time(frame: Frame) -> None:
    reader, data = FrameReader(), encode(frame)
    for byte in data[:-1]:
        reader.feed(bytes([byte]))
        assert reader.next_body() is None
        assert not reader.is_whole()
    reader.feed(data[-1:])
    assert reader.is_whole()
    assert read_all(reader) == [frame]


@examples
def test_the_next_frame_behind(frame: Frame) -> None:
    reader = FrameReader()
    reader.feed(encode(frame) * 2 + encode(Ping(1))[:-1])
    assert read_all(reader) == [frame, frame]
    assert reader.buffered_size == len(encode(Ping(1))) - 1


@examples
def test_a_byte_behind_the_value(frame: Frame) -> None:
    with pytest.raises(RemoteProtocolError, match="bytes behind"):
        decode_frame(encode(frame)[4:] + b"\x00")


@examples
def test_every_prefix_is_refused(frame: Frame) -> None:
    body = encode(frame)[4:]
    for size in range(len(body)):
        with pytest.raises(RemoteProtocolError):
            decode_frame(body[:size])


@pytest.mark.parametrize("malformed", MALFORMED_BODIES, ids=[m.name for m in MALFORMED_BODIES])
def test_malformed(malformed: Malformed) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_frame(malformed.body)
    assert REASON_TEXTS[malformed.reason] in str(caught.value)


def test_every_reason_has_an_example() -> None:
    assert {malformed.reason for malformed in MALFORMED_BODIES} == set(REASON_TEXTS)


@pytest.mark.parametrize("size_max", [1, FRAME_SIZE_MAX_OPENING, FRAME_SIZE_MAX])
def test_size_at_the_edge_and_one_over(size_max: int) -> None:
    reader = FrameReader(size_max)
    reader.feed(size_max.to_bytes(4, "big") + b"\xc0" * size_max)
    assert reader.next_body() == b"\xc0" * size_max
    reader.feed((size_max + 1).to_bytes(4, "big"))
    with pytest.raises(RemoteProtocolError, match=f"1 to {size_max} are allowed"):
        reader.next_body()


@pytest.mark.parametrize("size", [0, 2**31, 2**32 - 1])
def test_a_length_is_refused_before_its_body(size: int) -> None:
    reader = FrameReader()
    reader.feed(size.to_bytes(4, "big"))
    with pytest.raises(RemoteProtocolError):
        reader.next_body()
    assert reader.buffered_size == 4


def test_the_encoder_refuses_one_byte_over() -> None:
    room = FRAME_SIZE_MAX - (len(encode(Result(1, [bytes(70_000)]))) - 4 - 70_000)
    assert len(encode(Result(1, [bytes(room)]))) == FRAME_SIZE_MAX + 4
    with pytest.raises(LocalProtocolError, match=str(FRAME_SIZE_MAX)):
        encode(Result(1, [bytes(room + 1)]))


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_depth_at_the_edge_and_one_over() -> None:
    # The frame and the array of values are two of the levels.
    edge = Result(1, [nested(DEPTH_MAX - 2)])
    assert decode_frame(encode(edge)[4:]) == edge
    with pytest.raises(RemoteProtocolError, match=f"deeper than {DEPTH_MAX}"):
        decode_frame(encode(Result(1, [nested(DEPTH_MAX - 1)]))[4:])


def test_values_at_the_edge_and_one_over() -> None:
    edge = Result(1, [0] * (ELEMENTS_MAX - 4))
    assert decode_frame(encode(edge)[4:]) == edge
    with pytest.raises(LocalProtocolError, match=f"more than {ELEMENTS_MAX} values"):
        encode(Result(1, [0] * (ELEMENTS_MAX - 3)))


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (Ping(-1), "number"),
        (Ping(2**64), "number"),
        (Ping(True), "number"),
        (Hello([1], [], "\ud800"), "agent"),
        (Hello(["1"], [], ""), "versions"),  # type: ignore[list-item]
        (Request(1, 1, 0, [object()], {}), "Request"),
        (Request(1, 1, 0, [2**64], {}), "Request"),
        (Request(1, 1, 0, ["\udc00"], {}), "Request"),
        (Request(0, 1, 0, [], {}), "id"),
        (Error(1, 100, "argument", False, None, "x" * 4097, ""), "text"),
    ],
)
def test_the_encoder_refuses_what_does_not_fit(frame: Frame, text: str) -> None:
    with pytest.raises(LocalProtocolError, match=text):
        encode(frame)


def test_the_encoder_works_on_after_a_refusal() -> None:
    before = encode(Result(1, [b"a"]))
    with pytest.raises(LocalProtocolError):
        encode(Result(1, [b"secret", object()]))
    assert encode(Result(1, [b"a"])) == before


def test_threads_encode_at_the_same_time() -> None:
    """A frame is packed by a packer of its own: no thread sees bytes of another's frame."""
    wrong = []

    class Interrupting(dict[str, Any]):
        """Encodes another frame in the middle of being encoded, as another thread may."""

        def items(self) -> Any:
            inner.append(encode(Ping(7)))
            return super().items()

    inner: list[bytes] = []
    outer = encode(Result(1, [Interrupting(a=1), b"end"]))

    def work(number: int) -> None:
        frame = Result(number, [bytes([number]) * 100] * 5)
        if any(decode_frame(encode(frame)[4:]) != frame for _ in range(50)):
            wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert inner == [encode(Ping(7))]
    assert decode_frame(outer[4:]) == Result(1, [{"a": 1}, b"end"])


class CountingBuffer(bytearray):
    """A buffer that counts the bytes it copies out and moves."""

    touched = 0

    def __getitem__(self, index: Any) -> Any:
        item = super().__getitem__(index)
        self.touched += len(item)
        return item

    def __delitem__(self, index: Any) -> None:
        self.touched += len(self) - index.stop
        super().__delitem__(index)


@pytest.mark.parametrize("chunk_size", [1 << 20, 65536, 4096])
def test_many_small_frames_do_not_copy_the_buffer(chunk_size: int) -> None:
    data = encode(Ping(2**16))
    assert len(data) == 11
    stream = data * ((1 << 20) // len(data))
    reader = FrameReader()
    reader._buffer = buffer = CountingBuffer()
    frames = 0
    for start in range(0, len(stream), chunk_size):
        reader.feed(stream[start : start + chunk_size])
        while reader.next_body() is not None:
            frames += 1
    assert frames == len(stream) // len(data)
    assert buffer.touched <= 2 * len(stream)


def test_one_large_frame_in_small_pieces_is_not_copied_again_and_again() -> None:
    stream = encode(Result(1, [bytes(FRAME_SIZE_MAX - 64)]))
    reader = FrameReader(FRAME_SIZE_MAX)
    reader._buffer = buffer = CountingBuffer()
    for start in range(0, len(stream), 1000):
        assert reader.next_body() is None
        reader.feed(stream[start : start + 1000])
    assert reader.next_body() == stream[4:]
    assert buffer.touched <= len(stream) + 4 * (len(stream) // 1000 + 2)


@pytest.mark.parametrize("behind", [b"", b"\x00"])
def test_a_large_frame_is_not_held_after_it_was_taken(behind: bytes) -> None:
    reader = FrameReader(FRAME_SIZE_MAX)
    reader.feed(FRAME_SIZE_MAX.to_bytes(4, "big") + bytes(FRAME_SIZE_MAX) + behind)
    assert reader.next_body() is not None
    assert reader.buffered_size == len(behind)
    assert len(reader._buffer) == len(behind)
    assert reader._buffer.__alloc__() < 1024


@given(st.binary(max_size=200))
def test_garbage_bodies(body: bytes) -> None:
    try:
        frame = decode_frame(body)
    except RemoteProtocolError:
        return
    assert encode(frame)[4:] == body


@given(st.sampled_from(sorted(FRAME_EXAMPLES)), st.data())
def test_a_changed_byte(name: str, data: st.DataObject) -> None:
    body = bytearray(encode(FRAME_EXAMPLES[name])[4:])
    position = data.draw(st.integers(0, len(body) - 1))
    body[position] = data.draw(st.integers(0, 255))
    try:
        frame = decode_frame(bytes(body))
    except RemoteProtocolError:
        return
    assert encode(frame)[4:] == bytes(body)


@given(st.lists(st.sampled_from(sorted(FRAME_EXAMPLES)), max_size=5), st.data())
def test_any_cut_of_a_stream_gives_the_same_frames(names: list[str], data: st.DataObject) -> None:
    frames = [FRAME_EXAMPLES[name] for name in names]
    rest = b"".join(encode(frame) for frame in frames)
    reader, read = FrameReader(), []
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        reader.feed(rest[:size])
        rest = rest[size:]
        read += read_all(reader)
    assert read == frames
    assert reader.is_whole()


def test_repr_shows_no_bytes() -> None:
    reader = FrameReader()
    reader.feed(b"secret")
    assert repr(reader) == "FrameReader(6 bytes buffered, at most 4096 a frame)"
