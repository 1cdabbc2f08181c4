"""Two nodes train as one, and one of them is lost: torchrun's own agents, each with its ranks, in processes apart.

Each node has a network namespace, and a veth pair joins the two, where `ip netns` may make them; else both are on
loopback. What they are compared with is one process that takes the micro-batches of all ranks, one after the other."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import lpt
import train
from config import get_config
from conftest import ROOT
from data import Mixture, collate_with_noise, open_corpus
from support import checkpoint
from support.data.kept_statistics import statistics_by_robot
from support.training.optimizers import clip_scale, global_norm
from support.training.preflight import parse, starting_weights
from support.training.ranks import Ranks
from test_bad_input import write_folder

pytestmark = pytest.mark.long

STEPS = 12
START, END = 600, 120   # seconds that a run may take, and a node once the other is lost: bounds for a starved machine
FLAGS = (f"--layers 1 --image_size 32 --vae_size 32 --chunk 4 --text_tokens 8 --batch_size 2 --action_draws 1 --m 2 "
         f"--steps {STEPS} --lr 1e-3 --warmup_steps 2 --full_windows false --threads 1 --log_every 1 "
         "--hold_out none --save_every 2").split()
WAYS = {"DDP": (), "FSDP2": ("--shard",)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three datasets, one of them human video: two ranks are dealt others than four."""
    root, rows = tmp_path_factory.mktemp("data"), []
    for n, (T, weight, kind) in enumerate(((40, 0.5, "robot"), (28, 0.3, "robot"), (20, 0.2, "human"))):
        numbers = np.random.default_rng(n).uniform(-1, 1, (2, T, 6))
        write_folder(root / f"set{n}", T, ends=np.array([T - 8, T]), robot=np.array("arm"), state=numbers[0],
                     action=numbers[1])
        rows.append({"path": f"set{n}", "weight": weight, "kind": kind})
    (root / "mixture.json").write_text(json.dumps({"datasets": rows}))
    return root


# ---- nodes ------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def network(request):
    """What stands before a command to run it on node 0 or 1, the first node's address, and what gloo is told."""
    names, loopback = [f"node{n}_{os.getpid()}" for n in range(2)], SimpleNamespace(
        before=((), ()), address="127.0.0.1", told={"GLOO_SOCKET_IFNAME": "lo"})

    def ip(*words):
        with suppress(subprocess.TimeoutExpired):
            return subprocess.run(["ip", *words], capture_output=True, timeout=60).returncode == 0

    def cabled():
        made, cable = all(ip("netns", "add", name) for name in names), "type veth peer name eth0 netns".split()
        knock = "import errno, socket; exit(socket.socket().connect_ex(('10.0.0.1', 9)) != errno.ECONNREFUSED)"
        return made and ip("link", "add", "eth0", "netns", names[0], *cable, names[1]) and all(
            ip("-n", name, *words.split()) for n, name in enumerate(names, 1)
            for words in (f"addr add 10.0.0.{n}/24 dev eth0", "link set eth0 up", "link set lo up")) and ip(
            "netns", "exec", names[1], sys.executable, "-c", knock)   # refused: somebody is there
    try:
        apart = shutil.which("ip") is not None and cabled()
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print("two nodes", "in network namespaces, joined by a veth pair" if apart else "on loopback")
        yield SimpleNamespace(before=[("ip", "netns", "exec", name) for name in names], address="10.0.0.1",
                              told={"GLOO_SOCKET_IFNAME": "eth0"}) if apart else loopback
    finally:
        for name in names if shutil.which("ip") else ():
            ip("netns", "del", name)


