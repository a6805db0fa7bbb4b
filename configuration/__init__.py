"""Settings of a run: their schema, their files and the command line."""
