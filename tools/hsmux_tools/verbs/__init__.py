"""The code of the verbs: one module for verbs that share a subject, imported when one is used."""
