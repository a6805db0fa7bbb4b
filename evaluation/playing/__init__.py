"""Playing with a trained agent: the dream as an environment, and the page of play.py."""
