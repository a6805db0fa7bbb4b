"""World model of STORM and GIT-STORM.

world_models            the whole of it, with its loss: begin here
encoders, image, vector what turns observations into latents, and back
transformer_model       the sequence model; attention_blocks: its blocks, and the key/value cache
priors, torch_maskgit   STORM's prior, GIT-STORM's, and how a MaskGIT is sampled
mlp                     the heads; action_distributions: what an actor's outputs mean
functions_losses        symlog, two-hot, categoricals, KL, λ-return
batch                   what travels between the parts

convolutions, fast_forms and linear compute the same faster, in precision's dtype; storm_checkpoint reads the
original's files.
"""
