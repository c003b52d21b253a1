"""Modulation of text and video runs: against the plain formula, gradients included."""

import pytest
import torch
from torch import nn

from sat_udpdiff.model.modulation import gated_residual, modulated_norm

TEXT, VIDEO, SIZE = 3, 5, 8


def draw(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def per_token(text, video):
    """(b, d) of each run -> (b, n, d)."""
    return torch.cat(
        [text[:, None].expand(-1, TEXT, -1), video[:, None].expand(-1, VIDEO, -1)], dim=1
    )


def compare(out, expected, leaves):
    torch.testing.assert_close(out, expected)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).double()
    mine = torch.autograd.grad((out * weights).sum(), leaves)
    reference = torch.autograd.grad((expected * weights).sum(), leaves)
    for a, b in zip(mine, reference, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("batch", [1, 3])
def test_modulated_norm_is_its_formula(batch):
    norm = nn.LayerNorm(SIZE, eps=1e-5, dtype=torch.float64)
    with torch.no_grad():
        norm.weight += draw(SIZE, seed=1)
        norm.bias += draw(SIZE, seed=2)
    x = draw(batch, TEXT + VIDEO, SIZE, seed=3)
    shift_t, scale_t, shift_v, scale_v = (draw(batch, SIZE, seed=seed) for seed in range(4, 8))
    out = modulated_norm(
        x, norm=norm, text=(shift_t, scale_t), video=(shift_v, scale_v), text_length=TEXT
    )
    expected = norm(x) * (1 + per_token(scale_t, scale_v)) + per_token(shift_t, shift_v)
    compare(out, expected, [x, shift_t, scale_t, shift_v, scale_v, norm.weight, norm.bias])


@pytest.mark.parametrize("batch", [1, 3])
def test_gated_residual_is_its_formula(batch):
    x, update = (draw(batch, TEXT + VIDEO, SIZE, seed=seed) for seed in (1, 2))
    text_gate, video_gate = (draw(batch, SIZE, seed=seed) for seed in (3, 4))
    out = gated_residual(
        x, update=update, text_gate=text_gate, video_gate=video_gate, text_length=TEXT
    )
    compare(out, x + per_token(text_gate, video_gate) * update, [x, update, text_gate, video_gate])


def test_gated_residual_takes_an_expanded_gradient():
    x, update = (draw(2, TEXT + VIDEO, SIZE, seed=seed) for seed in (1, 2))
    gate = draw(2, SIZE, seed=3)
    gated_residual(
        x, update=update, text_gate=gate, video_gate=gate, text_length=TEXT
    ).sum().backward()
    torch.testing.assert_close(gate.grad, update.detach().sum(dim=1))
    torch.testing.assert_close(x.grad, torch.ones_like(x))


def test_gated_residual_keeps_no_update_for_frozen_gates():
    """LoRA freezes them; the update is as large as the tokens."""
    x, update = (draw(2, TEXT + VIDEO, SIZE, seed=seed) for seed in (1, 2))
    gate = draw(2, SIZE, seed=3).detach()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        out = gated_residual(x, update=update, text_gate=gate, video_gate=-gate, text_length=TEXT)
    assert max(tensor.numel() for tensor in kept) < update.numel()
    compare(out, x + per_token(gate, -gate) * update, [x, update])


def test_nothing_but_the_inputs_is_kept_for_the_backward_pass():
    """The normed tokens are as large as the input; keeping them costs a tenth of a block."""
    norm = nn.LayerNorm(SIZE, dtype=torch.float64)
    x = draw(1, 64, SIZE, seed=1)
    shift, scale = draw(1, SIZE, seed=2), draw(1, SIZE, seed=3)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (kept.__setitem__(t.untyped_storage().data_ptr(), t), t)[1], lambda t: t
    ):
        out = modulated_norm(
            x, norm=norm, text=(shift, scale), video=(shift, scale), text_length=TEXT
        )
    large = [t for t in kept.values() if t.untyped_storage().nbytes() >= x.nbytes]
    assert len(large) == 1
    assert large[0].untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert out.requires_grad
