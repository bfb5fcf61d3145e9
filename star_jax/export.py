"""`python -m star_jax.export`: base model and adapter as one checkpoint."""

from star_jax.cli.export import command

if __name__ == "__main__":
    command()
