"""MaskGIT (Chang et al. 2022) over categorical latents, sampled by Draft-and-Revise (Lee et al. 2022)."""
