"""Check the generated sections of all documents, or write them with `--write`."""

import sys

from . import DOCUMENTS
from .sections import ROOT, check, render


def main(arguments: list[str]) -> int:
    """The exit code."""
    stale = []
    for name, sections in DOCUMENTS.items():
        path = ROOT / name
        if arguments == ["--write"]:
            path.write_text(render(path.read_text(encoding="utf-8"), sections), encoding="utf-8")
        stale += [f"{name}: {section}" for section in check(path, sections)]
    for line in stale:
        print(f"{line} is not what the code makes: run with --write and look at the change")
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
