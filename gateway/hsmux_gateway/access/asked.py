"""What a call asks about, as a policy sees it: the resource, the contexts, the size of the data.

The resource is found as the handler will find it, from the same reference or envelope, and nothing
here waits, so a handler that looks its key up before it waits uses the key that was decided on.
"""

from collections.abc import Mapping
from typing import Any, Final

from hsmux_protocol.context import parse_context
from hsmux_protocol.envelope import HEADER_SIZE
from hsmux_protocol.errors import InvalidArgument, RemoteProtocolError
from hsmux_protocol.fields import Column
from hsmux_protocol.references import ALIAS_PREFIX, KeyReference, check_alias, format_key_id

from ..call import Call
from ..catalog import Catalog
from ..keys.batch_service import first_named, read_header
from ..keys.batches import read_column
from .patterns import Resource
from .policy import ITEMS

__all__ = ["CONTEXTS_MAX", "contexts_of", "is_own", "name_of", "resource_of", "size_of"]

CONTEXTS_MAX: Final = 256
"""Different contexts of a batch that policies look at: they are parsed in one go, before anything
is decided.
"""


def resource_of(call: Call, catalog: Catalog) -> Resource | None:
    """What a call acts on; None: nothing that a policy can name.

    Raises:
        InvalidArgument: It names nothing: there is no envelope where one should be.
    """
    kind = call.operation.resource
    if not kind or not call.arguments:
        return None
    if kind == "new key":
        return _new_key(_by_name(call))
    return catalog.resource_of(_named_key(call))


def name_of(call: Call) -> str:
    """The resource as the caller named it; empty: it named none."""
    if not call.operation.resource or not call.arguments:
        return ""
    if call.operation.resource == "new key":
        return _by_name(call)["alias"] or ""
    reference = call.arguments[0]
    if reference is None:
        return "the key of this envelope"
    return _spelling(reference)


def _spelling(reference: KeyReference) -> str:
    name = reference.alias and ALIAS_PREFIX + reference.alias
    version = "" if reference.version is None else f"@{reference.version}"
    return (name or format_key_id(reference.key_id or b"")) + version


def _by_name(call: Call) -> dict[str, Any]:
    if not call.arguments:
        return {}
    fields = call.operation.arguments
    return {field.name: value for field, value in zip(fields, call.arguments, strict=True)}


def _new_key(arguments: Mapping[str, Any]) -> Resource:
    alias, tags = arguments["alias"], arguments["tags"]
    try:
        aliases = () if alias is None else (check_alias(alias),)
    except ValueError as error:
        raise InvalidArgument(f"alias: {error}") from None
    return Resource(None, aliases, tuple(tags.items()))


def _named_key(call: Call) -> KeyReference:
    """The key that the first argument names, or the first envelope where that is left open."""
    reference = call.arguments[0]
    if isinstance(reference, KeyReference):
        return reference
    envelopes: bytes = call.arguments[-1]
    if not isinstance(call.operation.arguments[-1].type, Column):
        return KeyReference(read_header(envelopes).key_id, None, None)
    items = read_column(envelopes, call.operation.arguments[-1].name)
    return KeyReference(first_named(item[:HEADER_SIZE] for item in items), None, None)


def contexts_of(call: Call) -> tuple[Mapping[str, str], ...]:
    """The encryption contexts of a call, each once; none of a call that could not be read.

    Raises:
        InvalidArgument: One is malformed, or there are too many different ones to look at.
    """
    arguments = _by_name(call)
    if "context" not in arguments:
        return ()
    column = arguments.get("contexts")
    encoded = {arguments["context"]}
    if column is not None:
        encoded = set(read_column(column, "contexts"))
    if len(encoded) > CONTEXTS_MAX:
        raise InvalidArgument(
            f"contexts: a policy looks at them, and there are {len(encoded)} different ones; "
            f"at most {CONTEXTS_MAX} in a batch"
        )
    try:
        return tuple(map(parse_context, encoded))
    except RemoteProtocolError as error:
        raise InvalidArgument(f"contexts: {error}") from None


def is_own(call: Call) -> bool:
    """Whether a call is about the client key that its caller proved, and asks for no more than its
    operation lets callers have of that.
    """
    if call.operation.own != "client key" or not call.principal.client_key_id:
        return False
    arguments = _by_name(call)
    if not arguments or arguments.get("force"):
        return False
    return arguments["client_key_id"] in (None, call.principal.client_key_id)


def size_of(call: Call) -> int:
    """Bytes of the data, of the largest item in a batch."""
    fields = {field.name: field.type for field in call.operation.arguments}
    for name, value in _by_name(call).items():
        if name in ITEMS:
            is_column = isinstance(fields[name], Column)
            return max(map(len, read_column(value, name)), default=0) if is_column else len(value)
    return 0
