"""The wire protocol of hsmux, sans-IO: bytes in, events out; no sockets, no clock, no await.

PROTOCOL.md describes the format; the tables here are the source it is checked against.
"""

__version__ = "0.1.0"
