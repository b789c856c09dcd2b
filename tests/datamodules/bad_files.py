"""Files that are no sound video or image, and what must be said about each."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tests.datamodules.media_corpus import Encoding, MediaKind, h264, silence
from tests.datamodules.sound_images import PLAIN, png, saved

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
PAGE = "<!DOCTYPE html><html><body>404 Not Found</body></html>"
NO_VIDEO = "cannot be opened as a video"
NO_IMAGE = "cannot be read as an image"
OUTSIDE = "outside.ts"
"""File beside the corpus' folder, which a playlist and a link lead to."""


def bad(name: str, file: str, write: Callable[[Path], object], error: str, data_type: str = "video") -> MediaKind:
    return MediaKind(name=name, data_type=data_type, file=file, write=write, error=error)


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


def cut(write: Callable[[Path], object], fraction: float, multiple: int = 1) -> Callable[[Path], None]:
    """The first part of a file; a `multiple` of bytes and one more."""

    def cut_off(path: Path) -> None:
        write(path)
        data = path.read_bytes()
        end = int(len(data) * fraction)
        path.write_bytes(data[: end - end % multiple + (multiple > 1)])

    return cut_off


def damaged(write: Callable[[Path], object], damage: Callable[[bytearray], object]) -> Callable[[Path], None]:
    def write_damaged(path: Path) -> None:
        write(path)
        data = bytearray(path.read_bytes())
        damage(data)
        path.write_bytes(data)

    return write_damaged


