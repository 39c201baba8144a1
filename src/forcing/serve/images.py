"""Images from outside are drawn anew: nothing of a file is kept but its pixels."""

import io

from PIL import Image, ImageOps, UnidentifiedImageError

MOST_PIXELS = {"JPEG": 120_000_000}  # of an image: those are read at less than their size
MOST_PIXELS_ELSE = 16_000_000
SIDE = 1920  # pixels; larger images are made smaller


def repainted(body: bytes) -> tuple[bytes, int, int]:
    """An image as a PNG without anything else that the file held, and its size. ValueError for what is none."""
    try:
        with Image.open(io.BytesIO(body), formats=("PNG", "JPEG", "WEBP")) as opened:
            most = MOST_PIXELS.get(opened.format or "", MOST_PIXELS_ELSE)
            if opened.width * opened.height > most:
                raise ValueError(f"{opened.width}x{opened.height} pixels: a {opened.format} has at most {most} here")
            opened.draft("RGB", (SIDE, SIDE))
            picture = ImageOps.exif_transpose(opened).convert("RGB")
        picture.thumbnail((SIDE, SIDE))
    except (UnidentifiedImageError, OSError, SyntaxError, Warning):
        raise ValueError("this is not a PNG, JPEG or WebP image that can be read") from None
    except Image.DecompressionBombError:
        raise ValueError("this image has too many pixels") from None
    data = io.BytesIO()
    Image.frombytes("RGB", picture.size, picture.tobytes()).save(data, "PNG", compress_level=1)
    return data.getvalue(), picture.width, picture.height
