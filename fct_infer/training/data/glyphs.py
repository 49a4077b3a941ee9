"""The built-in image set: glyphs in many typefaces, rotated, scaled and coloured, on cluttered backgrounds.

Needs no download: the DejaVu fonts come with matplotlib. An image depends on the seed, its class, its split and its
number only, so a set of more classes or more images begins with the same pixels as a smaller one.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fct_infer.errors import MissingExtraError, UsageError
from fct_infer.training.data.images import LabelledImages

Split: TypeAlias = Literal["train", "test"]
UInt8Array: TypeAlias = NDArray[np.uint8]

IMAGE_SIZE = 32
# Letters that differ in size only, look alike in another alphabet, or become another when turned by 20 degrees are out.
_ALPHABETS = (
    "ABDEFGHJKLMNQRTUYZ",
    "abdefghknqrty",
    "2345678",
    "ΓΘΛΞΠΣΦΨΩαβδεζλμξπσω",
    "БЖИЦЧЭЮЯдлшъ",
    "&@#%?!€£§¶",
    "∞∫√≠≡∂∃∇",
    "♠♣♥♦★☀☎☺♫♻⚑⚙✂✈✿➤",
)
_FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
)
_FONT_SIZE = 48
_MASK_SIZE = 64  # glyphs are drawn at twice the final size and halved by a box filter, for smooth edges
_DISTRACTORS = 2  # small other glyphs in the background of every image
_STROKES = 1  # random lines across the background of every image
_SPLITS: tuple[Split, ...] = ("train", "test")


def _interleave(alphabets: tuple[str, ...]) -> tuple[str, ...]:
    """Order glyphs so that every prefix holds all alphabets in proportion to their size."""
    ranked = [((i + 0.5) / len(letters), glyph) for letters in alphabets for i, glyph in enumerate(letters)]
    return tuple(glyph for _, glyph in sorted(ranked, key=lambda pair: pair[0]))


GLYPHS = _interleave(_ALPHABETS)
"""Class names, one character each; class ``i`` of every set is ``GLYPHS[i]``."""


def render_glyphs(classes: int, images_per_class: int, split: Split, seed: int = 0) -> LabelledImages:
    """Render the first ``classes`` classes of the built-in set, 32 x 32 pixels, all images of a class together.

    Raises:
        UsageError: more classes than :data:`GLYPHS` has, fewer than one image a class, or an unknown split.
        MissingExtraError: Pillow or matplotlib is not installed.
    """
    if not 1 <= classes <= len(GLYPHS) or images_per_class < 1:
        raise UsageError(
            f"glyphs: got {classes} classes of {images_per_class} images, wanted 1 to {len(GLYPHS)} of at least 1"
        )
    if split not in _SPLITS:
        raise UsageError(f"glyphs: unknown split {split!r}, wanted one of {_SPLITS}")
    masks = _glyph_masks()
    everything = torch.cat(masks)
    images = np.empty((classes, images_per_class, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for label in range(classes):
        entropy = np.random.SeedSequence((seed, _SPLITS.index(split), label))
        images[label] = _render_class(masks[label], everything, images_per_class, entropy)
    labels = np.repeat(np.arange(classes, dtype=np.int64), images_per_class)
    return LabelledImages(images.reshape(-1, *images.shape[2:]), labels, GLYPHS[:classes])


def _glyph_masks() -> list[Tensor]:
    """Coverage of every glyph in the fonts that have it: (fonts, 64, 64) float32 in [0, 1], centred."""
    try:
        from matplotlib import get_data_path
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise MissingExtraError(error.name or "pillow", "train") from error
    folder = Path(get_data_path()) / "fonts" / "ttf"
    fonts = [ImageFont.truetype(folder / name, _FONT_SIZE) for name in _FONTS]

    def drawn(glyph: str) -> UInt8Array:
        canvases = []
        for font in fonts:
            left, top, right, bottom = font.getbbox(glyph)
            canvas = Image.new("L", (_MASK_SIZE, _MASK_SIZE), 0)
            origin = ((_MASK_SIZE - left - right) / 2, (_MASK_SIZE - top - bottom) / 2)
            ImageDraw.Draw(canvas).text(origin, glyph, fill=255, font=font)
            canvases.append(np.asarray(canvas))
        return np.stack(canvases)

    placeholder = drawn("\uffff")  # what a font shows for a glyph it lacks
    masks = []
    for glyph in GLYPHS:
        coverage = drawn(glyph)
        present = (coverage != placeholder).any(axis=(1, 2))
        masks.append(torch.from_numpy(coverage[present].astype(np.float32) / 255))
    return masks


def _render_class(own: Tensor, everything: Tensor, count: int, entropy: np.random.SeedSequence) -> UInt8Array:
    """(count, 32, 32, 3) uint8; each random stream is drawn image by image, so image i does not depend on ``count``."""
    shapes, clutter, colours, noise = (np.random.default_rng(child) for child in entropy.spawn(4))
    shape = _draw(shapes, count, 6)
    glyph = F.avg_pool2d(_place(_choose(own, shape[:, 0]), shape, (0.7, 1.0), 0.15, _MASK_SIZE), 2)
    drawn = _draw(clutter, count, _DISTRACTORS * 6 + _STROKES * 5)
    fragments, strokes = torch.split(drawn, [_DISTRACTORS * 6, _STROKES * 5], dim=1)
    layers = [
        _place(_choose(everything, draws[:, 0]), draws, (0.3, 0.55), 0.9, IMAGE_SIZE)
        for draws in fragments.chunk(_DISTRACTORS, dim=1)
    ]
    layers += [_stroke(draws) for draws in strokes.chunk(_STROKES, dim=1)]
    images = _colour(glyph, layers, _draw(colours, count, 4 + len(layers), 3))
    images += 0.04 * torch.from_numpy(noise.standard_normal(images.shape, dtype=np.float32))
    return images.clamp_(0, 1).mul_(255).round_().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _draw(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.random(shape, dtype=np.float32))


def _choose(masks: Tensor, draws: Tensor) -> Tensor:
    return masks[(draws * len(masks)).long().clamp_(max=len(masks) - 1)]


def _place(masks: Tensor, draws: Tensor, scales: tuple[float, float], shift: float, size: int) -> Tensor:
    """Scale, turn by up to 20 degrees, stretch and move masks by the last five of six draws in [0, 1).

    ``shift`` is the largest distance from the centre in half canvases. Returns (n, 1, size, size).
    """
    scale = scales[0] + (scales[1] - scales[0]) * draws[:, 1]
    angle = math.radians(40) * (draws[:, 2] - 0.5)
    stretch = 0.85 + 0.3 * draws[:, 3]
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    x, y = (shift * (2 * draws[:, column] - 1) for column in (4, 5))
    # grid_sample wants the inverse map, from the output's coordinates to the mask's.
    a, b, d, e = cos / stretch, sin / stretch, -sin * stretch, cos * stretch
    axis = (2 * torch.arange(size) + 1) / size - 1
    moved_x, moved_y = axis[None, None, :] - _per_image(x), axis[None, :, None] - _per_image(y)
    grid = torch.empty(len(masks), size, size, 2)
    grid[..., 0] = _per_image(a) * moved_x + _per_image(b) * moved_y
    grid[..., 1] = _per_image(d) * moved_x + _per_image(e) * moved_y
    return F.grid_sample(masks[:, None], grid, align_corners=False)


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None]


def _stroke(draws: Tensor) -> Tensor:
    """Coverage of one line segment each, 1 to 3 pixels wide: (n, 1, 32, 32)."""
    x0, y0, x1, y1 = (_per_image((draws[:, column] * 1.3 - 0.15) * IMAGE_SIZE) for column in range(4))
    axis = torch.arange(IMAGE_SIZE) + 0.5
    x, y, along_x, along_y = axis[None, None, :] - x0, axis[None, :, None] - y0, x1 - x0, y1 - y0
    nearest = ((x * along_x + y * along_y) / (along_x**2 + along_y**2).clamp(min=1e-6)).clamp_(0, 1)
    distance = torch.hypot(x - nearest * along_x, y - nearest * along_y)
    half_width = 0.5 + _per_image(draws[:, 4])
    coverage: Tensor = (half_width + 0.5 - distance).clamp_(0, 1)
    return coverage[:, None]


def _colour(glyph: Tensor, clutter: list[Tensor], draws: Tensor) -> Tensor:
    """Blend a gradient, the clutter and the glyph in random colours: (n, 3, 32, 32)."""
    is_dark = (draws[:, 3, :1] < 0.5).float()
    paper = _tint(draws[:, 0], 0.7 - 0.5 * is_dark, 0.5)
    ink = _tint(draws[:, 1], 0.15 + 0.65 * is_dark, 0.6)
    ramp, slopes = torch.linspace(-0.2, 0.2, IMAGE_SIZE), draws[:, 2, :2, None, None] - 0.5
    images = paper[:, :, None, None] + (slopes[:, :1] * ramp[None, :] + slopes[:, 1:] * ramp[:, None])
    for coverage, colour in zip(clutter, draws[:, 4:].unbind(1), strict=True):
        images = torch.lerp(images, colour[:, :, None, None], 0.4 * coverage)
    return torch.lerp(images, ink[:, :, None, None], 0.95 * glyph)


def _tint(draws: Tensor, brightness: Tensor, saturation: float) -> Tensor:
    """(n, 3) colours of a given mean brightness, so that ink and paper contrast and a person can read the glyph."""
    return brightness + saturation * (draws - draws.mean(dim=1, keepdim=True))
