"""Two nodes train as one: an agent of torchrun for each, on loopback. One is killed, and the run goes on exactly."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from worlds import conveyor

pytestmark = pytest.mark.long
RUN = ("--steps 10 --batch_size 2 --action_draws 1 --layers 1 --text_tokens 8 --threads 1 --episodes 1 --save_every 2 "
       "--log_every 1 --eval_every 100 --eval_windows 4").split()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "conveyor"
    conveyor.write_dataset(root, episodes=20)
    return root


def nodes(dataset, out, *flags, world=2):
    """Start as many agents, one rank each -> their processes. Each has a session of its own, to be killed as one."""
    with closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    return [subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(world), "--node_rank", str(node),
         "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", str(port), "train.py", "--data",
         str(dataset), "--out", str(out), *RUN, *flags],
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for node in range(world)]


def ended(agents):
    """(exit codes, what all of them printed)."""
    said = "".join(agent.communicate(timeout=240)[0] for agent in agents)
    return [agent.returncode for agent in agents], said


def losses(out):
    """{step: [loss, L_act, L_gen, gradient norm]} of log.jsonl, and the mixture that was drawn from."""
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {row["step"]: [row[key] for key in ("loss", "loss_act", "loss_gen", "grad_norm")] for row in rows
            if "grad_norm" in row}


def mixture(out, step):
    return json.loads((out / f"step_{step:08d}" / "state.json").read_text())["drawn"]


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    """An uninterrupted run of two nodes."""
    out = tmp_path_factory.mktemp("whole") / "run"
    codes, said = ended(nodes(dataset, out))
    assert codes == [0, 0], said
    return out


@pytest.mark.parametrize("shard", ["DDP", "FSDP2"])
def test_a_node_is_killed_and_the_same_command_goes_on_as_if_nothing_had_happened(dataset, whole, shard, tmp_path):
    out, flags = tmp_path / "run", ["--shard"] if shard == "FSDP2" else []
    agents = nodes(dataset, out, *flags)
    deadline = time.time() + 120
    while not (out / "step_00000002").exists():
        assert time.time() < deadline and agents[1].poll() is None, ended(agents)
        time.sleep(0.02)
    os.killpg(agents[1].pid, signal.SIGKILL)
    codes, said = ended(agents)
    assert codes[0] != 0 and codes[1] == -signal.SIGKILL, said
    codes, said = ended(nodes(dataset, out, "--resume", *flags))
    assert codes == [0, 0], said
    found, expected = losses(out), losses(whole)
    assert list(found) == list(expected) == list(range(1, 11))
    for step, row in expected.items():
        assert found[step] == pytest.approx(row, rel=1e-5), step
    assert mixture(out, 10) == mixture(whole, 10)


def test_another_number_of_nodes_goes_on_from_a_checkpoint_and_says_that_it_is_not_exact(dataset, whole, tmp_path):
    """Four ranks to two. They draw other samples from the same mixture."""
    out = tmp_path / "run"
    codes, said = ended(nodes(dataset, out, "--steps", "4", world=4))
    assert codes == [0] * 4, said
    codes, said = ended(nodes(dataset, out, "--resume"))
    assert codes == [0, 0] and "resume is not exact because" in said and "'ranks': 4" in said, said
    assert list(losses(out)) == list(range(1, 11)) and mixture(out, 10) == mixture(whole, 10)
