"""`tools/dev bench`: how fast the gateway is, each figure a ratio of two things in one run."""
