"""The shell around the pure core: files, clocks and the terminal, and nothing that computes."""
