"""Images that browsers show, and the pixels that they show on a white page."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.datamodules.media_corpus import MediaKind

RED, GREEN, BLUE, YELLOW, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 255, 255)


def quadrants(*colors: tuple[int, ...]) -> np.ndarray:
    """56 x 56 pixels cut at column 32 and row 16, which are block borders of JPEG; no turn leaves it as it is."""
    picture = np.zeros((56, 56, len(colors[0])), np.uint8)
    picture[:16, :32], picture[:16, 32:], picture[16:, :32], picture[16:, 32:] = colors
    return picture


PLAIN = quadrants(RED, GREEN, BLUE, YELLOW)
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    # EXIF 2.3, tag 0x0112: where the stored row 0 and column 0 are shown.
    2: lambda shown: shown[:, ::-1],  # top, right
    3: lambda shown: shown[::-1, ::-1],  # bottom, right
    4: lambda shown: shown[::-1],  # bottom, left
    5: lambda shown: shown.swapaxes(0, 1),  # left, top
    6: lambda shown: shown[:, ::-1].swapaxes(0, 1),  # right, top
    7: lambda shown: shown[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda shown: shown[::-1].swapaxes(0, 1),  # left, bottom
}


def image(name: str, suffix: str, write: Callable[[Path], object], **settings: object) -> MediaKind:
    file = f"{name.replace(' ', '_')}{suffix}"
    return MediaKind(**{"name": name, "data_type": "image", "file": file, "write": write, "pixels": PLAIN, **settings})


def saved(picture: np.ndarray | Image.Image, **options: object) -> Callable[[Path], None]:
    made = picture if isinstance(picture, Image.Image) else Image.fromarray(np.ascontiguousarray(picture))
    return lambda path: made.save(path, **options)


def turned(orientation: int) -> Callable[[Path], None]:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return saved(STORED[orientation](PLAIN), exif=tags, quality=95, subsampling=0)


def sound_images() -> list[MediaKind]:
    half = quadrants((*RED, 255), (*GREEN, 0), (*BLUE, 51), (*YELLOW, 255))
    # 51 / 255 = a fifth of blue on four fifths of white: (204, 204, 255).
    pasted = quadrants(RED, WHITE, (204, 204, 255), YELLOW)
    gray = quadrants((0,), (85,), (170,), (255,))[..., 0]
    wide = gray.astype(np.uint16) * 257  # 0x55 -> 0x5555
    gray_rgb = np.repeat(gray[..., None], 3, 2)
    fade = Image.fromarray(quadrants((0, 255), (0, 0), (0, 51), (0, 255)), "LA")
    faded = quadrants((0, 0, 0), WHITE, (204, 204, 204), (0, 0, 0))
    palette = Image.fromarray(PLAIN).quantize(4)
    hole = palette.getpixel((40, 5))  # green
    cmyk = Image.fromarray(quadrants((0, 255, 255, 0), (255, 0, 255, 0), (255, 255, 0, 0), (0, 0, 255, 0)), "CMYK")
    frames = [Image.fromarray(PLAIN), Image.new("RGB", (56, 56), WHITE)]
    animation = {"save_all": True, "append_images": frames[1:], "duration": 100}
    lossy = {"tolerance": 4}
    return [
        image("png", ".png", saved(PLAIN)),
        image("jpeg", ".jpg", saved(PLAIN, quality=95, subsampling=0), **lossy),
        image("progressive jpeg", ".jpg", saved(PLAIN, quality=95, subsampling=0, progressive=True), **lossy),
        image("gray jpeg", ".jpg", saved(gray, quality=95), pixels=gray_rgb, **lossy),
        image("cmyk jpeg", ".jpg", saved(cmyk, quality=95), tolerance=8),
        image("cmyk tiff", ".tif", saved(cmyk)),
        image("bmp", ".bmp", saved(PLAIN)),
        image("webp", ".webp", saved(PLAIN, lossless=True)),
        image("avif", ".avif", saved(PLAIN, quality=100, subsampling="4:4:4"), tolerance=8),
        image("rgba png", ".png", saved(half), pixels=pasted),
        image("rgba webp", ".webp", saved(half, lossless=True, exact=True), pixels=pasted),
        image("gray with alpha", ".png", saved(fade), pixels=faded),
        image("palette", ".png", saved(palette)),
        image(
            "palette with transparency",
            ".png",
            saved(palette, transparency=hole),
            pixels=quadrants(RED, WHITE, BLUE, YELLOW),
        ),
        image(
            "transparent color", ".png", saved(PLAIN, transparency=GREEN), pixels=quadrants(RED, WHITE, BLUE, YELLOW)
        ),
        image("one bit", ".png", saved(Image.fromarray(gray > 100)), pixels=np.where(gray_rgb > 100, 255, 0)),
        image("16 bit gray png", ".png", saved(wide), pixels=gray_rgb),
        image("16 bit gray tiff", ".tif", saved(wide), pixels=gray_rgb),
        image("16 bit big endian tiff", ".tif", lambda path: path.write_bytes(tiff16(wide, ">", 1)), pixels=gray_rgb),
        image(
            "16 bit tiff with black 65535",
            ".tif",
            lambda path: path.write_bytes(tiff16(65535 - wide, "<", 0)),
            pixels=gray_rgb,
        ),
        image("16 bit color png", ".png", lambda path: path.write_bytes(png16(PLAIN.astype(np.uint16) * 257))),
        image("animated gif", ".gif", saved(frames[0], **animation)),
        image("animated webp", ".webp", saved(frames[0], lossless=True, **animation)),
        image("animated png", ".png", saved(frames[0], **animation)),
        image(
            "animated png with another default",
            ".png",
            saved(frames[1], save_all=True, default_image=True, append_images=[frames[0], frames[1]]),
        ),
        image(
            "gif with transparency",
            ".gif",
            saved(palette, transparency=hole),
            pixels=quadrants(RED, WHITE, BLUE, YELLOW),
        ),
        # The profile calls the first channel what sRGB calls green, and the second red.
        image(
            "color profile",
            ".png",
            saved(quadrants(GREEN, RED, BLUE, YELLOW), icc_profile=swapped_profile()),
            tolerance=2,
        ),
        image("broken color profile", ".png", saved(PLAIN, icc_profile=b"no profile")),
        image("broken exif", ".jpg", saved(PLAIN, quality=95, subsampling=0, exif=b"Exif\0\0no tags"), **lossy),
        *(image(f"orientation {number}", ".jpg", turned(number), **lossy) for number in STORED),
        image("orientation 6 png", ".png", turned(6)),
        image("orientation 6 tiff", ".tif", saved(STORED[6](PLAIN), tiffinfo={0x0112: 6})),
        # 1 pixel grows to one token of 28 x 28.
        image(
            "one pixel", ".png", saved(np.full((1, 1, 3), 200, np.uint8)), pixels=np.full((28, 28, 3), 200, np.uint8)
        ),
    ]


def tiff16(values: np.ndarray, order: str, photometric: int) -> bytes:
    """16-bit gray TIFF, one strip. Order: ">" big-endian, "<" little. Photometric 0: 0 is white; 1: 0 is black."""
    height, width = values.shape
    data = values.astype(f"{order}u2").tobytes()
    tags = [(256, 3, width), (257, 3, height), (258, 3, 16), (259, 3, 1), (262, 3, photometric), (273, 4, 8)]
    tags += [(277, 3, 1), (278, 3, height), (279, 4, len(data))]
    entries = b"".join(
        struct.pack(f"{order}HHI{'HH' if kind == 3 else 'I'}", tag, kind, 1, value, *[0] * (kind == 3))
        for tag, kind, value in tags
    )
    head = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(f"{order}I", 8 + len(data))
    return head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def png16(values: np.ndarray) -> bytes:
    """16 bits per channel, RGB."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(width, height, 16, 2, zlib.compress(rows))


