"""Pure functions of the diffusion: schedule, loss, guidance, samplers, noise."""
