"""Label Studio as annotator: what is said to its server, and what its tasks and annotations mean."""
