"""The training run: engine, loop, checkpoints, randomness, metrics."""
