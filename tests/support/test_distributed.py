"""Several ranks train as one: the same gradients, losses and checkpoints."""

import os
import socket
from contextlib import closing
from dataclasses import replace

import pytest
import torch
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

import train
from config import get_config
from data import Batch
from model import InternVLA_A1
from support import checkpoint
from support.training import optimizers
from support.training.ranks import Ranks, lost_rank_explained
from support.training.checkpointer import Checkpointer
from support.data.statistics import Statistics
from support.training.prepare import prepare

STEPS = 10


@pytest.fixture(scope="module")
def config(tiny):
    whole = get_config("conveyor", {"batch_size": 8, "warmup_steps": 0, "lr": 1e-3})
    return replace(whole, model=replace(tiny, action_draws=2))


@pytest.fixture(scope="module")
def fixed(config, random_batch, noise):
    """A global batch of 8 with its noise. Rows 4 to 7 are human video; cameras and chunk lengths differ by row."""
    cameras = [[True] * 3, [True, False, True], [True, True, False], [True] * 3] + [[True, False, False]] * 4
    return (random_batch(config.model, 8, cameras, human=(4, 5, 6, 7)), *noise(config.model, 8, R=2))


def part(fixed, rows):
    batch, eps, tau = fixed
    return Batch(**{key: x[rows] for key, x in vars(batch).items()}), eps[rows], tau[rows]


def train_on(ranks, config, fixed, micros, shard=False, out=None, kind="fp32"):
    """Ten steps on this rank's micro-batches -> (step-0 gradients by name, losses of each step)."""
    torch.manual_seed(0)
    model = InternVLA_A1(config.model)
    wrapped, masters, _ = prepare(model, replace(config.train, optimizer=kind), ranks, shard)
    optimizer = optimizers.adamw(kind, model, masters)
    micro = [part(fixed, rows) for rows in micros]
    first, losses = None, []
    for _ in range(STEPS):
        counts = ranks.sums(*train.elements(model, micro))
        own = train.gradients(wrapped, micro, config, ranks, counts)
        losses.append(ranks.sums(*own))
        if first is None:
            if isinstance(wrapped, DistributedDataParallel):   # they lie in its few buckets, and nowhere else
                assert len({p.grad.untyped_storage().data_ptr() for p in optimizer.parameters.values()}) <= 3
            first = {name: (p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad).clone()
                     for name, p in optimizer.parameters.items()}
        optimizer.step(1e-3, optimizers.clip_scale(optimizers.global_norm(optimizer.parameters.values()), 1.0))
        optimizer.zero_grad()
    if out is not None:
        checkpointer = Checkpointer(out, ranks, config, {STATS.robot: STATS}, model, optimizer)
        checkpointer.begin()
        checkpointer.save(STEPS)
        assert checkpointer.problem == ""
    return first, losses


STATS = Statistics(
    robot="arm", action_mode="absolute", fps=30.0, state_mean=(0.0,), state_std=(1.0,), action_mean=(0.0,),
    action_std=(1.0,), windows=8)
WAYS = {"ddp": ([range(4)], [range(4, 8)], False),
        "ddp, accumulated": ([range(2), range(2, 4)], [range(4, 6), range(6, 8)], False),
        "fsdp": ([range(4)], [range(4, 8)], True),
        "fsdp, accumulated": ([range(2), range(2, 4)], [range(4, 6), range(6, 8)], True)}
LEAN = ("split", "offload")


def one_of_two(rank, port):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return Ranks()


def child(rank, port, config, fixed, folder):
    ranks = one_of_two(rank, port)
    found = {name: train_on(ranks, config, fixed, (mine, other)[rank], shard, folder / name)
             for name, (mine, other, shard) in WAYS.items()}
    for kind in LEAN:
        for shard in (False, True):
            name = f"{kind} {shard}"
            found[name] = train_on(ranks, config, fixed, WAYS["ddp"][rank], shard, folder / name, kind)
    if ranks.first:
        torch.save(found, folder / "found.pt")
    ranks.close()


def fork_two(work, *args):
    """work(rank, port, *args) in two processes."""
    with closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.start_processes(work, (port, *args), nprocs=2, start_method="fork")


@pytest.fixture(scope="module")
def two_ranks(config, fixed, tmp_path_factory):
    """What two processes computed, every one of WAYS, and the folder with their checkpoints."""
    folder = tmp_path_factory.mktemp("ranks")
    fork_two(child, config, fixed, folder)
    return torch.load(folder / "found.pt", weights_only=True), folder


@pytest.fixture(scope="module")
def alone(config, fixed, tmp_path_factory):
    return train_on(Ranks(), config, fixed, [range(8)], out=tmp_path_factory.mktemp("alone"))


