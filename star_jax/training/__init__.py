"""Training: losses, optimisers and the loop that fits one adapter."""