def flip_bits(data: bytearray) -> None:
    """A bit in every 41st byte of the middle third."""
    for place in range(len(data) // 3, 2 * len(data) // 3, 41):
        data[place] ^= 4


def clear_middle(data: bytearray) -> None:
    data[len(data) // 3 : 2 * len(data) // 3] = bytes(2 * len(data) // 3 - len(data) // 3)


def clear_ts_packets(data: bytearray) -> None:
    """Drop packets of the middle, so that the counters of those around them do not fit."""
    del data[188 * (len(data) // 564) : 188 * (len(data) // 564 + 5)]


def without_frames(path: Path) -> None:
    with av.open(str(path), "w", container_options={"movflags": "empty_moov"}) as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        container.start_encoding()


def sound_alone(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        container.mux(stream.encode(silence(48000)))
        container.mux(stream.encode(None))


def thirty_hours(path: Path) -> None:
    """Two frames, 30 hours apart."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for seconds in (0, 30 * 3600):
            frame = av.VideoFrame.from_ndarray(np.zeros((96, 96), np.uint8), format="yuv420p")
            frame.pts, frame.time_base = seconds * 30, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def huge_gif(path: Path) -> None:
    """A header of 12,000 x 12,000 pixels and one frame of 1 x 1."""
    side = (12_000).to_bytes(2, "little")
    head = b"GIF89a" + side + side + b"\x80\0\0" + b"\0\0\0\xff\xff\xff"
    path.write_bytes(head + b",\0\0\0\0\1\0\1\0\0" + b"\2\2D\1\0" + b";")


def bad_videos() -> list[MediaKind]:
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n../{OUTSIDE}\n#EXT-X-ENDLIST\n"
    index_first = h264(index_first=True, frames=300)
    return [
        bad("empty", "empty.mp4", text(""), NO_VIDEO),
        bad("text", "text.mp4", text("not a video\n" * 100), NO_VIDEO),
        bad("html page", "page.mp4", text(PAGE), NO_VIDEO),
        bad("lfs pointer", "pointer.mp4", text(POINTER), NO_VIDEO),
        bad(
            "image as video",
            "image.mp4",
            lambda path: path.write_bytes(png(1, 1, 8, 2, b"")),
            NO_VIDEO,
        ),
        bad("no frames", "no_frames.mp4", without_frames, "its video stream holds no frames"),
        bad("sound alone", "sound.mp4", sound_alone, "it has no video stream"),
        bad("playlist", "list.m3u8", text(playlist), "its format is none of"),
        bad("playlist named mp4", "list.mp4", text(playlist), NO_VIDEO),
        bad("list of files", "concat.mp4", text(f"ffconcat version 1.0\nfile ../{OUTSIDE}\n"), "its format is none of"),
        bad(
            "session description",
            "session.sdp",
            text("v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5 RTP/AVP 96\n"),
            NO_VIDEO,
        ),
        bad("cut mp4", "cut.mp4", cut(h264(), 0.6), NO_VIDEO),
        *(
            bad(f"cut at {share:.0%}", f"cut_{share}.mp4", cut(index_first, share), "cut off")
            for share in (0.3, 0.6, 0.9)
        ),
        bad("cut mkv", "cut.mkv", cut(h264(frames=300), 0.6), "cut off"),
        bad("cut webm", "cut.webm", cut(Encoding(codec="libvpx-vp9", count=90), 0.5), "cut off"),
        bad("cut late mkv", "cut_late.mkv", cut(Encoding(start=1000, count=90), 0.5), "cut off"),
        bad("cut avi", "cut.avi", cut(Encoding(codec="mpeg4", count=90), 0.5), "cut off"),
        bad("cut flv", "cut.flv", cut(Encoding(count=90), 0.5), "cut off|damaged"),
        bad("cut ts", "cut.ts", cut(h264(frames=300), 0.6, 188), "cut off"),
        bad("flipped bits", "flipped.mp4", damaged(index_first, flip_bits), "damage|decoded"),
        bad(
            "flipped bits mpeg4", "flipped.avi", damaged(Encoding(codec="mpeg4", count=90), flip_bits), "damage|decoded"
        ),
        bad("cleared middle", "cleared.mp4", damaged(index_first, clear_middle), "damage|decoded"),
        bad("cleared middle mkv", "cleared.mkv", damaged(h264(frames=300), clear_middle), "damage|cut off"),
        bad("packets missing", "missing.ts", damaged(h264(frames=300), clear_ts_packets), "damage"),
        bad("thirty hours", "long.mkv", thirty_hours, "it lasts 108,000 s by its header, more than media.max_seconds"),
        bad("huge gif", "huge.gif", huge_gif, "12000 x 12000 pixels, more than media.max_pixels"),
        bad("thin", "thin.mp4", Encoding(codec="mpeg4", size=(1608, 8), count=3), "aspect ratio of 201"),
    ]


def bad_images() -> list[MediaKind]:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    postscript = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 56 56\n%%EndComments\nshowpage\n"
    vector = "<svg xmlns='http://www.w3.org/2000/svg' width='56' height='56'><rect width='56' height='56'/></svg>"
    floats = Image.fromarray(np.zeros((56, 56), np.float32))
    return [
        bad(name, file, write, error, "image")
        for name, file, write, error in (
            ("empty image", "empty.png", text(""), NO_IMAGE),
            ("html page as image", "page.jpg", text(PAGE), NO_IMAGE),
            ("lfs pointer as image", "pointer.png", text(POINTER), NO_IMAGE),
            ("postscript", "eps.jpg", text(postscript), NO_IMAGE),
            ("svg", "svg.jpg", text(vector), NO_IMAGE),
            ("pdf", "pdf.jpg", lambda path: Image.fromarray(PLAIN).save(path, "PDF"), NO_IMAGE),
            ("photoshop", "psd.png", lambda path: path.write_bytes(b"8BPS\0\1" + bytes(60)), NO_IMAGE),
            ("video as image", "video.png", Encoding(format="mp4"), NO_IMAGE),
            ("cut jpeg", "cut.jpg", cut(saved(noise), 0.5), NO_IMAGE),
            ("cut png", "cut.png", cut(saved(noise), 0.5), NO_IMAGE),
            ("cut webp", "cut.webp", cut(saved(noise), 0.5), NO_IMAGE),
            ("cut gif", "cut.gif", cut(saved(noise), 0.5), NO_IMAGE),
            ("png with flipped bits", "flipped.png", damaged(saved(noise), flip_bits), NO_IMAGE),
            (
                "header of 400 megapixels",
                "bomb.png",
                lambda path: path.write_bytes(png(20_000, 20_000, 8, 2, b"")),
                "20000 x 20000 pixels, more than media.max_pixels",
            ),
            ("32 bit tiff", "floats.tif", saved(floats), "32-bit numbers"),
            ("thin image", "thin.png", saved(np.zeros((1, 201, 3), np.uint8)), "aspect ratio of 201"),
        )
    ]


def bad_places() -> list[MediaKind]:
    """Paths where no file of the data root is."""
    places = [
        bad("missing", "missing.mp4", lambda path: None, "does not exist"),
        bad("missing image", "missing.png", lambda path: None, "does not exist", "image"),
        bad("folder", "folder.mp4", lambda path: path.mkdir(), "is no regular file"),
        bad("pipe", "pipe.mp4", lambda path: os.mkfifo(path), "is no regular file"),
        bad("dangling link", "dangling.mp4", lambda path: path.symlink_to("nowhere.mp4"), "does not exist"),
        bad("circle of links", "circle.mp4", lambda path: path.symlink_to(path.name), "cannot be looked up"),
        bad("link outside", "link.ts", lambda path: path.symlink_to(f"../{OUTSIDE}"), "outside the data root"),
        bad("name too long", f"{'long' * 80}.mp4", lambda path: None, "cannot be looked up"),
    ]
    if os.geteuid():  # root may read everything
        places.append(bad("no permission", "secret.mp4", lambda path: path.touch(0), "Permission denied"))
    return places
