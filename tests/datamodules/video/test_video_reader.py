"""Readers against a full sequential decode, on small files of every awkward kind."""

import logging
import sys
import types
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from datamodules.video.decoding import READERS
from datamodules.video.frame_sampling import FrameConfig, frame_indices, plan_frames
from datamodules.video.packet_index import PacketEntry, PacketIndex, Run
from datamodules.video.pyav_reader import CountedVideo, IndexedVideo, IndexMismatch
from datamodules.video.types import MediaConfig, VideoReadError
from datamodules.video.video_file import VideoFile, upright
from datamodules.video.video_reader import probe_video, read_image, read_video, resize
from tests.performance.video_cases import VideoCase, frame_number, full_decode, write_case

FRAMES = FrameConfig(num_frames=16, min_pixels=28 * 28, max_pixels=64 * 96)
PLAIN = VideoCase(name="plain", width=96, height=64, frames=100)
INDEXED = (
    PLAIN,
    replace(PLAIN, name="b pyramid", extra="b-pyramid=normal:ref=4:weightp=2:direct=temporal", b_frames=8),
    replace(PLAIN, name="no b frames", b_frames=0, gop=25),
    replace(PLAIN, name="open gop", frames=300, gop=15, open_gop=True),
    replace(PLAIN, name="open gop ts", frames=300, gop=15, open_gop=True, suffix=".ts"),
    replace(PLAIN, name="open gop mkv", frames=300, gop=15, open_gop=True, suffix=".mkv"),
    replace(PLAIN, name="edit list", trimmed=23, gop=30),
    replace(PLAIN, name="edit list open gop", frames=300, trimmed=97, gop=15, open_gop=True),
    replace(PLAIN, name="variable rate", variable_rate=True, gop=30),
    replace(PLAIN, name="every frame a keyframe", gop=1),
    replace(PLAIN, name="interlaced", extra="tff=1"),
    replace(PLAIN, name="three frames", frames=3),
    replace(PLAIN, name="flv", suffix=".flv", frames=200, gop=10),
    replace(PLAIN, name="hevc", codec="libx265"),
    replace(PLAIN, name="vp9", codec="libvpx-vp9", suffix=".webm"),
    replace(PLAIN, name="mpeg2", codec="mpeg2video", suffix=".ts"),
    replace(PLAIN, name="mpeg4 avi", codec="mpeg4", suffix=".avi"),
)
COUNTED = (
    replace(PLAIN, name="avi without presentation times", suffix=".avi"),
    replace(PLAIN, name="intra refresh", frames=200, gop=20, b_frames=0, extra="intra-refresh=1"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


def clip_of(case: VideoCase, folder: Path) -> Path:
    path = case.path(folder)
    return path if path.exists() else write_case(case, folder)


def rgb(video: VideoFile, frame: VideoFrame) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(video.rgb(frame))).permute(2, 0, 1)


def assert_reads_exactly(path: Path) -> None:
    """Default reader == full decode, frame choice and resizing included."""
    truth = list(full_decode(path))
    clip = read_video(path, FRAMES)
    plan = plan_frames(len(truth), 30, *truth[0].shape[-2:], FRAMES)
    assert torch.equal(clip.frames, torch.stack([resize(truth[i], plan.height, plan.width) for i in plan.indices]))
    assert clip.frames.dtype == torch.uint8
    assert clip.frames.is_contiguous()
    assert clip.is_video


@pytest.mark.parametrize("case", INDEXED, ids=lambda case: case.name)
def test_frames_equal_a_full_decode(case: VideoCase, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = clip_of(case, folder)
    with caplog.at_level(logging.WARNING):
        assert_reads_exactly(path)
    assert not caplog.records  # the packet index sufficed
    truth = list(full_decode(path))
    assert len(truth) == case.frames - case.trimmed
    with IndexedVideo(path, MediaConfig()) as video:
        every = {ordinal: rgb(video, frame) for ordinal, frame in video.frames(range(len(truth)))}
        assert all(torch.equal(every[ordinal], frame) for ordinal, frame in enumerate(truth))
        for ordinal in range(0, len(truth), 7):  # one at a time: each begins at its own keyframe
            assert [(o, torch.equal(rgb(video, f), truth[ordinal])) for o, f in video.frames([ordinal])] == [
                (ordinal, True)
            ]


@pytest.mark.parametrize("case", COUNTED, ids=lambda case: case.name)
def test_files_whose_packets_mislead_are_decoded_in_full(
    case: VideoCase, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = clip_of(case, folder)
    with caplog.at_level(logging.WARNING):
        assert_reads_exactly(path)
    assert "decoding the whole file" in caplog.text
    with CountedVideo(path, MediaConfig()) as video:
        numbers = [frame_number(rgb(video, frame)) for _, frame in video.frames([0, 50, case.frames - 1])]
    assert numbers == [0, 50, case.frames - 1]


def test_edit_list_hides_frames_and_rates_are_averages(folder: Path) -> None:
    hidden = probe_video(clip_of(next(case for case in INDEXED if case.name == "edit list"), folder))
    assert (hidden.total_frames, hidden.fps, hidden.width, hidden.height) == (77, 30, 96, 64)
    assert hidden.duration == pytest.approx(77 / 30)
    clip = read_video(clip_of(replace(PLAIN, name="edit list", trimmed=23, gop=30), folder), FRAMES)
    assert clip.sample_fps == pytest.approx(16 / 77 * 30)
    # 99 gaps: 19 rounds of 4 + 1 + 9 + 2 + 4 = 20 ticks, then 4 + 1 + 9 + 2 = 16; 396 ticks of 1 / 120 s = 3.3 s.
    varying = probe_video(clip_of(replace(PLAIN, name="variable rate", variable_rate=True, gop=30), folder))
    assert varying.fps == pytest.approx(99 / 3.3)


def test_one_frame_clip_is_repeated(folder: Path) -> None:
    clip = read_video(clip_of(replace(PLAIN, name="one frame", frames=1), folder), FRAMES)
    assert clip.frames.shape[0] == 2
    assert torch.equal(clip.frames[0], clip.frames[1])
    assert clip.sample_fps == 60


def test_start_within_an_open_group(folder: Path) -> None:
    """A broadcast cut in the middle: it begins at its first keyframe."""
    whole = clip_of(replace(PLAIN, name="open gop ts", frames=300, gop=15, open_gop=True, suffix=".ts"), folder)
    data = whole.read_bytes()
    broadcast = folder / "cut.ts"
    broadcast.write_bytes(data[188 * (len(data) // 188 // 3) :])
    assert_reads_exactly(broadcast)
    first = frame_number(next(full_decode(broadcast)))
    assert 0 < first < 300
    assert probe_video(broadcast).total_frames == 300 - first


@pytest.mark.skipif(not hasattr(VideoStream, "set_display_rotation"), reason="PyAV before 18 cannot write the tag")
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_tag_is_applied(degrees: int, folder: Path) -> None:
    path = clip_of(replace(PLAIN, name=f"rotated {degrees}", frames=4, rotation=degrees), folder)
    metadata = probe_video(path)
    assert (metadata.width, metadata.height) == ((96, 64) if degrees == 180 else (64, 96))
    upright_truth = [torch.rot90(frame, degrees // 90, (1, 2)) for frame in full_decode(path)]
    plan = plan_frames(4, 30, metadata.height, metadata.width, FRAMES)
    expected = torch.stack([resize(frame, plan.height, plan.width) for frame in upright_truth])
    assert torch.equal(read_video(path, FRAMES).frames, expected)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((1, 0, 0, 1), [[1, 2, 3], [4, 5, 6]]),
        ((-1, 0, 0, 1), [[3, 2, 1], [6, 5, 4]]),  # column p is shown at -p: mirrored
        ((1, 0, 0, -1), [[4, 5, 6], [1, 2, 3]]),
        ((-1, 0, 0, -1), [[6, 5, 4], [3, 2, 1]]),
        ((0, 1, -1, 0), [[4, 1], [5, 2], [6, 3]]),  # shown column = -row, shown row = column: a quarter clockwise
        ((0, -1, 1, 0), [[3, 6], [2, 5], [1, 4]]),
        ((0, 1, 1, 0), [[1, 4], [2, 5], [3, 6]]),
    ],
)
def test_upright(matrix: tuple[int, int, int, int], expected: list[list[int]]) -> None:
    a, b, c, d = (value << 16 for value in matrix)
    image = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8)
    assert upright(image, [a, b, 0, c, d, 0, 0, 0, 1 << 30]).tolist() == expected


def open_gop_index() -> PacketIndex:
    """Two groups in decode order: I0 P3 B1 B2 | I6 B4 B5 P9 B7 B8; B4 and B5 refer to the group before."""
    times, keys = [0, 3, 1, 2, 6, 4, 5, 9, 7, 8], {0, 4}
    entries = [
        PacketEntry(time, position - 1, 1, 100 + position, position in keys, False, False)
        for position, time in enumerate(times)
    ]
    return PacketIndex(entries=entries, time_base=Fraction(1, 10), codec="h264")


def test_open_group_needs_the_keyframe_before() -> None:
    index = open_gop_index()
    assert index.shown == [0, 2, 3, 1, 5, 6, 4, 8, 9, 7]
    assert [index.start_of(index.shown[ordinal]) for ordinal in range(10)] == [0, 0, 0, 0, 0, 0, 4, 4, 4, 4]
    assert index.seconds() == 1
    assert index.runs([0, 5, 9]) == [Run(0, 7, [0, 5, 9])]
    assert index.runs([9, 0]) == [Run(0, 0, [0]), Run(4, 7, [9])]  # packets 1 to 3 are jumped over
    assert replace(index, codec="gif").runs([0, 9]) == [Run(0, 7, [0, 9])]


def test_index_knows_its_defects() -> None:
    index = open_gop_index()
    entries = list(index.entries)
    assert index.defect() is None
    assert "lack presentation" in replace(index, entries=[entries[0]._replace(pts=None), *entries[1:]]).defect()
    assert "share" in replace(index, entries=[*entries, entries[-1]]).defect()
    assert "keyframe" in replace(index, entries=[entry._replace(is_keyframe=False) for entry in entries]).defect()
    in_order = [entry._replace(pts=position) for position, entry in enumerate(entries)]
    assert replace(index, entries=in_order).defect() is None
    assert "no presentation times" in replace(index, entries=in_order, guessed_times=True).defect()


def test_long_videos_are_not_decoded_whole(folder: Path) -> None:
    """1000 frames in groups of 20: 16 frames need at most 16 groups, 320 packets, fewer as each run stops early."""
    path = clip_of(replace(PLAIN, name="long", frames=1000, gop=20), folder)
    assert_reads_exactly(path)
    with IndexedVideo(path, MediaConfig()) as video:
        runs = video.index.runs(frame_indices(1000, FRAMES))
    assert len(runs) == 16
    assert sum(run.stop - run.start + 1 for run in runs) < 250


def test_contradicting_decoder_is_noticed(folder: Path) -> None:
    with IndexedVideo(clip_of(PLAIN, folder), MediaConfig()) as video:
        entries = list(video.index.entries)
        entries[5] = entries[5]._replace(pts=entries[5].pts + 1)
        video.index = replace(video.index, entries=entries)
        with pytest.raises(IndexMismatch, match="packet 5 was not found in its place"):
            list(video.frames(range(100)))


def test_seek_past_the_goal_is_mended(folder: Path) -> None:
    path = clip_of(replace(PLAIN, name="long", frames=1000, gop=20), folder)
    truth = list(full_decode(path, {500, 501, 520}))
    with IndexedVideo(path, MediaConfig()) as video:
        entries = list(video.index.entries)
        start = video.index.start_of(video.index.shown[500])
        entries[start] = entries[start]._replace(dts=entries[start + 60].dts)  # where the container is told to go
        video.index = replace(video.index, entries=entries)
        assert all(
            torch.equal(rgb(video, f), t) for (_, f), t in zip(video.frames([500, 501, 520]), truth, strict=True)
        )


def test_side_data_that_pyav_cannot_name(tmp_path: Path) -> None:
    """Motion JPEG with EXIF data in its pictures."""
    import av

    with av.open(str(tmp_path / "camera.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj420p"
        for number in range(4):
            picture = Image.new("RGB", (96, 64), (60 * number, 0, 0))
            tags = picture.getexif()
            tags[0x010F] = "a camera"
            picture.save(tmp_path / "picture.jpg", exif=tags)
            packet = av.Packet((tmp_path / "picture.jpg").read_bytes())
            packet.stream, packet.pts, packet.dts = stream, number, number
            packet.time_base, packet.is_keyframe = Fraction(1, 10), True
            container.mux(packet)
    assert_reads_exactly(tmp_path / "camera.avi")


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    short = path.with_name(f"cut_{share}_{path.name}")
    short.write_bytes(data[: int(len(data) * share)])
    return short


def test_cut_off_files_are_refused(folder: Path) -> None:
    fast_start = write_case(replace(PLAIN, name="fast start", index_first=True), folder)
    with pytest.raises(VideoReadError, match=r"cut_0\.6_fast_start\.mp4: it is cut off .*re-encode"):
        read_video(cut(fast_start, 0.6), FRAMES)
    index_last = write_case(replace(PLAIN, name="index last"), folder)
    with pytest.raises(VideoReadError, match="cannot be opened as a video"):
        read_video(cut(index_last, 0.6), FRAMES)
    matroska = write_case(replace(PLAIN, name="cut", suffix=".mkv", frames=300), folder)
    with pytest.raises(VideoReadError, match=r"cut off: \d\.\d\d s of the 10\.00 s that its header names"):
        probe_video(cut(matroska, 0.6))


def test_damaged_frames_are_refused(folder: Path) -> None:
    path = write_case(replace(PLAIN, name="damaged", gop=10), folder)
    data = bytearray(path.read_bytes())
    with IndexedVideo(path, MediaConfig()) as video:
        size = sum(entry.size for entry in video.index.entries[:50])
    middle = data.index(b"mdat") + 4 + size
    data[middle : middle + 2000] = bytes(2000)
    path.write_bytes(data)
    with pytest.raises(VideoReadError, match=r"damaged\.mp4: (packet|frame) \d+ .*(cannot be decoded|is damaged)"):
        read_video(path, replace(FRAMES, num_frames=100))


def test_damage_that_is_painted_over_is_refused_where_decoding_is_strict(folder: Path) -> None:
    """Packets of MPEG-TS are missing: FFmpeg gives frames for all that is left, some of them made up."""
    path = write_case(replace(PLAIN, name="missing packets", suffix=".ts", gop=100), folder)
    data = path.read_bytes()
    path.write_bytes(data[: 188 * 30] + data[188 * 33 :])
    clip = read_video(path, FRAMES, media=MediaConfig(strict_decoding=False))
    assert len(clip.frames) == 16
    with pytest.raises(VideoReadError, match="damage"):
        read_video(path, FRAMES)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_pixels": 96 * 64 - 1}, "its frames have 96 x 64 pixels, more than media.max_pixels 6,143"),
        ({"max_seconds": 3.3}, "it lasts 3 s by its header, more than media.max_seconds 3"),
    ],
)
def test_what_is_too_large_is_refused(limits: dict, message: str, folder: Path) -> None:
    with pytest.raises(VideoReadError, match=message):
        read_video(clip_of(PLAIN, folder), FRAMES, media=MediaConfig(**limits))
    Image.new("RGB", (97, 64)).save(folder / "large.png")
    with pytest.raises(VideoReadError, match=r"97 x 64 pixels, more than media\.max_pixels 6,144"):
        read_image(folder / "large.png", FRAMES, media=MediaConfig(max_pixels=96 * 64))


@pytest.mark.parametrize("limits", [{"timeout": 0}, {"max_pixels": -1}, {"max_seconds": float("inf")}])
def test_limits_are_positive_numbers(limits: dict) -> None:
    with pytest.raises(ValueError, match="it must be a positive number"):
        MediaConfig(**limits)


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    import av

    with pytest.raises(VideoReadError, match=r"absent\.mp4: the file does not exist\. Check the path"):
        read_video(tmp_path / "absent.mp4", FRAMES)
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(VideoReadError, match=r"text\.mp4: it cannot be opened as a video"):
        probe_video(tmp_path / "text.mp4")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nclip.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(VideoReadError, match=r"list\.m3u8: it cannot be opened as a video \(its format is none of mov"):
        read_video(tmp_path / "list.m3u8", FRAMES)
    with av.open(str(tmp_path / "sound.mov"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(VideoReadError, match=r"sound\.mov: it has no video stream"):
        read_video(tmp_path / "sound.mov", FRAMES)
    with av.open(str(tmp_path / "empty.mp4"), "w", container_options={"movflags": "empty_moov"}) as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        container.start_encoding()
    with pytest.raises(VideoReadError, match=r"empty\.mp4: its video stream holds no frames"):
        read_video(tmp_path / "empty.mp4", FRAMES)


def test_thin_videos_name_their_file(tmp_path: Path) -> None:
    path = write_case(replace(PLAIN, name="thin", width=1608, height=8, frames=3, codec="mpeg4"), tmp_path)
    with pytest.raises(VideoReadError, match=r"thin\.mp4: The media is 1608 x 8 pixels, an aspect ratio of 201"):
        read_video(path, FRAMES)


def test_unknown_reader_is_refused() -> None:
    with pytest.raises(ValueError, match="reader is 'cv2'; allowed are 'pyav', 'decord', 'torchcodec'"):
        read_video("any.mp4", FRAMES, reader="cv2")


def test_decord_reads_plain_files(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("decord")
    path = clip_of(PLAIN, folder)
    clip, exact = read_video(path, FRAMES, reader="decord"), read_video(path, FRAMES)
    assert [frame_number(frame) for frame in clip.frames] == [frame_number(frame) for frame in exact.frames]
    assert clip.sample_fps == pytest.approx(exact.sample_fps)
    (tmp_path / "text.mp4").write_text("not a video")
    for name in ("text.mp4", "absent.mp4"):
        with pytest.raises(VideoReadError, match=f"{name}: "):
            read_video(tmp_path / name, FRAMES, reader="decord")


def test_torchcodec_reads_plain_files(folder: Path, tmp_path: Path) -> None:
    path = clip_of(PLAIN, folder)
    try:
        clip = read_video(path, FRAMES, reader="torchcodec")
    except ImportError as error:
        pytest.skip(str(error))
    exact = read_video(path, FRAMES)
    assert [frame_number(frame) for frame in clip.frames] == [frame_number(frame) for frame in exact.frames]
    assert clip.sample_fps == pytest.approx(exact.sample_fps)
    (tmp_path / "text.mp4").write_text("not a video")
    for name in ("text.mp4", "absent.mp4"):
        with pytest.raises(VideoReadError, match=f"{name}: "):
            read_video(tmp_path / name, FRAMES, reader="torchcodec")


def test_torchcodec_without_ffmpeg_does_not_blame_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_ffmpeg(*_: object, **__: object) -> None:
        raise RuntimeError("Could not load libtorchcodec. Likely causes: ...")

    module = types.ModuleType("torchcodec.decoders")
    module.VideoDecoder = without_ffmpeg
    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)
    with pytest.raises(ImportError, match=r"Install FFmpeg's shared libraries .* or use `reader: pyav`"):
        read_video(clip_of(PLAIN, folder), FRAMES, reader="torchcodec", media=MediaConfig(timeout=None))


def test_every_reader_name_is_listed() -> None:
    assert list(READERS) == ["pyav", "decord", "torchcodec"]


def test_image_is_turned_converted_and_resized(tmp_path: Path) -> None:
    picture = Image.fromarray(np.arange(60 * 40 * 3, dtype=np.uint32).astype(np.uint8).reshape(60, 40, 3))
    tags = picture.getexif()
    tags[0x0112] = 6  # turn a quarter clockwise to show
    picture.save(tmp_path / "turned.png", exif=tags)
    clip = read_image(tmp_path / "turned.png", FRAMES)
    # 60 x 40 shown as 40 x 60; 40 / 28 = 1.43 -> 1, 60 / 28 = 2.14 -> 2; 28 * 56 = 1568 < 4 * 784, so enlarged by
    # sqrt(3136 / 2400) = 1.143: 45.7 -> 56, 68.6 -> 84.
    assert clip.frames.shape == (1, 3, 56, 84)
    turned = torch.rot90(torch.from_numpy(np.array(picture)).permute(2, 0, 1), -1, (1, 2))
    assert torch.equal(clip.frames[0], resize(turned, 56, 84))
    assert (clip.sample_fps, clip.is_video) == (0, False)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16", "CMYK"])
def test_images_of_every_mode_become_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new(mode, (56, 56)).save(path)
    frames = read_image(path, FRAMES).frames
    assert frames.shape == (1, 3, 56, 56)
    assert frames.dtype == torch.uint8


def test_bad_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoReadError, match=r"absent\.png: the file does not exist"):
        read_image(tmp_path / "absent.png", FRAMES)
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(VideoReadError, match=r"text\.png: it cannot be read as an image"):
        read_image(tmp_path / "text.png", FRAMES)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    with pytest.raises(VideoReadError, match="cannot be read as an image"):
        read_image(cut(tmp_path / "whole.png", 0.5), FRAMES)
    Image.new("RGB", (201, 1)).save(tmp_path / "thin.png")
    with pytest.raises(VideoReadError, match=r"thin\.png: The media is 201 x 1 pixels"):
        read_image(tmp_path / "thin.png", FRAMES)
