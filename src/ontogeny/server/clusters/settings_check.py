"""The checks that a server process makes before it starts, made once before a cluster starts the replicas.

A cluster reports the error of a replica with tracebacks of its own. The checks read the models, so that a process of
their own makes them, whose memory is free afterwards; the calling process imports JAX neither before nor after.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection

from ontogeny.errors import BadInput, StorageUnavailable
from ontogeny.server.clusters.replica import ReplicaSettings

MAX_CHECK_TIME = 120.0  # seconds; a large model may need more, and the replicas make the same checks
log = logging.getLogger(__name__)


def check_settings(settings: ReplicaSettings, *, needs_gpu: bool) -> None:
    """Makes the checks, as far as this machine can make them.

    Args:
        settings: The settings of all replicas.
        needs_gpu: Whether the replicas compute on graphics processors, which this machine may lack.

    Raises:
        BadInput: A server cannot be started with these settings.
        StorageUnavailable: The database or the snapshots cannot be used at present.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_make_checks, args=(settings, needs_gpu, sender), daemon=True)
    process.start()
    sender.close()
    error = None
    try:
        if receiver.poll(MAX_CHECK_TIME):
            error = receiver.recv()
    except EOFError:
        log.info("the settings were not checked, because the process that reads the models has ended")
    finally:
        process.kill()
        process.join()
        receiver.close()
    if error is not None:
        raise error


def _make_checks(settings: ReplicaSettings, needs_gpu: bool, sender: Connection) -> None:
    """Opens the deployments as a replica does, and sends the error of the user, or None."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    logging.disable()  # the replicas log the same
    os.environ["JAX_PLATFORMS"] = "cpu"
    error: Exception | None = None
    with contextlib.suppress(Exception):  # other errors may come from this machine alone
        try:
            if not needs_gpu:
                settings.prepare()
            from ontogeny.server.deployments import opened_deployments
            from ontogeny.server.store import Store

            store = Store(settings.state_dir, database_url=settings.database_url, snapshot_url=settings.snapshot_url)
            with store, opened_deployments(settings.runs, store, settings.config):
                pass
        except (BadInput, StorageUnavailable) as raised:
            error = raised
    sender.send(error)
