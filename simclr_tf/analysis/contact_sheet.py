"""Contact sheets: labeled grids of images, as PNG files."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_PAPER, _INK, _FAINT = (255, 255, 255), (32, 33, 36), (110, 113, 120)
_GAP, _MARGIN, _FRAME = 6, 12, 3
_TEXT = 13


class Cell(NamedTuple):
    """One picture of a sheet.

    Attributes:
      image: [H, W, 3] uint8, or floating in [0, 1].
      caption: text below the image; cut to fit.
      frame: color of a frame around the image, (red, green, blue) in 0..255, or None for no frame.
    """

    image: np.ndarray
    caption: str = ""
    frame: tuple[int, int, int] | None = None


# Limits of a picture's side on a sheet, for `checks.whole`.
CELL_PIXELS = {"least": 16, "most": 1024}


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Converts floating-point pixels in [0, 1] to uint8; uint8 pixels stay as they are.

    >>> to_uint8(np.float32([[[0.0, 0.5, 1.0]]])).tolist()
    [[[0, 128, 255]]]
    """
    image = np.asarray(image)
    return image if image.dtype == np.uint8 else np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def png(image: Image.Image | np.ndarray) -> bytes:
    """Encodes a picture, or [H, W, 3] pixels, as PNG."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(to_uint8(image))
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()


def draw(
    rows: Sequence[Sequence[Cell]],
    *,
    columns: Sequence[str] = (),
    names: Sequence[str] = (),
    title: str = "",
    cell_pixels: int = 96,
) -> Image.Image:
    """Draws images in a grid.

    Args:
      rows: pictures of each row; rows may differ in length. Each picture keeps its proportions.
      columns: text above each column.
      names: text to the left of each row.
      title: text at the top.
      cell_pixels: side of a cell in pixels. Small images are enlarged pixel by pixel, large ones averaged.

    Returns:
      An RGB picture.
    """
    font = ImageFont.load_default(size=_TEXT)
    heading = ImageFont.load_default(size=_TEXT + 4)
    line = _TEXT + 5
    longest = int(max([font.getlength(name) for name in names], default=0))
    left = _MARGIN + (min(longest, 2 * cell_pixels) + 2 * _GAP if names else 0)
    top = _MARGIN + (line + 10 if title else 0) + (line if columns else 0)
    caption = line if any(cell.caption for row in rows for cell in row) else 0
    step_x, step_y = cell_pixels + _GAP, cell_pixels + _GAP + caption
    count = max([len(row) for row in rows] + [len(columns)], default=0)
    width = max(left + count * step_x - _GAP, int(heading.getlength(title)) + _MARGIN) + _MARGIN
    sheet = Image.new("RGB", (width, top + len(rows) * step_y - _GAP + _MARGIN), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, _MARGIN - 4), _plain(title), _INK, heading)
    for x, text in enumerate(columns):
        pen.text((left + x * step_x, top - line), _cut(text, font, cell_pixels), _INK, font)
    for y, row in enumerate(rows):
        if y < len(names):
            text = _cut(names[y], font, left - _MARGIN - _GAP)
            pen.text((_MARGIN, top + y * step_y + (cell_pixels - line) // 2), text, _INK, font)
        for x, cell in enumerate(row):
            corner = (left + x * step_x, top + y * step_y)
            _place(sheet, pen, cell, corner, cell_pixels)
            pen.text((corner[0], corner[1] + cell_pixels + 1), _cut(cell.caption, font, cell_pixels), _FAINT, font)
    return sheet


def _place(sheet: Image.Image, pen: ImageDraw.ImageDraw, cell: Cell, corner: tuple[int, int], side: int) -> None:
    picture = Image.fromarray(to_uint8(cell.image))
    scale = side / max(picture.size)
    size = tuple(max(1, round(length * scale)) for length in picture.size)
    picture = picture.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX)
    x, y = (start + (side - length) // 2 for start, length in zip(corner, size))
    sheet.paste(picture, (x, y))
    if cell.frame is not None:
        pen.rectangle([x, y, x + size[0] - 1, y + size[1] - 1], outline=cell.frame, width=_FRAME)


def _plain(text: str) -> str:
    """Returns text that Pillow's built-in font can draw: without accents, and with "?" for letters that it lacks."""
    parts = unicodedata.normalize("NFKD", " ".join(text.split()))
    return "".join(letter if letter.isascii() else "?" for letter in parts if not unicodedata.combining(letter))


def _cut(text: str, font: ImageFont.FreeTypeFont, pixels: int) -> str:
    """Shortens a text to a width in pixels."""
    text = _plain(text)
    if font.getlength(text) <= pixels:
        return text
    while text and font.getlength(text + "...") > pixels:
        text = text[:-1]
    return text + "..."
