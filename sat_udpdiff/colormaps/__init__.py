"""Dense maps as colour videos, and back: entity ids (two colormaps) and depth.

Pure functions on one clip: `(t, h, w, 3)` uint8 for numpy, `(..., t, 3, h, w)` in [-1, 1] for
torch.
"""
