"""The commands: what their flags are, and what each does."""
