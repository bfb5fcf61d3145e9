"""Models: pure functions of (variables, tokens, keys)."""
