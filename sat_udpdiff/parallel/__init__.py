"""Several processes on one sample: what each holds of the network and of the tokens.

`layout.py` says who works with whom, `sequence.py` shares the tokens out, `tensor.py` the weights,
`sampling.py` the branches of guidance and the pieces of a decode.
The network in `model/` stays single-device code; mixins that are added to it share tokens and
weights.
"""
