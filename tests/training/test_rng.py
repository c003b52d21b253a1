"""Training's randomness belongs to samples."""

import numpy as np
import torch

from sat_udpdiff.training.rng import Stream, generator, normal, uniform


def test_draws_do_not_depend_on_the_batch_they_are_made_in():
    together = normal([3, 4, 5], seed=1, stream=Stream.NOISE, shape=(2, 3))
    apart = [normal([n], seed=1, stream=Stream.NOISE, shape=(2, 3)) for n in (3, 4, 5)]
    assert together.equal(torch.cat(apart))
    assert together.dtype == torch.float32


def test_seed_stream_and_number_each_give_other_draws():
    keys = [(s, stream, n) for s in (0, 1) for stream in Stream for n in (0, 1, 2**40)]
    first = {generator(s, stream=stream, number=n).integers(2**63) for s, stream, n in keys}
    assert len(first) == len(keys)


def test_draws_are_those_of_every_earlier_run():
    # A change here would make every run irreproducible, whatever the reason.
    drawn = uniform([0, 7], seed=5, stream=Stream.TIMESTEP)
    assert drawn.tolist() == [0.2860064644047591, 0.4267627767630803]


def test_noise_is_standard_normal():
    noise = normal(range(64), seed=2, stream=Stream.VIDEO_LATENT, shape=(32, 32)).numpy()
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert abs(noise.std() - 1) < 0.01
    correlation = np.corrcoef(noise.reshape(64, -1))
    assert np.abs(correlation - np.eye(64)).max() < 0.2
