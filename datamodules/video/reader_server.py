"""The reader process: `python -m datamodules.video.reader_server REQUESTS ANSWERS PARENT`, started by `reader_process`.

Two open file descriptors and the parent's process id. It reads one request after the other, and ends with the parent.
Imports no torch.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import pickle
import resource
import signal
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import Any, BinaryIO

import numpy as np

from datamodules.video.decoding import Picture, ReadRequest, Restart, decode
from datamodules.video.types import FileIdentity, FramePlan, VideoReadError

MEMORY = 8 * 2**30
"""Bytes that the process may take: a file that needs more is unreadable, and training goes on."""
PIPE_SIZE = 2**20
"""Bytes that wait in the pipe at most, the kernel's own limit for users."""

_PR_SET_PDEATHSIG = 1
_F_SETPIPE_SZ = 1031


def main() -> None:
    requests, answers, parent = (int(argument) for argument in sys.argv[1:4])
    _end_with(parent)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prepare_libraries(answers)
    with os.fdopen(requests, "rb") as incoming, os.fdopen(answers, "wb", buffering=0) as outgoing:
        gc.freeze()  # what is imported stays, and need not be looked through after each file
        outgoing.write(b"\0")  # ready
        while head := incoming.read(4):
            _serve(pickle.loads(incoming.read(int.from_bytes(head, "big"))), outgoing)
            gc.collect()  # PyAV's containers and streams refer to each other, and their buffers are large
            gc.freeze()  # a reader's own imports (torchcodec brings torch) would cost every later collection 0.3 s


def _serve(request: ReadRequest, outgoing: BinaryIO) -> None:
    try:
        for event in decode(request):
            if isinstance(event, Picture):
                _send(outgoing, {"kind": "picture", "number": event.number, "shape": event.pixels.shape[:2]})
                _write(outgoing, np.ascontiguousarray(event.pixels).data.cast("B"))
            else:
                kind = {FramePlan: "plan", FileIdentity: "identity", Restart: "restart"}.get(type(event), "metadata")
                _send(outgoing, {"kind": kind, **asdict(event)})
    except VideoReadError as error:
        _send(outgoing, {"kind": "error", "type": type(error).__name__, "text": str(error)})
    except ImportError as error:
        _send(outgoing, {"kind": "error", "type": "ImportError", "text": str(error)})
    else:
        _send(outgoing, {"kind": "end"})


def _send(outgoing: BinaryIO, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    _write(outgoing, memoryview(len(data).to_bytes(4, "big") + data))


def _write(outgoing: BinaryIO, data: memoryview) -> None:
    while data:
        data = data[outgoing.write(data) :]


def _end_with(parent: int) -> None:
    """Die with the thread that started this process, whatever this process does then, and not before it.

    Signals that end a run reach its whole group of processes, while it still ends its step.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call above
        sys.exit()


def _prepare_libraries(answers: int) -> None:
    import fcntl

    import av  # noqa: F401 - now rather than within the first file's time
    from PIL import Image, ImageCms  # noqa: F401 - likewise

    Image.MAX_IMAGE_PIXELS = None  # `media.max_pixels` holds
    with suppress(PermissionError):  # the user has used up what pipes may take: only slower
        fcntl.fcntl(answers, _F_SETPIPE_SZ, PIPE_SIZE)


if __name__ == "__main__":
    main()
