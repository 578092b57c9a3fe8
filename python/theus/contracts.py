"""The decorator of process functions, under its public name."""

from theus.tasks.contract import ProcessContract, contract_of, process

__all__ = ["ProcessContract", "contract_of", "process"]
