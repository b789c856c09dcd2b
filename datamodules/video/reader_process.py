"""A process that decodes media files for this one, and is killed when a file takes too long or replaced when it dies.

A stalled network file blocks inside the kernel, a damaged one may crash a library: neither can be stopped from within.
Loader workers may have no children of `multiprocessing`, so this is a plain subprocess. It is started with the first
file that a thread reads and serves that thread until it ends; the kernel kills it when the thread ends in any way.

Requests go there pickled. What comes back was written by a process that took apart untrusted files: JSON and raw
pixels, checked before use. See `reader_server.py` for the other side.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.video.decoding import Event, Picture, ReadRequest, Restart
from datamodules.video.types import (
    FileIdentity,
    FramePlan,
    MediaPathError,
    ReaderStartError,
    TimeRangeError,
    VideoMetadata,
    VideoReadError,
    printable,
    unreadable,
)

START_SECONDS = 120
"""For the process to start; on an idle machine it takes half a second."""
LARGEST_MESSAGE = 2**20
"""Bytes of a message without pixels."""

_ERRORS = {error.__name__: error for error in (VideoReadError, TimeRangeError, MediaPathError, ImportError)}
_local = threading.local()
_open: weakref.WeakSet[ReaderProcess] = weakref.WeakSet()


def decode_elsewhere(request: ReadRequest) -> Iterator[Event]:
    """`decoding.decode` in this thread's reader process, within `request.media.timeout` seconds.

    Raises:
        VideoReadError: as `decode`; the file took too long; the process died of it.
        ReaderStartError: the process does not start.
    """
    process: ReaderProcess | None = getattr(_local, "process", None)
    if process is None or not process.alive:
        process = _local.process = ReaderProcess()
    return process.events(request)


class ReaderProcess:
    """One process and the two pipes to it.

    Raises:
        ReaderStartError: it does not start.
    """

    def __init__(self) -> None:
        command = [sys.executable, "-m", "datamodules.video.reader_server"]
        theirs_in, self._requests = os.pipe()
        self._answers, theirs_out = os.pipe()
        project = str(Path(__file__).resolve().parents[2])
        try:
            self._process = subprocess.Popen(
                [*command, str(theirs_in), str(theirs_out), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs_in, theirs_out),
                process_group=0,  # Ctrl-C is for the trainer, which ends this process
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(filter(None, (project, os.environ.get("PYTHONPATH")))),
                    "OMP_NUM_THREADS": "1",
                    "OPENBLAS_NUM_THREADS": "1",
                },
            )
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        self._connected = True
        _open.add(self)
        try:
            self._read(1, time.monotonic() + START_SECONDS)
        except (TimeoutError, EOFError) as error:
            self.close()
            raise ReaderStartError(
                f"The reader process did not start (exit status {self._process.poll()}); its own message stands above. "
                "Without one: data.init_args.media.timeout: null reads in the loader's process."
            ) from error

    def events(self, request: ReadRequest) -> Iterator[Event]:
        """What `decode(request)` gives there; errors as `decode_elsewhere`. Unless it ends as it should, the process is
        ended too, since nobody knows what is still to come from it."""
        assert request.media.timeout is not None, "without a limit, files are read in the loader's process"
        deadline = time.monotonic() + request.media.timeout
        message, in_step = pickle.dumps(request), False
        try:
            os.write(self._requests, len(message).to_bytes(4, "big") + message)
            while (event := self._event(request, deadline)) is not None:
                yield event
            in_step = True
        except (VideoReadError, ImportError):
            in_step = True
            raise
        except TimeoutError as error:
            cause = f"it was not read within media.timeout {request.media.timeout:g} s"
            remedy = "Look at the disk or the network, or raise the limit."
            raise unreadable(printable(request.path), cause, remedy) from error
        except (EOFError, BrokenPipeError, ValueError, KeyError, TypeError) as error:
            self.close()
            cause = f"the process that read it ended with status {self._process.poll()} (a crash, or out of memory)"
            raise unreadable(printable(request.path), cause) from error
        finally:
            if not in_step:
                self.close()

    @property
    def alive(self) -> bool:
        """Whether it waits for requests; something else may have ended it since the last one."""
        return self._connected and self._process.poll() is None

    def close(self) -> None:
        """Kill the process and forget it; one that hangs in the kernel dies when the kernel lets go of it."""
        if not self._connected:
            return
        self._close_pipes()
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # subprocess collects it later
            self._process.wait(1)

    def forget(self) -> None:
        """In a child of `fork`: the process belongs to the parent."""
        if self._connected:
            self._close_pipes()
            self._process.returncode = 0  # or subprocess warns that it still runs

    def __del__(self) -> None:
        if getattr(self, "_connected", False):
            self.close()

    def _close_pipes(self) -> None:
        self._connected = False
        os.close(self._requests)
        os.close(self._answers)

    def _event(self, request: ReadRequest, deadline: float) -> Event | None:
        """The next event; None at the end."""
        size = int.from_bytes(self._read(4, deadline), "big")
        if size > LARGEST_MESSAGE:
            raise EOFError
        message: dict[str, Any] = json.loads(bytes(self._read(size, deadline)))
        kind = message.pop("kind")
        if kind == "end":
            return None
        if kind == "error":
            raise _ERRORS[message["type"]](message["text"])
        if kind == "picture":
            height, width = message["shape"]
            if not (0 < height * width <= max(request.media.max_pixels, 1)):
                raise EOFError
            pixels = np.frombuffer(self._read(height * width * 3, deadline), np.uint8).reshape(height, width, 3)
            return Picture(number=message["number"], pixels=pixels)
        if kind == "plan":
            return FramePlan(**{**message, "indices": tuple(message["indices"])})
        return {"metadata": VideoMetadata, "identity": FileIdentity, "restart": Restart}[kind](**message)

    def _read(self, size: int, deadline: float) -> bytearray:
        """Exactly `size` bytes.

        Raises:
            TimeoutError: they did not come before the deadline.
            EOFError: the process ended.
        """
        data = bytearray(size)
        rest = memoryview(data)
        ready = select.poll()
        ready.register(self._answers, select.POLLIN)
        while rest:
            left = deadline - time.monotonic()
            if left <= 0 or not ready.poll(math.ceil(left * 1000)):
                raise TimeoutError
            count = os.readv(self._answers, [rest])
            if count == 0:
                raise EOFError
            rest = rest[count:]
        return data


def _forget_all() -> None:
    for process in list(_open):
        process.forget()
    _local.__dict__.clear()


os.register_at_fork(after_in_child=_forget_all)
