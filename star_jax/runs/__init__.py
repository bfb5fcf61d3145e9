"""What a run leaves on disk: its folder, its state, its records, and scores that are kept."""
