"""How steps are run: device, precision, kernels, optimizer, random numbers."""
