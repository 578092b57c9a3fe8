"""Everybody that takes part, by name; a module is imported when its peer is started."""

from importlib import import_module

# name: what a user imports for it, where it is here, and its class.
_PEERS = {
    # The package alone loads nothing: its engine is what a user imports.
    "theus": (["theus", "theus.engine"], "peers.theus", "Theus"),
    "ProcessPoolExecutor": (["concurrent.futures.process"], "peers.stdlib", "Pool"),
    "shared_memory": (["multiprocessing.shared_memory", "numpy"], "peers.stdlib", "Shared"),
    "joblib": (["joblib"], "peers.joblib", "Joblib"),
    "Ray": (["ray"], "peers.ray", "Ray"),
    "Dask": (["distributed"], "peers.dask", "Dask"),
}
# What every import of Theus has to import.
IMPORTS = "floor: numpy, pyarrow, cloudpickle"
ONLY_IMPORTED = {IMPORTS: ["numpy", "pyarrow", "cloudpickle"]}
# Those whose daemons work also while nothing is asked of them.
DAEMONS = {"Ray", "Dask"}


def imported_for(name):
    """Return the modules that a user of this peer imports."""
    return ONLY_IMPORTED.get(name) or _PEERS[name][0]


def peer(name):
    """Return the peer's class.

    Raises
    ------
    ImportError
        If it is not installed.
    """
    _, module, kind = _PEERS[name]
    return getattr(import_module(module), kind)
