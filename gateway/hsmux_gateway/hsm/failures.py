"""How an operation fails inside a worker."""

__all__ = ["Ending", "Failure"]


class Failure(Exception):
    """An operation failed.

    Attributes:
        kind: A class of `codes`, or one of the worker's own: "input" (refused without asking the
            token), "missing" (no such object), "quarantine" (an object is not the key it is taken
            for), "wrong" (an output cannot be right), "doubt" (a change may have been done or not),
            "deadline", "operator" (somebody must correct the configuration or the token).
        code: The return code, or 0.
        text: For the log.
    """

    def __init__(self, kind: str, code: int, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.code = code
        self.text = text


class Ending(Failure):
    """The worker cannot go on: the token is away, or it has no session left for this worker.

    Attributes:
        kind: "token", "sessions", or "single" when its only session has to be closed.
    """
