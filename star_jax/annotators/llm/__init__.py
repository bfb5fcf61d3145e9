"""A language model as annotator: what it is asked, what is kept of its answers, and who asks."""
