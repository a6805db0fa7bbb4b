"""Scores of checkpoints, and how well world models predict."""
