"""Several processes as one, under torchrun: DDP, where every rank holds everything, or with --shard FSDP2.

Gradients are sums over ranks, never means: train.py divides by the counts of the whole step, so ranks with unequal
numbers of valid elements add up exactly. For a parameter that is not sharded `local`, `whole` and `share` hand back
what they are given. Without torchrun no process group exists and every method is the identity."""

import contextlib
import os
import re
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

MINUTES = 30   # a rank waits so long for another, which may be writing a checkpoint of 40 GB
LOST = re.compile(r"Connection (closed|reset) by peer|Timed out waiting")   # of gloo: it has no error class of its own


def local(x):
    """This rank's part of a parameter or gradient, as a plain tensor that shares its memory."""
    return x.to_local() if isinstance(x, DTensor) else x


def whole(part, like):
    """This rank's part of something cut like the parameter `like` -> all of it. Every rank must call it."""
    if not isinstance(like, DTensor):
        return part
    sent = part.view(torch.bfloat16) if part.dtype == torch.int16 else part   # gloo and NCCL know no int16
    cut = DTensor.from_local(sent, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
    return cut.full_tensor().view(part.dtype)


def share(x, like):
    """The opposite of `whole`: a full tensor, the same on every rank -> it, sharded as the parameter `like` is."""
    if not isinstance(like, DTensor):
        return x
    return distribute_tensor(x, like.device_mesh, like.placements, src_data_rank=None)


@contextlib.contextmanager
def lost_rank_explained():
    """Another rank that is gone, as with its node, is one line on this one: ConnectionError."""
    try:
        yield
    except RuntimeError as error:
        found, peer = LOST.search(str(error)), re.search(r"\[([\d.:a-f]+)\]:\d+", str(error))
        if not (found and dist.is_initialized()):
            raise
        where = f" of {peer[1]}" if peer else ""
        raise ConnectionError(f"rank {dist.get_rank()} has lost another rank{where} ({found[0]}) and ends: --resume on "
                              "all nodes goes on from the newest checkpoint") from error


class Ranks:
    """All processes of one run. rank: this one's number; first: this one prints and writes; world: how many there are;
    dealt: how many the data are dealt to, `world` or what a resumed run began with; device: where it computes; agent:
    the id of torchrun's process, "" without; restarted: not for the first time."""

    def __init__(self):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.dealt, self.first, attempt = self.world, self.rank == 0, os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
        self.restarted, self.agent = int(attempt or 0) > 0, str(os.getppid()) if attempt else ""
        self.device, self.replicated = torch.device("cpu"), []
        if torch.cuda.is_available():
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(self.device)
        if "RANK" in os.environ and not dist.is_initialized():
            store, _, _ = next(dist.rendezvous("env://", self.rank, self.world))
            # torchrun may hand a restarted group the store of the dead one, with the dead one's addresses in it.
            store = dist.PrefixStore(f"attempt {attempt}", store)
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", store=store, rank=self.rank,
                                    world_size=self.world, timeout=timedelta(minutes=MINUTES))
        if not self.first:
            sys.stdout = open(os.devnull, "w")   # one voice

    def take_over(self, began):
        """Go on with a run whose data were dealt to `began` ranks: as they were, if each rank can draw for as many."""
        self.dealt = self.world if began % self.world else began

    @property
    def draws_for(self):
        """The ranks of `dealt` that this one draws for: itself, and after `take_over` perhaps others."""
        return range(self.rank, self.dealt, self.world)

    def wrap(self, model, shard):
        """The module whose forward pass synchronises gradients, as sums."""
        self.replicated = []
        if not dist.is_initialized():
            return model
        if shard:
            mesh = init_device_mesh(self.device.type, (self.world,))
            # Kept whole: what is frozen, and beside bfloat16 weights the few float32 ones, since FSDP2 wants one dtype.
            self.replicated = [p for p in model.parameters() if p.requires_grad and p.dtype != model.dtype]
            ignored = {p for p in model.parameters() if not p.requires_grad}.union(self.replicated)
            for layer in model.layers:
                fully_shard(layer, mesh=mesh, ignored_params=ignored)
            fully_shard(model, mesh=mesh, ignored_params=ignored)
            for module in (model, *model.layers):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)   # gloo has no scaled sums
            return model
        wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)   # a gradient is stored once
        wrapped.register_comm_hook(None, _summed)
        return wrapped

    @staticmethod
    def synchronised(model, last):
        """Context of one micro-batch's backward pass: gradients travel with the last one of a step alone."""
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(last)
        replicated = isinstance(model, DistributedDataParallel)
        return model.no_sync() if replicated and not last else contextlib.nullcontext()

    def complete(self):
        """After the last micro-batch of a step: add up the gradients that sharding left to each rank."""
        for p in self.replicated:
            dist.all_reduce(p.grad)

    def sums(self, *values):
        """Each value (python number) summed over all ranks -> list of floats. Whole numbers stay exact to 2^53."""
        if not dist.is_initialized():
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def agree(self, value):
        """Rank 0's value (any plain Python object) on every rank."""
        if not dist.is_initialized():
            return value
        box = [value]
        dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def gather(self, value):
        """The values of all ranks, as a list by rank."""
        if not dist.is_initialized():
            return [value]
        values = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def by_dealt(self, values):
        """A value for each that a rank draws for, of all ranks -> a list by the ranks that the data are dealt to."""
        return [value for row in zip(*self.gather(values)) for value in row]

    def state_dict(self, model):
        """Full tensors of a model by name, the form of an unsharded run. On rank 0; empty elsewhere if sharded."""
        tensors = {}
        for name, x in model.state_dict().items():
            full = x.full_tensor().cpu() if isinstance(x, DTensor) else x   # all ranks take part
            if self.first or full is x:
                tensors[name] = full
        return tensors

    @staticmethod
    def close():
        """Leave the group in order, at the end of a run that went well."""
        if dist.is_initialized():
            dist.destroy_process_group()


def _summed(_, bucket):
    """DDP's communication hook that adds gradients up instead of averaging them."""
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda future: future.value()[0])
