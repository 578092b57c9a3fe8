"""``python -m theus._worker``: what the dispatcher starts, and nobody else."""

from theus.worker.loop import main

__all__ = ["main"]

if __name__ == "__main__":
    import json
    import os

    from theus.protocol import LAUNCH

    # Popped before all else, as what the tasks start is no worker.
    main(json.loads(os.environ.pop(LAUNCH)))
