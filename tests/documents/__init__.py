"""The parts of documents that are made from code, and how documents are read by tests.

A document has sections between two comments:

    <!-- begin limits: made by `python -m tests.documents --write` -->
    ...
    <!-- end limits -->

What stands between them is made from the tables of the code; everything else is written by hand.
"""

from typing import Final

from .access_tables import ACCESS_SECTIONS
from .configuration_tables import CONFIGURATION_SECTIONS
from .denial_tables import DENIAL_SECTIONS
from .exit_code_tables import EXIT_CODE_SECTIONS
from .protocol_tables import PROTOCOL_SECTIONS
from .sections import Section

__all__ = ["DOCUMENTS"]

DOCUMENTS: Final[dict[str, dict[str, Section]]] = {
    "protocol/PROTOCOL.md": PROTOCOL_SECTIONS,
    "docs/configuration.md": CONFIGURATION_SECTIONS,
    "docs/exit-codes.md": EXIT_CODE_SECTIONS,
    "docs/access.md": ACCESS_SECTIONS,
    "docs/denial-of-service.md": DENIAL_SECTIONS,
}
"""Documents with generated sections, by their path from the root."""
