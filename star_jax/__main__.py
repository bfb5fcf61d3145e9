"""`python -m star_jax COMMAND`, the same as `star-jax COMMAND`."""

from star_jax.cli.main import command

if __name__ == "__main__":
    command()
