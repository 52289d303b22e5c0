"""What the C module raises."""

__all__ = ["ArenaFull", "InvalidSlot", "InvalidTag", "NativeError", "SelfTestFailed"]


class NativeError(Exception):
    """The base of everything the C module raises; the text says what to do."""


class InvalidTag(NativeError):
    """A ciphertext does not open. Never says why."""


class InvalidSlot(NativeError):
    """There is no key under this slot number: it was freed, or never made."""


class ArenaFull(NativeError):
    """No slot is free; free one and try again."""


class SelfTestFailed(NativeError, ImportError):
    """A known-answer test failed, or the backend that was demanded is not there.

    An ImportError too: the package cannot be imported then.
    """
