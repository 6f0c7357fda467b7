"""Networks of many layers for images of 8 x 8 pixels, to train beside examples/classifier's."""

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Two convolutions with batch norm beside a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        same = channels == width and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return torch.relu(self.body(x) + self.shortcut(x))


class Transformer(nn.Module):
    """Reads an image as eight rows; four pre-norm encoder layers."""

    def __init__(self, width: int = 32, layers: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Linear(8, width)
        self.positions = nn.Embedding(8, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.1, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        rows = self.embedding(x.view(-1, 8, 8)) + self.positions.weight
        return self.head(self.encoder(rows).mean(dim=1))


class ResNet(nn.Sequential):
    """Twelve convolutions, eleven of them with batch norm."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(
            nn.Conv2d(1, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            Residual(width, width, 1),
            Residual(width, width, 1),
            Residual(width, 2 * width, 2),
            Residual(2 * width, 2 * width, 1),
            Residual(2 * width, 2 * width, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * width, 10),
        )


NETWORKS = {"resnet": ResNet, "transformer": Transformer}
