"""The other half of an autoencoder."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_START = 4  # pixels of a side of the first feature map
_SMALLEST = 16  # channels of the last feature map


class Decoder(nn.Module):
    """Embeddings back to images: (n, dim) -> (n, 3, height, width), about 0 to 1.

    A small feature map is made from the embedding, then doubled in size and thinned by half until it covers the image.
    """

    def __init__(self, dim: int, size: tuple[int, int], channels: int = 128) -> None:
        super().__init__()
        self._size, self._channels = size, channels
        self.start = nn.Linear(dim, channels * _START * _START)
        layers: list[nn.Module] = []
        side = _START
        while side < max(size):
            out = max(channels // 2, _SMALLEST)
            layers += [
                nn.Upsample(scale_factor=2),
                nn.Conv2d(channels, out, 3, padding=1, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(inplace=True),
            ]
            channels, side = out, 2 * side
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 3, 3, padding=1))

    def forward(self, embeddings: Tensor) -> Tensor:
        """See the class."""
        start = F.relu(self.start(embeddings)).view(-1, self._channels, _START, _START)
        images: Tensor = self.layers(start)
        if images.shape[2:] != self._size:
            images = F.interpolate(images, self._size, mode="bilinear", align_corners=False)
        return images + 0.5
