"""Drawing pictures of data with Pillow alone: boxes, text, numbers as colours, a colour bar, and a whole file at the end.

Axes, boxes and images have straight edges, so nothing more is needed; a picture of four million pixels takes a tenth of a
second, and the same input gives the same bytes. The font, DejaVu Sans, comes with matplotlib, which is not loaded.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from functools import cache
from math import floor
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dataflow.lib.errors import TryLater

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right, bottom; the last two are the first that are outside."""
Floats: TypeAlias = NDArray[np.floating]

INK, GREY, RED, GREEN, BLUE, PALE_BLUE = "#1a1a1a", "#666666", "#c8102e", "#2e7d32", "#33658a", "#c9d8e3"
TEXT_PX = 12
MISSING_COLOUR = (150, 160, 160)
JPEG_QUALITY = 85

_MISSING = 255
_COLOURS = 255
_ANCHORS = """
    000004 050417 100a2e 1f0c47 300a5c 420a68 530e6d 63146e 731a6e 83206b 932667 a42c61 b33359
    c23b50 d04545 dd513a e75f2d f06e21 f67f13 fa9207 fca50a fbb81d f8cc36 f4e055 f2f27c fcffa4
"""
"""The colour map *inferno* (van der Walt and Smith, CC0) at 26 even places: brighter with power, evenly to the eye."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Which number gets the first colour, which the last, and what the colour bar says of it."""

    lowest: int
    highest: int
    step: int
    label: str
    missing: str


@dataclass(frozen=True, slots=True)
class Canvas:
    """An image to draw on, in units of ``scale`` pixels."""

    image: Image.Image
    draw: ImageDraw.ImageDraw
    scale: int

    def box(self, box: Box, *, fill: str | None = None, outline: str | None = None, width: float = 1) -> None:
        """A rectangle, at least one pixel wide and high; the outline lies within it."""
        left, top, right, bottom = (floor(each * self.scale + 0.5) for each in box)
        self.draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), fill, outline, round(width * self.scale))

    def text(
        self, x: float, y: float, text: str, *, size: float = TEXT_PX, anchor: str = "la", fill: str = INK, bold: bool = False
    ) -> float:
        """Text, anchored as Pillow names it; returns how wide it is."""
        font = _font(round(size * self.scale), bold)
        self.draw.text((x * self.scale, y * self.scale), text, fill, font, anchor)
        return font.getlength(text) / self.scale

    def upright(self, x: float, y: float, text: str, *, size: float = TEXT_PX) -> None:
        """Text that runs upwards, with its middle at x, y."""
        font = _font(round(size * self.scale), False)
        left, top, right, bottom = font.getbbox(text)
        mask = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
        ImageDraw.Draw(mask).text((1 - left, 1 - top), text, 255, font)
        turned = mask.transpose(Image.Transpose.ROTATE_90)
        corner = (round(x * self.scale - turned.width / 2), round(y * self.scale - turned.height / 2))
        self.image.paste(Image.new("RGB", turned.size, INK), corner, turned)

    def paste(self, image: Image.Image, left: float, top: float) -> None:
        """An image, pixel by pixel."""
        self.image.paste(image, (round(left * self.scale), round(top * self.scale)))

    def colour_bar(self, box: Box, scale: Scale, *, size: float = TEXT_PX, with_missing: bool) -> None:
        """The colours of a scale in a box, its numbers and label right of it; below it what the colour of no value means."""
        left, top, right, bottom = box
        height = round((bottom - top) * self.scale)
        ramp = np.linspace(scale.highest, scale.lowest, height)[:, None]
        self.paste(
            coloured(ramp, scale).resize((round((right - left) * self.scale), height), Image.Resampling.NEAREST), left, top
        )
        self.box((left - 1, top - 1, right + 1, bottom + 1), outline=INK)
        for number in range(scale.lowest, scale.highest + 1, scale.step):
            y = bottom - (bottom - top) * (number - scale.lowest) / (scale.highest - scale.lowest)
            self.box((right, y - 0.5, right + 5, y + 0.5), fill=INK)
            self.text(right + 8, y, str(number), anchor="lm", size=size)
        self.upright(right + size * 3.6, (top + bottom) / 2, scale.label, size=size)
        if with_missing:
            below = bottom + 50
            self.box((left, below, right, below + size), fill=f"#{bytes(MISSING_COLOUR).hex()}", outline=INK)
            self.text(right + 6, below + size / 2, scale.missing, anchor="lm", size=size - 1, fill=GREY)


def new_canvas(size: tuple[int, int], scale: int = 1) -> Canvas:
    """A white canvas of ``size`` units."""
    image = Image.new("RGB", (size[0] * scale, size[1] * scale), "white")
    return Canvas(image, ImageDraw.Draw(image), scale)


def text_width(text: str, size: float) -> float:
    """How wide bold text is, in pixels."""
    return _font(round(size), True).getlength(text)


def coloured(numbers: Floats, scale: Scale) -> Image.Image:
    """An image with a pixel for each of the numbers (rows, columns); NaN is grey."""
    share = (numbers - scale.lowest) / (scale.highest - scale.lowest)
    steps = np.nan_to_num(np.clip(share, 0, 1) * (_COLOURS - 1), nan=_MISSING)
    image = Image.fromarray(np.ascontiguousarray(np.rint(steps).astype(np.uint8)))
    image.putpalette(_palette())
    return image.convert("RGB")


def write(image: Image.Image, path: Path) -> None:
    """Write and sync a picture, as JPEG or PNG by what the name says, before a final ``.part``.

    A JPEG keeps its colours at full resolution: a single bright column must not be blurred into its neighbours.

    Raises:
        TryLater: it cannot be written.
    """
    try:
        with path.open("wb") as stream:
            if ".png" in path.suffixes:
                image.save(stream, "PNG")
            else:
                image.save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise TryLater(f"{path} cannot be written ({error.strerror or error}); no picture of its file was published") from error


@cache
def _palette() -> bytes:
    """The colours, and that of a missing number."""
    anchors = np.array([list(bytes.fromhex(each)) for each in _ANCHORS.split()])
    places = np.linspace(0, _COLOURS - 1, len(anchors))
    colours = np.stack([np.interp(np.arange(_COLOURS), places, anchors[:, part]) for part in range(3)], axis=1)
    return bytes(np.rint(np.vstack([colours, MISSING_COLOUR])).astype(np.uint8))


@cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    found = importlib.util.find_spec("matplotlib")
    if found is None or found.origin is None:
        raise TryLater("matplotlib is not installed: its font is needed for plots. Install dataflow with its extra [site]")
    path = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
    try:
        return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise TryLater(f"the font {path} cannot be read ({error}): install matplotlib anew") from error
