"""One run: what it consists of, its updates, and how it goes on."""
