"""A drawing as another hand would have made it: few styles are there to learn from, others are asked about.

Hues stay, for colours are asked for too, unless they are turned by a known angle.
"""

import random
from typing import Any


def restyled(drawing: Any, seed: str) -> Any:
    """The drawing [PIL, RGBA] after up to two changes; one seed changes all drawings of a canvas alike."""
    source = random.Random(seed)
    changes = (_flattened, _posterized, _outlined, _shaded, _coloured)
    for change in source.sample(changes, source.randint(0, 2)):
        drawing = change(drawing, source)
    return drawing


def _flattened(drawing: Any, source: random.Random) -> Any:
    """Small details go, as in a paper cut."""
    from PIL import ImageFilter

    flat = drawing.convert("RGB").filter(ImageFilter.MedianFilter(source.choice((5, 7, 9))))
    return _with_colours(drawing, flat)


def _posterized(drawing: Any, source: random.Random) -> Any:
    from PIL import ImageOps

    return _with_colours(drawing, ImageOps.posterize(drawing.convert("RGB"), source.choice((2, 3))))


def _outlined(drawing: Any, source: random.Random) -> Any:
    """A dark line around the whole, as in a comic."""
    from PIL import Image, ImageFilter

    width = source.choice((5, 7, 9, 11))
    room = Image.new("RGBA", (drawing.width + 2 * width, drawing.height + 2 * width))
    room.paste(drawing, (width, width))
    grown = room.getchannel("A").filter(ImageFilter.MaxFilter(width))
    line = Image.new("RGBA", room.size, (source.randint(0, 60),) * 3 + (255,))
    line.putalpha(grown)
    return Image.alpha_composite(line, room)


def _shaded(drawing: Any, source: random.Random) -> Any:
    """Light from one side, or from none: a gradient over the whole."""
    from PIL import Image, ImageChops

    small = Image.new("L", (2, 2))
    small.putdata([source.randint(150, 255) for _ in range(4)])
    light = small.resize(drawing.size, Image.Resampling.BICUBIC)
    lit = ImageChops.multiply(drawing.convert("RGB"), Image.merge("RGB", [light] * 3))
    return _with_colours(drawing, lit)


def _coloured(drawing: Any, source: random.Random) -> Any:
    """Paler or stronger, darker or lighter."""
    from PIL import ImageEnhance

    colours = ImageEnhance.Color(drawing.convert("RGB")).enhance(source.uniform(0.7, 1.6))
    return _with_colours(drawing, ImageEnhance.Brightness(colours).enhance(source.uniform(0.75, 1.15)))


def with_hues_turned(drawing: Any, degrees: int) -> Any:
    """The drawing [PIL, RGBA] in other colours, so that no colour is known by the thing that has it."""
    from PIL import Image

    hue, saturation, value = drawing.convert("RGB").convert("HSV").split()
    turned = hue.point(lambda level: (level + round(degrees * 256 / 360)) % 256)
    return _with_colours(drawing, Image.merge("HSV", (turned, saturation, value)))


def _with_colours(drawing: Any, colours: Any) -> Any:
    """`colours` [RGB] in the shape of the drawing."""
    changed = colours.convert("RGBA")
    changed.putalpha(drawing.getchannel("A"))
    return changed
