"""How much memory of its own a piece of work takes, native libraries' included."""

import gc
import re
import threading
from pathlib import Path

import pyarrow as pa


def anonymous():
    """Private bytes of this process; pages of segments are not among them."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10


def peak_of(work):
    """The most private memory that `work` has beyond what was there, sampled while it runs."""
    gc.collect()
    pa.default_memory_pool().release_unused()  # or what is freed later hides what is taken
    before = anonymous()
    peak, done = [0], threading.Event()

    def watch():
        while not done.wait(0.0005):
            peak[0] = max(peak[0], anonymous() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        work()
    finally:
        done.set()
        thread.join()
    return max(peak[0], anonymous() - before)
