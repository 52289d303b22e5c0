"""The `hsmux` command and the tools around it."""
