"""The batches of a training run: loader processes around a data.Mixture, and the count of bad samples."""

import sys

import torch

BAD_SHARE, AT_LEAST = 1e-3, 1000   # --on_bad_sample skip: of this share of samples, or of so many, may be bad


def micro_batches(mixture, collate, first_step, last_step, worker_init_fn=None):
    """As Mixture.loader. collate: a list of its items -> (Batch, eps, tau, what was wrong with replaced samples). These
    are named, and counted in mixture.bad_samples; ValueError when they are too many."""
    size, accumulate = mixture.config.train.batch_size, mixture.config.train.accumulate

    def numbers():   # one by one: pre-training has 45 million micro-batches
        micros = range(first_step * accumulate, last_step * accumulate)
        return (range(micro * size, (micro + 1) * size) for micro in micros)
    batches = torch.utils.data.DataLoader(mixture, batch_sampler=numbers(), collate_fn=collate,
                                          num_workers=mixture.config.data.loaders, worker_init_fn=worker_init_fn)
    return _counted(mixture, numbers(), iter(batches))   # the processes start here, not with the first batch


def _counted(mixture, parts, batches):
    for part, (*batch, faults) in zip(parts, batches):
        for fault in faults:
            print(f"bad sample, another is drawn: {fault}", file=sys.stderr)
        mixture.bad_samples += len(faults)
        if faults and mixture.bad_samples > BAD_SHARE * max(part.stop, AT_LEAST):
            raise ValueError(f"--on_bad_sample skip: {mixture.bad_samples} of {part.stop} samples were bad, more than "
                             f"{BAD_SHARE:.1%}; repair the data; the last: {faults[-1]}")
        yield tuple(batch)
