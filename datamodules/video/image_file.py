"""An image file as a browser shows it on a white page: what people saw when they wrote the questions.

Applied are transparency (on white, as the published preprocessing does it), the EXIF orientation and an embedded color
profile; 16-bit gray keeps its upper 8 bits; of an animation the first frame counts. Imports no torch.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datamodules.video.types import MediaConfig, missing_file, unreadable

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF")
"""Pillow's names of what may be read. Others run programs (EPS starts Ghostscript) or are not seen as images."""
SAVE_ANEW = "Fetch the file again or save it anew as PNG or JPEG."

_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
_XMP = ("XML:com.adobe.xmp", "xmp")
_PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def decode_image(path: Path, media: MediaConfig) -> np.ndarray:
    """Upright RGB pixels of an image, uint8 [H, W, 3].

    Raises:
        VideoReadError: no such file, none of `FORMATS`, more than `media.max_pixels`, damaged or cut off.
    """
    from PIL import Image

    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]  # Pillow may be built without one
    try:
        with Image.open(path, formats=known) as file:
            width, height = file.size
            if width * height > media.max_pixels:
                raise unreadable(
                    path,
                    f"it has {width} x {height} pixels, more than media.max_pixels {media.max_pixels:,}",
                    "Save it smaller, or raise the limit.",
                )
            if getattr(file, "default_image", False):  # an animated PNG whose first picture is for old programs only
                file.seek(1)
            file.load()
            return np.array(_upright(_on_white(file), _orientation(file)))
    except FileNotFoundError as error:
        raise missing_file(path) from error
    except Image.UnidentifiedImageError as error:
        cause = f"it cannot be read as an image (it is none of {', '.join(known)})"
        raise unreadable(path, cause, SAVE_ANEW) from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise unreadable(path, f"it cannot be read as an image ({error})", SAVE_ANEW) from error


def _on_white(file: ImageFile) -> Image:
    """The picture in sRGB without transparency."""
    from PIL import Image

    image = _eight_bits(file)
    if image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    if image.mode in ("LA", "La", "1"):
        image = image.convert("L")
    elif image.mode in ("RGBA", "RGBa", "PA"):
        image = image.convert("RGBA").convert("RGB")
    colors = _in_srgb(image, file.info.get("icc_profile")).convert("RGB")
    if alpha is None:
        return colors
    page = Image.new("RGB", colors.size, (255, 255, 255))
    page.paste(colors, mask=alpha)
    return page


def _eight_bits(file: ImageFile) -> Image:
    """16-bit gray as 8-bit gray, with its transparent value; other images as they are.

    Raises:
        VideoReadError: 32-bit numbers, of which nobody knows what is white.
    """
    from PIL import Image

    if file.mode in ("I", "F"):
        raise unreadable(
            str(file.filename),
            "its pixels are 32-bit numbers, and no white is defined for them",
            "Save it as 8-bit RGB.",
        )
    if not file.mode.startswith("I;16"):
        return file
    values = np.asarray(file)
    tags = getattr(file, "tag_v2", {})
    gray = (values >> (int(np.max(tags.get(_BITS_PER_SAMPLE, 16))) - 8)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero
        gray = 255 - gray
    image = Image.fromarray(gray)
    if "transparency" in file.info:
        image.putalpha(Image.fromarray(np.where(values == file.info["transparency"], 0, 255).astype(np.uint8)))
    return image


def _in_srgb(image: Image, profile: bytes | None) -> Image:
    """Colors of an embedded profile as a screen shows them. A broken profile, or one of other channels, is ignored:
    that is what browsers do."""
    from PIL import ImageCms

    if not profile:
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        described = ImageCms.getProfileDescription(source).lower()
        space = source.profile.xcolor_space.strip()  # pyright: ignore[reportAttributeAccessIssue] - once open it has one
        if "srgb" in described or _PROFILE_MODES.get(space) != image.mode:
            return image
        target = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, target, outputMode="RGB") or image  # None only if in place
    except (ImageCms.PyCMSError, OSError):
        return image


def _orientation(file: ImageFile) -> int:
    """1 to 8. Broken EXIF data and XMP are ignored, as browsers do."""
    for name in _XMP:
        file.info.pop(name, None)
    try:
        return file.getexif().get(_ORIENTATION, 1)
    except (SyntaxError, struct.error, ValueError, OSError, KeyError):
        return 1


def _upright(image: Image, orientation: int) -> Image:
    from PIL import ImageOps

    image.info = {}  # or Pillow would read the file's own EXIF data, broken or not
    image.getexif()[_ORIENTATION] = orientation
    return ImageOps.exif_transpose(image)
