"""Every verb as one record: where its code is, and its line in `hsmux --help`.

The code of a verb is imported when that verb is used, so that `hsmux --help` and completion cost
no more than click itself.
"""

import importlib
from typing import TYPE_CHECKING, Final, NamedTuple

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["GROUPS", "SECTIONS", "VERBS", "Entry", "LazyGroup"]


class Entry(NamedTuple):
    """One verb.

    Attributes:
        path: As it is typed, such as "key create".
        module: The module of `hsmux_tools.verbs` that has it.
        attribute: The name of the `Verb` in that module.
        summary: Its line in the help of its group.
    """

    path: str
    module: str
    attribute: str
    summary: str


SECTIONS: Final[dict[str, tuple[Entry, ...]]] = {
    "Use keys": (
        Entry("encrypt", "cipher", "encrypt", "Encrypt a file or standard input."),
        Entry("decrypt", "cipher", "decrypt", "Decrypt what encrypt wrote."),
        Entry("sign", "signing", "sign", "Sign a file or standard input."),
        Entry("verify", "signing", "verify", "Verify a signature."),
        Entry("random", "cipher", "random", "Print random bytes."),
        Entry("inspect", "inspection", "inspect", "Explain an envelope, without key or gateway."),
    ),
    "Manage": (
        Entry("status", "status", "status", "Show what the gateway is and how it fares."),
        Entry("key create", "keys", "create", "Make a key."),
        Entry("key list", "keys", "list_keys", "List keys."),
        Entry("key show", "keys", "show", "Show one key, without its material."),
        Entry("key public", "keys", "public", "Print the public key of a signing key."),
        Entry("access-point create", "access", "create_access_point", "Make an access point."),
        Entry("access-point list", "access", "list_access_points", "List access points."),
        Entry("access-point show", "access", "show_access_point", "Show one access point."),
        Entry("access-point update", "access", "update_access_point", "Change an access point."),
        Entry(
            "access-point delete",
            "access",
            "delete_access_point",
            "Delete an access point.",
        ),
        Entry("policy put", "policies", "put", "Make a policy, or replace it."),
        Entry("policy list", "policies", "list_policies", "List policies."),
        Entry("policy show", "policies", "show", "Show one policy with its document."),
        Entry("policy delete", "policies", "delete", "Remove an unused policy."),
        Entry("policy test", "policies", "test", "Say what would be decided, and why."),
        Entry("policy explain", "policies", "explain", "Say why a request was decided so."),
        Entry("network-rule put", "networks", "put", "Make a network rule, or replace it."),
        Entry("network-rule list", "networks", "list_network_rules", "List network rules."),
        Entry("network-rule show", "networks", "show", "Show one network rule."),
        Entry(
            "network-rule delete",
            "networks",
            "delete",
            "Remove an unused network rule.",
        ),
        Entry("quorum set", "quorum", "set_quorum", "Set how many approvals are needed."),
        Entry("quorum show", "quorum", "show_quorum", "Show how many approvals are needed."),
        Entry(
            "request list",
            "quorum",
            "list_requests",
            "List requests that wait for approvals.",
        ),
        Entry("request show", "quorum", "show_request", "Show a request with its arguments."),
        Entry("request approve", "quorum", "approve", "Approve a request of another access point."),
        Entry("request withdraw", "quorum", "withdraw", "Forget a request, and its approvals."),
        Entry("client-key create", "access", "create_client_key", "Issue a client key."),
        Entry("client-key list", "access", "list_client_keys", "List client keys."),
        Entry("client-key show", "access", "show_client_key", "Show one client key."),
        Entry("client-key renew", "access", "renew_client_key", "Renew a client key."),
        Entry("client-key revoke", "access", "revoke_client_key", "Refuse a client key for ever."),
    ),
    "Run a gateway": (
        Entry("dev", "gateway", "dev", "Run a development gateway on this machine."),
        Entry("init", "gateway", "init", "Initialise the deployment a configuration describes."),
        Entry("serve", "gateway", "serve", "Serve until SIGTERM."),
        Entry("check-config", "gateway", "check_config", "Check a configuration file."),
        Entry("hsm probe", "hsm", "probe", "Say what a token can do, and try it."),
        Entry("hsm init-token", "hsm", "init_token", "Initialise an empty token."),
        Entry("hsm clear-pin", "hsm", "clear_pin", "Allow logins again after a refused PIN."),
        Entry("store status", "store", "status", "Say which version the store's tables have."),
        Entry("store migrate", "store", "migrate", "Bring an older store to this version."),
        Entry("audit tail", "audit", "tail", "Print the newest audit records, as JSON lines."),
        Entry("audit verify", "audit", "verify", "Verify an audit log, offline."),
        Entry("audit export", "audit", "export", "Print all audit records as JSON lines."),
        Entry("audit match", "audit", "match", "Print the audit records of a reference."),
    ),
    "This machine": (
        Entry("profile add", "profiles", "add", "Save how to reach a gateway."),
        Entry("profile list", "profiles", "list_profiles", "List profiles."),
        Entry("profile use", "profiles", "use", "Make a profile the default."),
        Entry("profile show", "profiles", "show", "Show one profile."),
        Entry("completion bash", "completion", "bash", "Print the completion script for bash."),
        Entry("completion zsh", "completion", "zsh", "Print the completion script for zsh."),
        Entry("completion fish", "completion", "fish", "Print the completion script for fish."),
    ),
}

