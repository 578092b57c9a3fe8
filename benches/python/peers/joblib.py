"""joblib: loky's workers, and arrays as files in shared memory that they map."""

import os
import shutil
import tempfile

import joblib
from joblib.externals import loky

from peers.base import Peer


class Joblib(Peer):
    """Its executor; ``put`` is ``joblib.dump`` and attaching ``joblib.load(mmap_mode="r")``."""

    def __init__(self, workers, *, warm=True):
        self.pool = loky.ProcessPoolExecutor(workers)
        self.directory = tempfile.mkdtemp(prefix="joblib-bench-", dir="/dev/shm")
        self.made = 0
        if warm:
            self.warm(workers)

    def submit(self, function, *arguments):
        return self.pool.submit(function, *arguments)

    def put(self, data):
        self.made += 1
        return self.dump(data, os.path.join(self.directory, str(self.made)))  # noqa: PTH118

    def refill(self, handle, data):
        self.dump(data, handle)

    def dump(self, data, path):
        joblib.dump(data, path)
        return path

    def free(self, handle):
        os.unlink(handle)  # noqa: PTH108

    def attach(self):
        return attach

    def close(self):
        self.pool.shutdown()
        shutil.rmtree(self.directory)


def attach(path):
    return joblib.load(path, mmap_mode="r")
