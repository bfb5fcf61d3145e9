"""A local page on which people fill in the table of labels."""
