"""Opens a picture that a person gave: any usual format, upright, on white, of bounded size. No model."""

import base64
import binascii
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
KNOWN = "PNG, JPEG, WebP, GIF, BMP or TIFF"
MOST_PIXELS = 60_000_000  # decoded they are 180 MB; a JPEG with more is decoded smaller
LONGEST_SIDE = 4096  # a square around it takes 50 MB; no tower sees more
MOST_BYTES = 100_000_000
SHOWN_SIDE = 1024  # pixels, more than any tower sees
Kind = Literal["web", "file", "empty", "address", "svg", "unknown", "damaged", "large"]


class BadPicture(ValueError):
    """What is no picture that can be shown: a sentence, and its `kind` for a page that says it otherwise."""

    def __init__(self, kind: Kind, sentence: str) -> None:
        super().__init__(sentence)
        self.kind: Kind = kind


def open_image(source: str | Path | bytes) -> Any:
    """A PIL image in RGB: of a file, its bytes, or a `data:image/…;base64,` address.

    Of an animation the first picture is taken; what is transparent becomes white. Raises BadPicture, one
    sentence, for what is no picture, too large, damaged, an SVG, or lies on the web.
    """
    from PIL import Image, UnidentifiedImageError

    name, content = _read(source)
    if _is_svg(content):
        raise BadPicture("svg", f"{name} is an SVG drawing; save it as PNG and give that")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(BytesIO(content), formats=FORMATS)
        _bound(image, name)
        return _upright_on_white(image)
    except Image.DecompressionBombError:
        raise _too_large(name, "far too many") from None
    except UnidentifiedImageError:
        raise BadPicture("unknown", f"{name} is no picture that can be read; give {KNOWN}") from None
    except BadPicture:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError):
        raise BadPicture(
            "damaged", f"{name} is damaged or cut off; give another copy of the picture"
        ) from None


def data_address(source: str | Path | bytes) -> str:
    """The picture as a `data:` address, PNG: what a server with an OpenAI interface takes."""
    if isinstance(source, str) and source.startswith("data:"):
        return source
    return _address_of(open_image(source))


def small_address(source: str | Path | bytes) -> str:
    """As data_address, read and checked, and no side longer than SHOWN_SIDE: for what is kept or sent often.

    Raises BadPicture.
    """
    image = open_image(source)
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return _address_of(image)


def _address_of(image: Any) -> str:
    content = BytesIO()
    image.save(content, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode("ascii")


def _read(source: str | Path | bytes) -> tuple[str, bytes]:
    if isinstance(source, bytes):
        name, content = "the picture", source
    elif isinstance(source, str) and source.startswith("data:"):
        name, content = "the picture", _from_address(source)
    elif str(source).startswith(("http://", "https://")):
        raise BadPicture("web", f"{source} lies on the web; save the picture and give the file")
    else:
        name, content = str(source), _from_file(Path(source))
    if not content:
        raise BadPicture("empty", f"{name} is empty; give {KNOWN}")
    return name, content


def _from_file(path: Path) -> bytes:
    if not path.is_file():
        raise BadPicture("file", f"{path} is no file; give a picture ({KNOWN})")
    if path.stat().st_size > MOST_BYTES:
        raise _too_large(str(path), f"{path.stat().st_size // 10**6} MB of")
    return path.read_bytes()


def _from_address(address: str) -> bytes:
    head, comma, text = address.partition(",")
    try:
        if not comma or not head.endswith(";base64"):
            raise binascii.Error
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise BadPicture(
            "address", "the picture's address must be data:image/png;base64,… with the whole file"
        ) from None


def _is_svg(content: bytes) -> bool:
    return b"<svg" in content[:1000].lower() and content.lstrip(b"\xef\xbb\xbf \r\n\t")[:1] == b"<"


def _bound(image: Any, name: str) -> None:
    """Raises BadPicture for more pixels than are decoded; a JPEG is told to decode itself smaller."""
    if image.width * image.height > MOST_PIXELS:
        image.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))
    if image.width * image.height > MOST_PIXELS:
        raise _too_large(name, f"{image.width} × {image.height}")


def _too_large(name: str, size: str) -> BadPicture:
    most = MOST_PIXELS // 10**6
    sentence = f"{name} has {size} pixels; at most {most} million are read, so make it smaller"
    return BadPicture("large", sentence)


def _upright_on_white(image: Any) -> Any:
    from PIL import Image, ImageOps

    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        # 16 bits a pixel; converting would cut them off at 255
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    if max(image.size) > LONGEST_SIDE:
        # resampling must not meet a palette
        image = image.convert("RGB")
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return image.convert("RGB")