def png(width: int, height: int, bits: int, color_type: int, data: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )


def swapped_profile() -> bytes:
    """ICC version 2, a display with sRGB's primaries in the order green, red, blue, and a gamma of 2.2."""

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    name = b"swapped\0"
    described = b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(4 + 4 + 2 + 1 + 67)
    gamma = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256))
    # sRGB's primaries, adapted to D50 (IEC 61966-2-1).
    red, green, blue = (0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)
    tags = {
        b"desc": described,
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(*green),
        b"gXYZ": xyz(*red),
        b"bXYZ": xyz(*blue),
        b"rTRC": gamma,
        b"gTRC": gamma,
        b"bTRC": gamma,
    }
    table, body, offset = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for tag, content in tags.items():
        content += bytes(-len(content) % 4)
        table += tag + struct.pack(">II", offset + len(body), len(content))
        body += content
    head = struct.pack(
        ">I4sI4s4s4s12s4s4sIII8sI",
        0,
        b"none",
        0x02100000,
        b"mntr",
        b"RGB ",
        b"XYZ ",
        bytes(12),
        b"acsp",
        b"\0\0\0\0",
        0,
        0,
        0,
        bytes(8),
        0,
    )
    head += struct.pack(">iii", round(0.9642 * 65536), 65536, round(0.8249 * 65536))
    head = head.ljust(128, b"\0")
    size = len(head) + len(table) + len(body)
    return struct.pack(">I", size) + head[4:] + table + body
