"""`python -m star_jax.report DIR`: writes DIR/report.html and DIR/learning_curve.png from the run folders in DIR."""

from star_jax.cli.report import command

if __name__ == "__main__":
    command()
