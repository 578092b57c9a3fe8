"""The rows of the result, a module for each kind; ``groups`` of each gives what it measures."""

import os
from contextlib import contextmanager
from dataclasses import dataclass

import peers
from rounds import OURS, Contestant

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Scale:
    """How much is measured: all of it, or next to nothing, to see that it runs."""

    smoke: bool

    def rounds(self, full):
        return 2 if self.smoke else full

    def size(self, full):
        """Return a large size, or what stands for it in a smoke run."""
        return max(64 * KIB, full // 1024) if self.smoke else full

    def of(self, full, smoke):
        return smoke if self.smoke else full


def contestant(name, start, *, who=None):
    """Return a contestant; ``who`` is the peer it uses, if the name does not say so."""
    who = who or name
    block = who if who in peers.DAEMONS else "quiet"
    return Contestant(name, start, block, everywhere=name == OURS)


def with_peer(name, make_turn, *arguments, **options):
    """Return what starts a peer and has ``make_turn`` say what it does when it is its turn."""

    @contextmanager
    def start():
        with peers.peer(name)(*arguments, **options) as it:
            yield make_turn(it)

    return start