class Node:
    """An agent and all that it starts. Every process of it has a mark of its own in its environment: torchrun gives
    ranks a session each, so they outlive an agent that is killed, and no process group would find them."""

    numbers = count()

    def __init__(self, command, printed, told):
        self.mark, self.printed = f"TEST_NODE={os.getpid()}_{next(self.numbers)}", printed
        name, value = self.mark.split("=")
        with open(printed, "w") as file:
            self.agent = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=ROOT,
                                          start_new_session=True, env=os.environ | told | {name: value})

    def processes(self):
        """Ids of its processes that live."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if self.mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found

    def kill(self):
        """SIGKILL to all of them: the agent first, which could start others."""
        self.agent.kill()
        deadline = time.monotonic() + END
        while alive := self.processes():
            assert time.monotonic() < deadline, f"{alive} do not die"
            for pid in alive:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        self.agent.wait(END)

    def wait(self, seconds=START):
        """The agent's exit code. AssertionError with all that was printed: it runs on for longer."""
        try:
            return self.agent.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still there after {seconds} s: {self.printed.read_text()}") from None


@contextmanager
def two_nodes(network, folder, *flags, ranks=1):
    """Two agents with `ranks` ranks each, started on train.py -> their Nodes. Nothing of them is left behind."""
    with closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with ExitStack() as ends:
        nodes = []
        for n, before in enumerate(network.before):
            agent = (*before, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(n),
                     "--nproc_per_node", str(ranks), "--master_addr", network.address, "--master_port", str(port))
            printed = folder / f"printed_{n}_{len(list(folder.glob('printed_*')))}"
            nodes.append(Node((*agent, "--", "train.py", "--out", str(folder / "run"), *FLAGS, *flags), printed,
                              network.told))
            ends.callback(nodes[-1].kill)
        yield nodes


def finish(network, folder, *flags, ranks=1):
    """A run on two nodes that ends well -> the rows of its log, what its first rank printed."""
    with two_nodes(network, folder, *flags, ranks=ranks) as nodes:
        codes, texts = [node.wait() for node in nodes], [node.printed.read_text() for node in nodes]
    assert codes == [0, 0], "\n".join(texts)
    return logged(folder / "run"), texts[0]


def until_saved(nodes, out):
    """Wait for the first checkpoint of a run that goes on."""
    deadline = time.monotonic() + START
    while not any(out.glob("step_*")):
        texts = [node.printed.read_text() for node in nodes]
        assert time.monotonic() < deadline and all(node.agent.poll() is None for node in nodes), "\n".join(texts)
        time.sleep(0.005)


