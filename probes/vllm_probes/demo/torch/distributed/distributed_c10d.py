"""Collectives among processes: a call that returns when every rank has made it."""

import multiprocessing
from multiprocessing.synchronize import Semaphore


class ProcessGroup:
    """What forked ranks share. They wait in the kernel: on a GPU they would spin, and take a whole core each here."""

    def __init__(self, world_size: int) -> None:
        context = multiprocessing.get_context("fork")
        self.arrivals: list[Semaphore] = [context.Semaphore(0) for _ in range(world_size)]
        """For each rank: how many others have arrived that it has not met yet."""


def all_reduce(group: ProcessGroup, rank: int) -> None:
    """Meet all other ranks."""
    others = [semaphore for other, semaphore in enumerate(group.arrivals) if other != rank]
    for semaphore in others:
        semaphore.release()
    for _ in others:
        group.arrivals[rank].acquire()
