"""Who is asking and whether they may: identities, client keys, their CA, decisions."""
