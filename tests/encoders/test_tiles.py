"""Pieces of a decode, made in any order, are diffusers' decode of the whole to the last bit."""

from dataclasses import replace

import pytest
import torch

from sat_udpdiff.config import VideoCodecConfig
from sat_udpdiff.encoders.vae import VideoCodec
from tests.small_codec import random_vae

CONFIG = VideoCodecConfig(
    weights="tests", scale_factor=0.7, spatial_compression=4, dtype="fp32", tiling=True
)


def make_codec(config: VideoCodecConfig) -> VideoCodec:
    return VideoCodec(random_vae(), config=config)


@pytest.fixture(scope="module")
def codecs() -> dict[str, VideoCodec]:
    return {
        "fp32": make_codec(CONFIG),
        "bf16": make_codec(replace(CONFIG, dtype="bf16")),
        "whole": make_codec(replace(CONFIG, tiling=False)),
    }


def latents(frames: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    # Channels of a larger tensor, as a video's are beside those of its dense map.
    return torch.randn(1, frames, 8, height, width, generator=generator)[:, :, 4:]


@pytest.mark.parametrize(
    ("name", "size", "count"),
    [
        ("fp32", (3, 8, 12), 4),
        ("fp32", (4, 7, 23), 6),
        ("fp32", (1, 5, 25), 4),
        ("fp32", (2, 6, 10), 1),
        ("bf16", (3, 8, 12), 4),
        ("whole", (5, 8, 12), 1),
    ],
)
def test_pieces_in_any_order_are_one_decode(codecs, name, size, count):
    codec, z = codecs[name], latents(*size)
    decode = codec.pieces(z)
    made = {piece: decode.decode(piece) for piece in reversed(range(len(decode)))}
    pieces = [made[piece] for piece in range(len(decode))]
    assert len(pieces) == count
    assert [piece.shape for piece in pieces] == decode.shapes
    assert {piece.dtype for piece in pieces} == {codec.dtype}
    joined, whole = decode.join(pieces), codec.decode(z)
    assert joined.shape == whole.shape == (1, 4 * size[0] - 3, 3, 4 * size[1], 4 * size[2])
    assert joined.equal(whole)


def test_every_tile_is_seen_in_the_video(codecs):
    decode = codecs["fp32"].pieces(latents(1, 8, 12))
    pieces = [decode.decode(piece) for piece in range(len(decode))]
    whole = decode.join([piece.clone() for piece in pieces])
    for number in range(len(pieces)):
        others = [piece.clone() for piece in pieces]
        others[number].zero_()
        assert not decode.join(others).equal(whole)


def test_latents_of_another_codec_are_refused(codecs):
    with pytest.raises(ValueError, match=r"expected \(b, t, 4, h, w\), got \(1, 1, 3, 8, 12\)"):
        codecs["fp32"].pieces(torch.zeros(1, 1, 3, 8, 12))
