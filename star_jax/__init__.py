"""star_jax: data-efficient fine-tuning of language models, STAR and beyond, in JAX/Flax."""

__version__ = "0.1.0"
