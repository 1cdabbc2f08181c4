"""Both halves of a batch at the same time, each on half of the cores.

A small network has small matrices: shared out among cores, each waits for the others at every one of them. Two threads
that have half a batch each meet once a step."""

from concurrent.futures import ThreadPoolExecutor

import torch


class Cores:
    """How the micro-batches of one step run: one after the other, or a single one as two halves at once.

    Halves: with several threads on a CPU, without other ranks. A gradient is the sum of two terms then. So it does not
    depend on which half is ready first. They run on threads of their own: this one keeps its number of torch threads.
    """

    def __init__(self, train, ranks):
        threads, plain = torch.get_num_threads(), not train.compile and train.optimizer != "offload"   # one at a time
        alone = ranks.device.type == "cpu" and ranks.world == train.accumulate == 1
        self.pool = None
        if alone and plain and threads > 1 < train.batch_size:
            self.pool = ThreadPoolExecutor(2, "half", torch.set_num_threads, (threads // 2,))

    def parts(self, micro):
        """micro: list of (Batch, eps, tau) -> the same, or the two halves of its only one."""
        if not self.pool:
            return micro
        (batch, eps, tau), half = micro[0], -(-len(micro[0][1]) // 2)
        return [(batch.rows(rows), eps[rows], tau[rows]) for rows in (slice(half), slice(half, None))]

    def each(self, function, *columns):
        """map(function, *columns), of what `parts` gave."""
        return (self.pool.map if self.pool else map)(function, *columns)
