"""The table of docs/exit-codes.md, made from the command's own."""

from typing import Final

from hsmux_tools.failure import EXIT_CODES

from .sections import Section, table

__all__ = ["EXIT_CODE_SECTIONS"]


def _codes() -> str:
    rows = [
        (str(number), code.short, code.meaning, "; ".join(code.examples))
        for number, code in EXIT_CODES.items()
    ]
    return table(("code", "in short", "meaning", "for example"), rows)


EXIT_CODE_SECTIONS: Final[dict[str, Section]] = {"codes": _codes}
