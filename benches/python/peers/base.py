"""What is asked of a peer: to run functions in workers, and to show them data."""

import contextlib

import tasks


class Peer(contextlib.AbstractContextManager):
    """A way to run functions in ``workers`` other processes, started and warm when it is made."""

    shares = True  # whether several workers can look at one copy of the data
    settling_s = 0.1  # how long it may work on in the background, freeing memory, say

    def submit(self, function, *arguments):
        """Return a future of the function's result."""
        raise NotImplementedError

    def call(self, function, *arguments):
        return self.submit(function, *arguments).result()

    def calls(self, function, items):
        """Return the results of the function for each item, all in flight at once."""
        return [future.result() for future in [self.submit(function, *item) for item in items]]

    def put(self, data):
        """Put data where workers can look at it; return what finds it again."""
        raise NotImplementedError

    def free(self, handle):
        """Let go of what ``put`` returned; what is put next may have its memory."""

    def attach(self):
        """Return the function that makes a view of a handle in a worker."""
        raise NotImplementedError

    def look(self, function, handle, *arguments):
        """Return ``function(view, *arguments)`` of one worker."""
        return self.looks(function, handle, [arguments])[0]

    def looks(self, function, handle, items):
        """Return the results of a look for each item, all in flight at once."""
        how = self.attach()
        return self.calls(tasks.look_with, [(how, handle, function, item) for item in items])

    def reach_all(self, workers, work):
        """Return what each worker gave: tasks that take their time, until each has had one."""
        for _ in range(20):
            results = work(workers)
            if len({pid for pid, *_ in results}) == workers:
                return results
        msg = f"{type(self).__name__} never gave each of its {workers} workers a task"
        raise RuntimeError(msg)

    def warm(self, workers):
        """Have each worker run something."""
        self.reach_all(workers, lambda count: [(pid,) for pid in self.whoami(count)])

    def whoami(self, count):
        return self.calls(tasks.whoami, [()] * count)

    def close(self):
        raise NotImplementedError

    def __exit__(self, *_):
        self.close()
