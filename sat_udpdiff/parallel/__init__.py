"""Several processes on one sample: what each holds of the network and of the tokens.

`layout.py` says who works with whom, `sequence.py` shares the tokens out, `tensor.py` the weights.
The network in `model/` stays single-device code; both are mixins that are added to it.
"""