VERBS: Final[dict[str, Entry]] = {
    entry.path: entry for section in SECTIONS.values() for entry in section
}

GROUPS: Final[dict[str, str]] = {
    "key": "Make, list and show keys.",
    "access-point": "Access points: the identities of applications.",
    "policy": "Policies: what access points may do.",
    "network-rule": "Network rules: named lists of networks.",
    "quorum": "How many must approve changes of administrators.",
    "request": "Requests that wait for approvals.",
    "client-key": "Client keys: the certificates applications connect with.",
    "audit": "The chained audit log, or a copy of it.",
    "store": "The store's tables, on the gateway's machine.",
    "hsm": "Tokens, on the gateway's machine.",
    "profile": "Saved ways to reach a gateway.",
    "completion": "Completion scripts for shells.",
}


class LazyGroup(click.Group):
    """A group whose verbs come from the table and are imported when used.

    Args:
        name: The group's name, empty for the command itself.
    """

    def __init__(self, name: str, **attributes: object) -> None:
        super().__init__(name, **attributes)  # type: ignore[arg-type]
        self._prefix = f"{name} " if name else ""

    def _children(self, entries: tuple[Entry, ...]) -> dict[str, str]:
        """Names of this group's members among some verbs, with their lines."""
        children = {}
        for entry in entries:
            if entry.path.startswith(self._prefix):
                name, _, deeper = entry.path.removeprefix(self._prefix).partition(" ")
                children[name] = GROUPS[name] if deeper else entry.summary
        return children

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._children(tuple(VERBS.values())))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = VERBS.get(self._prefix + cmd_name)
        if entry is not None:
            module = importlib.import_module(f"hsmux_tools.verbs.{entry.module}")
            command: click.Command = getattr(module, entry.attribute)
            return command
        if not self._prefix and cmd_name in GROUPS:
            return LazyGroup(cmd_name, help=GROUPS[cmd_name])
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it; of a word that is none of the members, the one that was meant."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            ctx.fail(f"No such command {name!r}{self._meant(ctx, name)}")
        return super().resolve_command(ctx, args)

    def _meant(self, ctx: click.Context, name: str) -> str:
        """What to say of an unknown word: which one was probably meant, or which there are."""
        import difflib

        known = self.list_commands(ctx)
        near = difflib.get_close_matches(name, known, 1)
        if near:
            return f"; did you mean {near[0]!r}?"
        if self._prefix:
            return f"; there are {', '.join(known)}."
        nouns = [path for path in VERBS if path.split()[-1] == name]
        return f"; there is {', '.join(f'`hsmux {path}`' for path in nouns)}." if nouns else "."

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        """Members from the table, for the same reason, and options."""
        from click.shell_completion import CompletionItem

        children = self._children(tuple(VERBS.values()))
        return [
            *(
                CompletionItem(n, help=line)
                for n, line in children.items()
                if n.startswith(incomplete)
            ),
            *click.Command.shell_complete(self, ctx, incomplete),
        ]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table's lines, where click would import every verb to ask it for its own."""
        for title, entries in SECTIONS.items():
            children = self._children(entries)
            if children:
                with formatter.section(title):
                    formatter.write_dl(list(children.items()))
