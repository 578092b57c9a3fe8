"""Ray, on this machine alone: an actor for each worker, data in its object store."""

import logging
import os

import ray

from peers.base import Peer

_GIB = 1 << 30


@ray.remote(num_cpus=0)
class _Worker:
    def run(self, function, arguments):
        return function(*arguments)


@ray.remote
def _run(function, arguments):
    return function(*arguments)


class Ray(Peer):
    """Actors, which are faster than its tasks; ``task`` is those."""

    # It frees once in a second; what is put earlier takes other memory than that of the last.
    settling_s = 1.2

    def __init__(self, workers, *, warm=True, store_gib=2):
        ray.init(
            num_cpus=len(os.sched_getaffinity(0)),
            object_store_memory=max(store_gib * _GIB, _GIB // 8),
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
        self.actors = [_Worker.remote() for _ in range(workers)]
        self.turn = 0
        if warm:
            self.warm(workers)

    def send(self, function, arguments):
        self.turn += 1
        return self.actors[self.turn % len(self.actors)].run.remote(function, arguments)

    def call(self, function, *arguments):
        return ray.get(self.send(function, arguments))

    def calls(self, function, items):
        return ray.get([self.send(function, item) for item in items])

    def task(self, function, *arguments):
        return ray.get(_run.remote(function, arguments))

    def put(self, data):
        return [ray.put(data)]

    def free(self, handle):
        handle.clear()

    def attach(self):
        return attach

    def close(self):
        self.actors.clear()
        ray.shutdown()


def attach(handle):
    return ray.get(handle[0])