def logged(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


# ---- one process ------------------------------------------------------------------------------------------------

def prepared(data):
    """What train.py makes of FLAGS -> (config, where its weights come from, world -> the Mixture of each rank)."""
    args = parse(["--data", str(data), *FLAGS])
    config, start = starting_weights(args, get_config(args.config, vars(args)), data / "none")
    corpus = open_corpus(args.data, config.data.m, hold_out="none")
    by_robot, _ = statistics_by_robot(corpus, config.data.m, config.model.chunk, config.data.action_mode,
                                      config.data.std_floor)
    return config, start, lambda world: [
        Mixture(config, by_robot, corpus.sources, corpus.windows, dealt, config.train.seed, rank)
        for rank, dealt in enumerate(lpt.deal(corpus.frames, corpus.weights, world, config.data.lpt_workers))]


def one_process(data, world):
    """Rows of the log of one process that takes the micro-batches of all ranks of a run of `world`."""
    (config, start, dealt), ranks, rows = prepared(data), Ranks(), []
    mixtures, size = dealt(world), config.train.batch_size
    model, wrapped, optimizer, _ = train.build(config, ranks, False, start)
    for step in range(STEPS):
        micro = [collate_with_noise([mixture[n] for n in range(step * size, (step + 1) * size)])[:3]
                 for mixture in mixtures]
        counts = train.elements(model, micro)
        act, gen = train.gradients(wrapped, micro, config, ranks, counts)
        norm, lr = global_norm(optimizer.parameters.values()), train.lr_at(step, config.train)
        optimizer.step(lr, clip_scale(norm, config.train.clip))
        optimizer.zero_grad()
        rows.append({"step": step + 1, "loss": config.model.lambda_gen * gen + act, "loss_act": act, "loss_gen": gen,
                     "lr": lr, "grad_norm": float(norm), "n_act": counts[0], "n_gen": counts[1]})
    return rows


def differences(rows, others):
    """The largest relative difference of each column."""
    assert [row.keys() for row in rows] == [row.keys() for row in others]
    return {key: max(abs(a[key] - b[key]) / max(abs(b[key]), 1e-30) for a, b in zip(rows, others)) for key in rows[0]}


def close(rows, others):
    found = differences(rows, others)
    print(f"{len(rows)} steps, the largest relative difference of a column is {max(found.values()):.1e}")
    assert max(found.values()) <= 1e-5, found


# ---- tests ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("way, lost", [("DDP", 1), ("FSDP2", 0)])
def test_a_node_is_killed_the_other_says_so_and_ends_and_both_go_on(data, network, tmp_path, way, lost):
    """2 nodes x 1 rank, gloo, kill -9 of an agent and its rank: of the node that only computes, and of the one that
    meets and saves. After --resume every column of the log is that of one process, to 1e-5, whatever wraps the model.
    """
    out, flags = tmp_path / "run", ("--data", str(data), *WAYS[way])
    with two_nodes(network, tmp_path, *flags) as nodes:
        until_saved(nodes, out)
        nodes[lost].kill()
        began = time.monotonic()
        code, text = nodes[1 - lost].wait(END), nodes[1 - lost].printed.read_text()
        print(f"the other node ended after {time.monotonic() - began:.1f} s with {code}: {text}")
    said = [line for line in text.splitlines() if line.startswith("train.py: ")]
    assert code == 1 and len(said) == 1 and f"rank {1 - lost} has lost another rank" in said[0], text
    step = checkpoint.load(checkpoint.newest(out))[1]["step"]
    assert 0 < step < STEPS, "it was through before"
    rows, text = finish(network, tmp_path, *flags, "--resume")
    assert f"at step {step}" in text and "not exact" not in text and "x 2 ranks = 4" in text and len(rows) == STEPS
    close(rows, one_process(data, 2))


def test_four_ranks_on_two_nodes_go_on_as_two_with_the_samples_of_four(data, network, tmp_path):
    """SIGTERM to one of two nodes of two ranks saves the run. With one rank each it goes on as the run that it was: each
    draws for two. So every column of the log is that of four ranks without a stop, to 1e-5; what stood there stays."""
    out, flags = tmp_path / "run", ("--data", str(data))
    with two_nodes(network, tmp_path, *flags, ranks=2) as nodes:
        until_saved(nodes, out)
        nodes[1].agent.send_signal(signal.SIGTERM)
        assert all([node.wait() for node in nodes])
        assert "--resume goes on" in nodes[0].printed.read_text(), nodes[0].printed.read_text()
    before, log = checkpoint.load(checkpoint.newest(out))[1], (out / "log.jsonl").read_bytes()
    step = before["step"]
    assert 0 < step < STEPS and len(logged(out)) == step
    shutil.rmtree(data / "statistics")   # as where the data cannot be written: two ranks take them anew, to the bit
    rows, text = finish(network, tmp_path, *flags, "--resume")
    after = checkpoint.load(checkpoint.newest(out))[1]
    assert "resume is not exact" in text and "'ranks': 4" in text and "'ranks': 2" in text
    assert "x 4 ranks = 8, the samples of which 2 ranks draw" in text and "mixture error across 4 ranks" in text
    assert (out / "log.jsonl").read_bytes().startswith(log) and after["drawn"] == before["drawn"]
    close(rows, one_process(data, 4))


def test_dealt_to_other_ranks_one_dataset_is_drawn_as_before_and_several_are_not(data):
    """Sample n of a rank depends on (seed, rank, n) and on what the rank was dealt; its noise on the former alone."""
    for path, same in ((data / "set0", True), (data, False)):
        _, _, dealt = prepared(path)
        for a, b in zip(dealt(4), dealt(3)):   # ranks 0 to 2
            assert ([a.pick(n) for n in range(40)] == [b.pick(n) for n in range(40)]) == same
            assert all(map(torch.equal, a.noise(7), b.noise(7)))
