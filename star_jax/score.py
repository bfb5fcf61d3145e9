"""`python -m star_jax.score`: uncertainty scores of a file, without any training."""

from star_jax.cli.score import command

if __name__ == "__main__":
    command()
