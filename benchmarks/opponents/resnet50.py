"""ResNet50 (He et al., CVPR 2016, stride in the 3x3 convolution): what backfilling pays for every image."""

from __future__ import annotations

from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.measure import alternate

STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # width, blocks, stride of the first
EXPANSION = 4


def convolution(d_in: int, d_out: int, size: int, stride: int = 1) -> nn.Sequential:
    """Return convolution and batch norm."""
    return nn.Sequential(
        nn.Conv2d(d_in, d_out, size, stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(d_out),
    )


class Bottleneck(nn.Module):
    def __init__(self, d_in: int, width: int, stride: int) -> None:
        super().__init__()
        d_out = EXPANSION * width
        self.body = nn.Sequential(
            convolution(d_in, width, 1),
            nn.ReLU(inplace=True),
            convolution(width, width, 3, stride),
            nn.ReLU(inplace=True),
            convolution(width, d_out, 1),
        )
        self.shortcut = nn.Identity() if stride == 1 and d_in == d_out else convolution(d_in, d_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.body(x) + self.shortcut(x))


def resnet50(embedding_dim: int = 128) -> nn.Sequential:
    """Return a ResNet50 that ends in an embedding; images are (n, 3, 224, 224) float32."""
    layers: list[nn.Module] = [convolution(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1)]
    d_in = 64
    for width, blocks, stride in STAGES:
        for block in range(blocks):
            layers.append(Bottleneck(d_in, width, stride if block == 0 else 1))
            d_in = EXPANSION * width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(d_in, embedding_dim)]
    return nn.Sequential(*layers)


@torch.inference_mode()
def images_per_second(precision: str, threads: int, batch: int = 16, rounds: int = 5) -> float:
    """Return the speed of the forward pass on random 224x224 images, in the memory format that is faster on CPUs."""
    torch.set_num_threads(threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    model = resnet50().eval().to(dtype).to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, 224, 224).to(dtype=dtype, memory_format=torch.channels_last)
    seconds = alternate({"resnet50": partial(model, images)}, rounds, min_seconds=0.0)
    return batch / median(seconds["resnet50"])
