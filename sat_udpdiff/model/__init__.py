"""The network: CogVideoX on SAT, with the two mixins of the paper."""
