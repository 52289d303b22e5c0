"""What can go wrong with a token, typed; no PKCS#11 code or exception leaves this package."""

__all__ = [
    "InvalidInput",
    "KeyMissing",
    "KeyQuarantined",
    "PinRefused",
    "TokenBusy",
    "TokenDeadlineExceeded",
    "TokenError",
    "TokenExists",
    "TokenMisconfigured",
    "TokenOutcomeUnknown",
    "TokenUnavailable",
    "Unsupported",
]


class TokenError(Exception):
    """The base of everything a token raises; the text is for an operator."""


class TokenBusy(TokenError):
    """The token's queue is full.

    Attributes:
        retry_after_ms: When room is expected, in milliseconds.
    """

    def __init__(self, text: str, *, retry_after_ms: int) -> None:
        super().__init__(text)
        self.retry_after_ms = retry_after_ms


class TokenUnavailable(TokenError):
    """The token is away, or its breaker is open."""


class TokenMisconfigured(TokenError):
    """The module is none, or not exactly one token has the label; the text says what to do."""


class TokenExists(TokenError):
    """A token with that label is there already, and was left as it is."""


class TokenDeadlineExceeded(TokenError):
    """The deadline passed before the token answered."""


class TokenOutcomeUnknown(TokenError):
    """A worker was lost in the middle of a change: it may or may not have been done."""


class KeyMissing(TokenError):
    """The token has no object, or several, with this CKA_ID, class and type."""


class KeyQuarantined(TokenError):
    """An object did not prove to be the key it is taken for; nothing is done with it."""


class PinRefused(TokenError):
    """The token refused the PIN, or one is marked as refused; the text says what to do."""


class Unsupported(TokenError):
    """The token cannot do this; the text names what it can."""


class InvalidInput(TokenError):
    """The data cannot be processed by this key, whoever's fault that is not."""
