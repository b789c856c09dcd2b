"""Loader workers outlive the signals that end a run: the training they load for first ends its step."""

from __future__ import annotations

import os
import signal
import threading

from lightning.fabric.utilities.seed import pl_worker_init_function


def prepare_worker(worker_id: int) -> None:
    """What a loader worker does first.

    Schedulers, torchrun and terminals send their signals to whole groups of processes. A worker that left would raise
    an exception in the middle of the step. So it ignores them, but for a SIGTERM of its own parent.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_leave_when_told, args=(os.getppid(),), daemon=True).start()
    if int(os.environ.get("PL_SEED_WORKERS", "0")):  # what Lightning adds to a loader without such a function
        pl_worker_init_function(worker_id)


def _leave_when_told(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
