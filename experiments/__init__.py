"""What is recorded in results/: the commands that recorded it, each typed as python -m experiments.<name>."""

import configuration.packages  # noqa: F401  (first: it says which packages are missing)
