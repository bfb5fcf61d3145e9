"""What `import star_jax` offers: thin objects over the functional core, for notebooks and scripts of one's own."""
