"""A whole experiment: what it refuses, what its runs share, and the shell that runs them."""
