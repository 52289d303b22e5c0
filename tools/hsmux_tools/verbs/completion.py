"""`hsmux completion bash|zsh|fish`."""

from typing import Final

import click
from click.shell_completion import get_completion_class

from ..output import write_output
from ..settings import Verb

__all__ = ["bash", "fish", "zsh"]

PROGRAM: Final = "hsmux"
VARIABLE: Final = "_HSMUX_COMPLETE"
"""What click's completion looks at, made from the program's name."""


def _verb(shell: str, directory: str, file: str) -> Verb:
    example = f"mkdir -p {directory} && hsmux completion {shell} > {directory}/{file}"

    def print_script() -> None:
        root = click.get_current_context().find_root().command
        completion = get_completion_class(shell)
        if completion is None:
            raise click.UsageError(f"this version of click does not know {shell}")
        write_output(completion(root, {}, PROGRAM, VARIABLE).source().encode(), None)

    return Verb(
        shell,
        callback=print_script,
        help=f"Print the completion script for {shell}.",
        examples=[example],
    )


bash = _verb("bash", "~/.local/share/bash-completion/completions", "hsmux")
zsh = _verb("zsh", "~/.zfunc", "_hsmux")
fish = _verb("fish", "~/.config/fish/completions", "hsmux.fish")
