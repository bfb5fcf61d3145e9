"""The decoder: one block for all families, its LoRA and dropout, decoding with a cache."""
