"""What is recorded in results/: the commands that recorded it."""
