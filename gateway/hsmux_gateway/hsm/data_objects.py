"""Data objects: a few small values of the gateway's own that none but who has the PIN can touch.

They are private token objects of class CKO_DATA with the application "hsmux"; whoever puts one
there names its kind by the label. All of a kind are listed together, and one is named by its value:
a search by value alone is what some tokens do not do for private objects.

Not every token keeps them: NSS softokn refuses each template that says private or token, with
CKR_ATTRIBUTE_VALUE_INVALID. Nothing is ever changed in place, for there are tokens that lose an
object when that is cut short: a new one is made, read back, and only then the old one destroyed.
"""

import time
from typing import Any, Final

from pkcs11 import Attribute, ObjectClass

from . import softhsm
from .application import Application
from .failures import Failure
from .token import DATA_SIZE_MAX

__all__ = ["DataObjects"]

APPLICATION: Final = "hsmux"


def _template(label: str) -> dict[Attribute, Any]:
    return {
        Attribute.CLASS: ObjectClass.DATA,
        Attribute.TOKEN: True,
        Attribute.PRIVATE: True,
        Attribute.APPLICATION: APPLICATION,
        Attribute.LABEL: label,
    }


class DataObjects:
    """The data objects of one worker's token."""

    def __init__(self, application: Application) -> None:
        self._application = application

    def list_values(self, label: str) -> list[bytes]:
        """The values under a label, each once; one that is larger than any of ours is left out."""
        values = (value for _, value in self._found(label))
        return list(dict.fromkeys(value for value in values if len(value) <= DATA_SIZE_MAX))

    def put(self, label: str, value: bytes) -> int:
        """Keep a value, if it is not kept already; 1 if an object was made."""
        if len(value) > DATA_SIZE_MAX:
            raise Failure("input", 0, f"a data object of {len(value)} bytes")
        since = time.time()
        with softhsm.alone(self._is_softhsm):
            if value in self.list_values(label):
                return 0
            with self._application.translated("put data"):
                template = {**_template(label), Attribute.VALUE: value}
                self._application.work.create_object(template)
            self._application.note_objects()
            if self._is_softhsm:
                softhsm.make_durable(since)
        if value not in self.list_values(label):
            raise Failure("wrong", 0, "a data object that does not read back")
        return 1

    def remove(self, label: str, value: bytes) -> int:
        """Destroy the objects with a value; how many there were."""
        with softhsm.alone(self._is_softhsm):
            found = [each for each, kept in self._found(label) if kept == value]
            with self._application.translated("destroy"):
                for each in found:
                    each.destroy()
            self._application.note_objects()
            if self._is_softhsm:
                softhsm.make_durable(0)
        return len(found)

    @property
    def _is_softhsm(self) -> bool:
        return self._application.manufacturer.startswith(softhsm.MANUFACTURER)

    def _found(self, label: str) -> list[tuple[Any, bytes]]:
        with self._application.translated("find"):
            found = list(self._application.work.get_objects(_template(label)))
            return [(each, bytes(each[Attribute.VALUE])) for each in found]
