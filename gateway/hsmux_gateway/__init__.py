"""The hsmux gateway: a Trio daemon between applications and hardware security modules."""
