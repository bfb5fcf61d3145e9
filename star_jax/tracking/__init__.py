"""What a person sees of a run while it works: the console, the time by phase, profiles, trackers."""
