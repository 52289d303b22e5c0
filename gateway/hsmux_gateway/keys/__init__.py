"""The Key Service: keys, their material, and what is done with them."""
