"""The embedded benchmark `skills`: a small model, its data and its task."""
