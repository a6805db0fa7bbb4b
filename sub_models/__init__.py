"""World model of STORM and GIT-STORM: encoder, sequence model, priors, heads."""
