"""Inference: generation, scoring and Monte-Carlo dropout."""
