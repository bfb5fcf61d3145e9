"""A package, since some of its tests have the names of others'."""
