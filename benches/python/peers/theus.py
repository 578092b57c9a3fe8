"""Theus itself, used as its guide says."""

import tasks
from peers.base import Peer
from theus import TheusEngine, process


@process(parallel=True)
def nothing(ctx):
    return None


@process(parallel=True)
def size_of(ctx, item):
    return len(item)


@process(parallel=True)
def echo(ctx, item):
    return item


@process(parallel=True)
def total(ctx, item):
    return float(item.sum())


@process(parallel=True)
def whoami(ctx):
    return tasks.whoami()


@process(parallel=True)
def look(ctx, function, key, arguments):
    return function(lambda: ctx.heavy[key], *arguments)


@process(parallel=True)
def nothing_with(ctx, item):
    return None


_OURS = {getattr(tasks, ours.__name__): ours for ours in (nothing, size_of, echo, total, whoami)}


class Theus(Peer):
    """One engine; every entry that is put has the same name, so that a put replaces the last."""

    def __init__(self, workers, *, warm=True, **options):
        self.engine = TheusEngine(workers=workers, **options)
        if warm:
            self.warm(workers)

    def submit(self, function, *arguments):
        return self.engine.submit(_OURS[function], **dict(zip(["item"], arguments, strict=False)))

    def call_plain(self, function, *arguments):
        """Call a function that knows nothing of a context."""
        return self.engine.executor().submit(function, *arguments).result()

    def put(self, data):
        self.engine.heavy.put("data", data)
        return "data"

    def free(self, handle):
        self.engine.heavy.free(handle)

    def looks(self, function, handle, items):
        submit = self.engine.submit
        futures = [submit(look, function=function, key=handle, arguments=item) for item in items]
        return [future.result() for future in futures]

    def close(self):
        self.engine.close()
