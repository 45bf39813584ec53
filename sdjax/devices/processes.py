"""Several processes of one job: how they start, which one writes, how they agree, and how they report failures."""

import contextlib
import itertools
import os
import sys

import jax
import numpy as np

from sdjax.errors import SdjaxError, out_of_memory

_MEETINGS = itertools.count()  # how often this process has called `meet`: all processes count alike

A_YEAR = 365 * 24 * 3600 * 1000  # in milliseconds: a limit that nobody meets


def start_processes(coordinator: str | None, count: int | None, index: int | None, patience: int = 100) -> None:
    """Joins the other processes of the job. Call it before anything else touches a device.

    coordinator: HOST:PORT of process 0, or "auto" if the cluster tells all of it (SLURM, Open MPI, TPU pods,
        Kubernetes); None is a job of one process.
    count: the number of processes; None with "auto".
    index: the number of this process, from 0; None with "auto".
    patience: if a process does not answer for so many seconds, the others end.
    SdjaxError: arguments that do not fit together, or processes that do not find each other.
    """
    if coordinator is None:
        if count not in (None, 1) or index not in (None, 0):
            raise SdjaxError("coordinator: is missing, give HOST:PORT of process 0 to all processes, or auto")
        return
    if coordinator == "auto":
        if (count, index) != (None, None):
            raise SdjaxError(
                "coordinator auto: the cluster tells `num_processes` and `process_id`; leave them out, "
                "or give HOST:PORT of process 0"
            )
        where = {}
    else:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 2**16:
            raise SdjaxError(f"coordinator {coordinator}: expected HOST:PORT of process 0, or auto")
        if count is None or count < 1:
            raise SdjaxError(f"num_processes {count}: expected the number of processes, at least 1")
        if index is None or not 0 <= index < count:
            raise SdjaxError(f"process_id {index}: expected a number from 0 to {count - 1}")
        where = {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
    try:
        jax.distributed.initialize(
            **where, initialization_timeout=300, heartbeat_timeout_seconds=patience, shutdown_timeout_seconds=patience
        )
    except (RuntimeError, ValueError) as error:
        raise SdjaxError(f"coordinator {coordinator}: {error}") from None


def is_primary() -> bool:
    """Is this process 0, the one that writes?"""
    return jax.process_index() == 0


def local_part(count: int) -> slice:
    """Returns which examples of a global batch of `count` this process reads: an equal part for each process."""
    size = count // jax.process_count()
    return slice(jax.process_index() * size, (jax.process_index() + 1) * size)


def meet() -> None:
    """Waits until every process of the job has called this as often as this one has, however long that takes.

    Processes that arrive at different times wait here, in the job's coordination service, before they enter a
    collective: on CPUs a collective gives up after 30 seconds. A process that is gone ends the wait after the
    `patience` of `start_processes`, with a JaxRuntimeError.
    """
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost

        multihost.get_barrier_sync_fn()(key=f"sdjax-{next(_MEETINGS)}", timeout_ms=A_YEAR)


def agree(value: int) -> int:
    """Returns process 0's value on all processes, which may come here at different times. It must fit in int32."""
    return everyone(value)[0]


def everyone(value: int) -> list[int]:
    """Returns the int32 values of all processes, by process, on each of them; they may come at different times."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    meet()
    return multihost_utils.process_allgather(np.int32(value)).tolist()


@contextlib.contextmanager
def device_errors():
    """Turns two failures inside the block into one line instead of a traceback.

    If the device has too little memory, it raises SdjaxError. If there are several processes, any device error means
    that another process is gone or a device failed: it prints a line and ends this process at once with status 2,
    because an orderly end would wait for the others.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        if jax.process_count() > 1:
            print(
                f"error: --coordinator: another process is gone or a device failed ({reason}); start all processes "
                "again with the same command",
                file=sys.stderr,
                flush=True,
            )
            os._exit(2)
        if out_of_memory(error):
            raise SdjaxError(
                f"batch_size: the device's memory does not hold the step ({reason}); a smaller batch "
                "with `accumulate`, `remat`, `dtype` bfloat16 and `parallel` fsdp take less"
            ) from None
        raise
