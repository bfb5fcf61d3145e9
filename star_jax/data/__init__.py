"""Data: example, prompt, tokens, batches of static shape."""
