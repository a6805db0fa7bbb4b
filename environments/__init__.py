"""Single environments, and the workers that they run in."""
