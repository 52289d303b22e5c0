"""What Alembic runs for a migration: everything in the transaction of the connection it was
given, so a store is of one version or of the other.
"""

from alembic import context

from hsmux_gateway.store.schema import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
context.run_migrations()
