"""Where TLS records begin and end, so that a step of decrypting can be bounded by their number.

What a record costs has little to do with its size: one that changes keys costs as much as
decrypting some 50 KiB, and carries nothing. OpenSSL works through all it is given before it returns
when they carry nothing, so it must be given only so many. Each record says its length in its clear
header, which is all that is looked at here; whether it is a record at all is OpenSSL's to say.
"""

from typing import Final

__all__ = ["RecordBorders"]

_HEADER_SIZE: Final = 5
_LENGTH: Final = slice(3, 5)


class RecordBorders:
    """Follows one direction of a TLS connection from record to record."""

    def __init__(self) -> None:
        self._body_left = 0
        self._header = b""

    def __repr__(self) -> str:
        return f"RecordBorders({self._body_left} bytes to the next)"

    def advance(self, data: memoryview, records_max: int) -> tuple[int, int]:
        """Go on to the end of `records_max` records that begin here, or of the data.

        Args:
            data: What follows on the bytes passed before.
            records_max: At least one.

        Returns:
            How many bytes of `data` were passed, and how many records' headers ended in them.
        """
        position, size, records = self._body_left, len(data), 0
        while records < records_max and position < size:
            header_size = _HEADER_SIZE - len(self._header)
            header = self._header + bytes(data[position : position + header_size])
            position += header_size
            if len(header) < _HEADER_SIZE:
                self._header = header
                self._body_left = 0
                return size, records
            self._header = b""
            records += 1
            position += int.from_bytes(header[_LENGTH], "big")
        self._body_left = max(0, position - size)
        return min(position, size), records
