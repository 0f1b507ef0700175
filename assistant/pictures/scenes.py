"""Scenes: which drawings lie on one canvas, and their pixels. The same scene gives the same pixels.

Knows nothing of names and questions.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from assistant.pictures.packages import SIDE, drawing_path
from assistant.pictures.restyling import restyled, with_hues_turned
from assistant.pictures.things import Style

MOST = 6  # things on one canvas
DOMINANT = 0.55  # share of a drawing's pixels from which on its colour is asked for
ALSO = 0.25  # share from which on another colour counts as right too
NEAR = 90  # a background nearer to the drawing than this, in RGB, is chosen again
# how many columns and rows of cells hold so many things; each cell holds one
GRIDS = {
    1: ((1, 1),),
    2: ((2, 1), (1, 2), (2, 2)),
    3: ((2, 2), (3, 1)),
    4: ((2, 2),),
    5: ((3, 2), (2, 3)),
    6: ((3, 2), (2, 3)),
}
# hue in degrees up to which a colour is called so; "" where people differ
WARM = ((12, "red"), (18, ""), (36, "orange"), (40, ""), (45, "yellow"), (345, ""), (361, "red"))
COLD = (
    *((65, "yellow"), (75, ""), (160, "green"), (180, ""), (250, "blue")),
    *((258, ""), (295, "purple"), (345, "pink")),
)
Box = tuple[float, float, float]  # centre x and y, and the side of the square that a drawing fits into


@dataclass(frozen=True)
class Scene:
    """`parts`: (number of the thing, code point) of each drawing, all in one style.

    `restyled`: they are changed as if another hand had drawn them; `turned`: their hues, so many degrees on.
    """

    name: str
    style: str
    parts: tuple[tuple[int, str], ...]
    seed: str
    restyled: bool = False
    turned: int = 0

    @property
    def things(self) -> list[int]:
        """Each thing once, in the order of the parts."""
        return list(dict.fromkeys(number for number, _ in self.parts))

    def colours(self, style: Style) -> tuple[str, ...]:
        """Of the first drawing: colours_of()."""
        return colours_of(style, self.parts[0][1], self.turned)


def draw_scene(scene: Scene, style: Style) -> Any:
    """A PIL image, RGB, 224 × 224."""
    from PIL import ImageEnhance, ImageFilter

    source = random.Random(scene.seed)
    sprites = [sprite(style, code, scene.turned) for _, code in scene.parts]
    if scene.restyled:
        sprites = [restyled(drawing, f"{scene.seed}/restyled") for drawing in sprites]
    canvas, boxes = _laid_out(scene, style, source)
    for drawing, (x, y, size) in zip(sprites, boxes, strict=True):
        _paste(canvas, drawing, x, y, size, source)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        canvas = enhance(canvas).enhance(source.uniform(0.85, 1.15))
    if source.random() < 0.15:
        canvas = canvas.filter(ImageFilter.GaussianBlur(source.uniform(0.4, 1.2)))
    return canvas


def boxes_of(scene: Scene, style: Style) -> list[Box]:
    """Where each part of the picture lies, in pixels of its 224."""
    return _laid_out(scene, style, random.Random(scene.seed))[1]


def _laid_out(scene: Scene, style: Style, source: random.Random) -> tuple[Any, list[Box]]:
    """The background, and where each part is put on it."""
    canvas = _background(source, [mean_colour(style, code, scene.turned) for _, code in scene.parts])
    return canvas, _cells(len(scene.parts), source) if len(scene.parts) > 1 else [_anywhere(source)]


@lru_cache(maxsize=1024)
def sprite(style: Style, code: str, turned: int = 0) -> Any:
    """The drawing without its empty border, RGBA, its hues turned by so many degrees."""
    from PIL import Image

    image = Image.open(drawing_path(style, code)).convert("RGBA")
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha > 16)).getbbox()
    image = image.crop(box) if box else image
    return with_hues_turned(image, turned) if turned else image


def _anywhere(source: random.Random) -> Box:
    """Where a single thing lies; up to an eighth of it may lie outside."""
    size = SIDE * source.uniform(0.5, 1.0)
    slack = max(0.0, (SIDE - size) / 2) + size / 8 * source.random()
    return SIDE / 2 + source.uniform(-slack, slack), SIDE / 2 + source.uniform(-slack, slack), size


def _cells(count: int, source: random.Random) -> list[Box]:
    """Where each of several things lies: in cells of a grid, so that none covers another."""
    columns, rows = source.choice(GRIDS[count])
    wide, high = SIDE / columns, SIDE / rows
    chosen = sorted(source.sample(range(columns * rows), count))
    boxes = []
    for cell in chosen:
        size = min(wide, high) * source.uniform(0.65, 0.9)
        x = (cell % columns + 0.5) * wide + source.uniform(-1, 1) * (wide - size) / 2
        y = (cell // columns + 0.5) * high + source.uniform(-1, 1) * (high - size) / 2
        boxes.append((x, y, size))
    return boxes


def _paste(canvas: Any, drawing: Any, x: float, y: float, size: float, source: random.Random) -> None:
    """The drawing fits into a square of `size` around (x, y) after it is turned."""
    from PIL import Image, ImageOps

    if source.random() < 0.5:
        drawing = ImageOps.mirror(drawing)
    angle = source.gauss(0, 8) if source.random() < 0.8 else source.uniform(-35, 35)
    turned = drawing.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    factor = size / max(turned.size)
    shape = max(1, round(turned.width * factor)), max(1, round(turned.height * factor))
    turned = turned.resize(shape, Image.Resampling.LANCZOS)
    canvas.paste(turned, (round(x - shape[0] / 2), round(y - shape[1] / 2)), turned)


def _background(source: random.Random, colours: list[tuple[int, ...]]) -> Any:
    """White, plain, a gradient or soft patches, in colours from which the drawings stand out."""
    from PIL import Image

    kind = source.choices(("white", "plain", "gradient", "patches", "stripes"), (30, 25, 15, 22, 8))[0]
    near_white = any(math.dist(colour, (255, 255, 255)) < NEAR for colour in colours)
    if kind == "white" and not near_white:
        return Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    first = _clear_colour(source, colours)
    if kind in ("white", "plain"):
        return Image.new("RGB", (SIDE, SIDE), first)
    if kind == "gradient":
        small = Image.new("RGB", (2, 2))
        small.putdata([first, _shade(first, source), _shade(first, source), first])
        return small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    count = source.randint(3, 9)
    small = Image.new("RGB", (count, count if kind == "patches" else 1))
    small.putdata([_shade(first, source) for _ in range(small.width * small.height)])
    smooth = Image.Resampling.BICUBIC if kind == "patches" else Image.Resampling.NEAREST
    return small.resize((SIDE, SIDE), smooth)


def _clear_colour(source: random.Random, colours: list[tuple[int, ...]]) -> tuple[int, int, int]:
    """Light more often than not; the clearest of a few tries when none is clear."""
    tries = []
    for _ in range(8):
        low = 140 if source.random() < 0.7 else 0
        tried = source.randint(low, 255), source.randint(low, 255), source.randint(low, 255)
        distance = min(math.dist(tried, colour) for colour in colours)
        if distance >= NEAR:
            return tried
        tries.append((distance, tried))
    return max(tries)[1]


def _shade(colour: tuple[int, int, int], source: random.Random) -> tuple[int, ...]:
    return tuple(max(0, min(255, part + source.randint(-28, 28))) for part in colour)


@cache
def mean_colour(style: Style, code: str, turned: int = 0) -> tuple[int, ...]:
    """The mean of a drawing's opaque pixels, RGB."""
    pixels = list(_opaque(style, code, turned))
    return tuple(sum(part) // len(pixels) for part in zip(*pixels, strict=True))


def _opaque(style: Style, code: str, turned: int) -> Iterator[tuple[int, int, int]]:
    image = sprite(style, code, turned).resize((48, 48))
    data = image.tobytes()
    for start in range(0, len(data), 4):
        red, green, blue, alpha = data[start : start + 4]
        if alpha > 128:
            yield red, green, blue


@cache
def colours_of(style: Style, code: str, turned: int = 0) -> tuple[str, ...]:
    """The colour that most of a drawing has, then others that cover much of it; empty when none dominates."""
    pixels = list(_opaque(style, code, turned))
    shares: dict[str, int] = {}
    for pixel in pixels:
        named = colour_name(*pixel)
        shares[named] = shares.get(named, 0) + 1
    ordered = sorted(shares, key=lambda named: -shares[named])
    if not ordered or shares[ordered[0]] < DOMINANT * len(pixels) or not ordered[0]:
        return ()
    return (ordered[0], *(c for c in ordered[1:] if c and shares[c] >= ALSO * len(pixels)))


def colour_name(red: int, green: int, blue: int) -> str:
    """The everyday name of an RGB colour; "" for those that people name differently."""
    high, low = max(red, green, blue), min(red, green, blue)
    spread = high - low
    if high < 56:
        return "black"
    saturation, hue = spread / high, _hue(red, green, blue, high, spread) if spread else 0.0
    # a bluish grey is still called grey; what lies next to black or white is called either
    if spread < 24 or saturation < (0.24 if 180 <= hue < 250 else 0.12):
        return "white" if low > 224 else "grey" if 96 <= high < 196 else ""
    if hue < 45 or hue >= 345:
        return _warm(hue, saturation, high)
    return next(named for bound, named in COLD if hue < bound)


def _warm(hue: float, saturation: float, high: int) -> str:
    """Red to yellow, where the dark ones are brown and the pale ones pink or skin."""
    if 8 <= hue < 45 and high < 205:
        return "brown" if saturation > 0.3 else ""
    if saturation < 0.42:
        return "pink" if hue >= 345 or hue < 12 else ""
    return next(named for bound, named in WARM if hue < bound)


def _hue(red: int, green: int, blue: int, high: int, spread: int) -> float:
    if high == red:
        return 60 * ((green - blue) / spread % 6)
    return 60 * ((blue - red) / spread + 2) if high == green else 60 * ((red - green) / spread + 4)
