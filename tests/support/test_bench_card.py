"""python -m bench card: what goes wrong in a part is said in the table, and costs no other part its rows."""

import json
import subprocess
import sys

import pytest
import torch

import bench.__main__ as bench
from bench import card, card_parts, saving

FAULTY = {"a NaN": ("print(json.dumps(['speed', {'ms': float('nan')}]))", "speed: ms is nan"),
          "too far": ("print(json.dumps(['gradient', {'difference': 0.5, 'allowed': 0.001}]))",
                      "gradient: differs by 5.0e-01, 1e-03 is allowed"),
          "slow": ("print(json.dumps(['first', {'ms': 1.0}]), flush=True); time.sleep(60)", "stopped at its limit"),
          "dead": ("os.kill(os.getpid(), 9)", "exit code -9"),
          "out of memory": ("raise MemoryError('CUDA out of memory')", "CUDA out of memory"),
          "well": ("print(json.dumps(['speed', {'ms': 2.5}]))", "")}


@pytest.fixture
def parts(monkeypatch, tmp_path):
    """Parts replaced by programs of a line -> their names."""
    real = subprocess.Popen

    def popen(command, **options):
        code = FAULTY[command[command.index("--part") + 1]][0]
        return real([sys.executable, "-c", f"import json, os, time\n{code}"], **options)
    monkeypatch.setattr(card.subprocess, "Popen", popen)
    monkeypatch.setattr(card, "LIMITS", dict.fromkeys(FAULTY, (5, 5)))
    monkeypatch.setattr(saving, "RESULTS", tmp_path)
    return list(FAULTY)


def test_a_part_with_a_fault_is_named_and_all_others_are_run(parts, tmp_path, capsys):
    with pytest.raises(ValueError, match="a NaN: speed: ms is nan; too far: gradient"):
        bench.run("card --rehearse --json card.json".split())
    found = json.loads((tmp_path / "card.json").read_text())
    assert list(found["parts"]) == parts and found["finished"]
    for name in parts:
        assert FAULTY[name][1] in found["parts"][name]["fault"], name
        assert bool(found["parts"][name]["fault"]) == (name != "well")
    assert found["parts"]["a NaN"]["rows"] == {"speed": {"ms": None}}
    assert found["parts"]["slow"]["rows"] == {"first": {"ms": 1.0}}
    assert found["parts"]["well"]["rows"] == {"speed": {"ms": 2.5}}
    assert "1 of 6 parts without a fault" in capsys.readouterr().out


def test_parts_are_added_to_a_result_of_this_machine_alone(parts, tmp_path):
    bench.run("card --rehearse --parts well --json card.json".split())
    with pytest.raises(ValueError):
        bench.run("card --rehearse --parts dead --json card.json".split())
    found = json.loads((tmp_path / "card.json").read_text())
    assert list(found["parts"]) == ["well", "dead"] and len(found["commands"]) == 2
    (tmp_path / "card.json").write_text(json.dumps(found | {"torch": "1.0"}))
    with pytest.raises(ValueError, match="of another machine, or of another torch or python"):
        bench.run("card --rehearse --parts well --json card.json".split())


def test_quick_ends_in_time_and_names_what_it_leaves_out(parts, monkeypatch, capsys):
    monkeypatch.setattr(card, "QUICK", 0.5)
    monkeypatch.setattr(card, "LIMITS", {"well": (5, 5), "slow": (5, 5), "dead": (0, 5)})
    with pytest.raises(ValueError, match="well: stopped at its limit|slow: stopped at its limit"):
        bench.run("card --rehearse --quick".split())
    assert "dead: left out by --quick" in capsys.readouterr().out


def test_a_wrong_gradient_is_a_difference_beyond_what_is_allowed(monkeypatch):
    """The CPU beside itself agrees to the bit; one whose forward pass is scaled does not."""
    row, figures = next(card_parts.agreement(card_parts.Card(True, True)))
    assert figures["difference"] == 0 and not card.wrong(row, figures)
    once, real = iter([1.0, 1.01]), card_parts.InternVLA_A1.forward
    monkeypatch.setattr(card_parts.InternVLA_A1, "forward",
                        lambda self, batch, eps, tau: real(self, batch, eps * next(once), tau))
    row, figures = next(card_parts.agreement(card_parts.Card(True, True)))
    assert "differs by" in card.wrong(row, figures)


def test_what_cannot_be_run_is_said_before_anything_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="sees no GPU here; --rehearse runs the same code on a CPU"):
        bench.run(["card"])
    with pytest.raises(ValueError, match="--parts speed: they are rates, agreement"):
        bench.run("card --rehearse --parts speed".split())


@pytest.mark.long
def test_a_rehearsal_runs_every_part_of_the_quick_table():
    """Real processes, tiny networks, on the CPU."""
    parts = ",".join(name for name, (quick, _) in card.LIMITS.items() if quick)
    command = "bench", "card", "--rehearse", "--quick", "--parts", parts, "--seconds", "200"   # for a starved machine
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "6 of 6 parts without a fault" in done.stdout
