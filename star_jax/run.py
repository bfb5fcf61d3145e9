"""`python -m star_jax.run`: active-learning experiments from a config file and flags."""

from star_jax.cli.run import command

if __name__ == "__main__":
    command()