def compare(one, other):
    """The gradient as one vector to 1e-6, each tensor of it to 1e-5, the losses to 1e-5, all relative."""
    a, b = (torch.cat([side[0][name].flatten() for name in one[0]]) for side in (one, other))
    assert (a - b).norm() <= 1e-6 * a.norm()
    for name, gradient in one[0].items():
        assert (other[0][name] - gradient).norm() <= 1e-5 * gradient.norm(), name
    assert torch.allclose(torch.tensor(other[1]), torch.tensor(one[1]), rtol=1e-5, atol=0)


def test_a_step_accumulated_from_unequal_micro_batches_is_the_step_of_the_whole_batch(config, fixed, alone):
    """One process, 8 samples as 3 + 1 + 4, the last all human video: gradients to 1e-6, ten losses to 1e-5."""
    compare(alone, train_on(Ranks(), config, fixed, [range(3), range(3, 4), range(4, 8)]))


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_train_as_one(alone, two_ranks, way):
    """2 x 4 against 1 x 8, gloo; rank 1 has human video alone. Unequal valid counts are exact, DDP and FSDP2."""
    assert alone[1][0][0] > 0 and alone[1][-1][0] < alone[1][0][0]
    compare(alone, two_ranks[0][way])


@pytest.mark.parametrize("kind", LEAN)
def test_lean_optimizers_train_sharded_as_they_do_whole(alone, two_ranks, kind):
    """bf16 weights over two ranks: norms and projections in float32 are replicated, all else is cut. The sums of two
    bf16 gradients are the same in DDP and FSDP2; against float32 the first loss is as far as bf16 is."""
    whole, sharded = two_ranks[0][f"{kind} False"], two_ranks[0][f"{kind} True"]
    assert {x.dtype for x in sharded[0].values()} == {torch.bfloat16, torch.float32}
    for name, gradient in whole[0].items():
        assert (sharded[0][name].float() - gradient.float()).norm() <= 0.02 * gradient.float().norm(), name
    assert torch.allclose(torch.tensor(sharded[1]), torch.tensor(whole[1]), rtol=1e-2)
    assert torch.allclose(torch.tensor(whole[1][0]), torch.tensor(alone[1][0]), rtol=2e-2)


def test_a_sharded_run_saves_the_checkpoint_of_an_unsharded_one(two_ranks):
    """Names, shapes and dtypes are equal; values as close as ten steps leave them."""
    one, other = (two_ranks[1] / way / f"step_{STEPS:08d}" for way in ("ddp", "fsdp"))
    for load in (lambda path: checkpoint.load(path)[0], checkpoint.load_optimizer):
        a, b = load(one), load(other)
        assert a.keys() == b.keys()
        for name, x in a.items():
            assert x.shape == b[name].shape and x.dtype == b[name].dtype
            assert torch.allclose(x, b[name], rtol=1e-3, atol=1e-4), name


def test_a_checkpoint_of_a_sharded_run_goes_on_unsharded(config, two_ranks, capsys):
    """--resume with another number of ranks loads everything, and says that it is not exact."""
    torch.manual_seed(5)
    model, folder = InternVLA_A1(config.model), two_ranks[1] / "fsdp"
    optimizer = optimizers.adamw("fp32", model, prepare(model, config.train, Ranks(), False)[1])
    checkpointer = Checkpointer(folder, Ranks(), config, {STATS.robot: STATS}, model, optimizer)
    step, _ = checkpointer.begin(checkpoint.newest(folder))
    own, stored = optimizer.tensors(), checkpoint.load_optimizer(folder / f"step_{STEPS:08d}")
    line = capsys.readouterr().out.splitlines()[0]
    assert step == STEPS and "not exact" in line and "'ranks': 2" in line
    assert all(torch.equal(own[name], stored[name]) for name in own) and own.keys() == stored.keys()


def survivor(rank, port, lost, folder):
    ranks = one_of_two(rank, port)
    ranks.sums(1)
    if rank == lost:
        os._exit(0)
    with pytest.raises(ConnectionError) as error, lost_rank_explained():
        while True:
            ranks.sums(1)
    (folder / "said").write_text(str(error.value))


@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_that_is_lost_is_one_line_on_the_other(tmp_path, lost):
    """Whichever it is; what is no loss of a rank stays the error that it was."""
    fork_two(survivor, lost, tmp_path)
    said = (tmp_path / "said").read_text()
    assert said.startswith(f"rank {1 - lost} has lost another rank of 127.0.0.1 (Connection ") and "--resume" in said
    with pytest.raises(RuntimeError, match="shapes"), lost_rank_explained():
        raise RuntimeError("shapes")
