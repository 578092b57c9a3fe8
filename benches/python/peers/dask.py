"""Dask's distributed scheduler, in this process, and workers of one thread in processes."""

import logging

import dask
from distributed import Client, LocalCluster

from peers.base import Peer


class Dask(Peer):
    """It has no shared memory: arguments are serialised, with their buffers apart."""

    shares = False

    def __init__(self, workers, *, warm=True):
        # A payload in a task's arguments is what is measured, and what it warns of.
        dask.config.set({"distributed.admin.large-graph-warning-threshold": "10GB"})
        self.cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        )
        self.client = Client(self.cluster)
        if warm:
            self.warm(workers)

    def submit(self, function, *arguments):
        return self.client.submit(function, *arguments, pure=False)

    def calls(self, function, items):
        futures = [self.submit(function, *item) for item in items]
        return self.client.gather(futures)

    def close(self):
        self.client.close()
        self.cluster.close()
