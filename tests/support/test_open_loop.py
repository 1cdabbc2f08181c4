"""Open-loop reports: a policy beside recordings and beside three baselines that do not look."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import support.inference.policy
import train
from config import get_config, to_dict
from data import example, open_corpus, windows
from support.data import frame_cache
from support.data.corpus import Corpus
from support.data.robots import find_robot
from support.data.source import open_source
from model import InternVLA_A1
from support.inference import image_folder
from support.inference.open_loop import Baselines, errors, open_loop, replay, trained_errors
from support.training.validation import held_out_batches, validate
from support.inference.policy import Policy
from support.data.kept_statistics import statistics

from test_bad_input import RUN, SMALL, save_checkpoint, write_folder
from test_data import Fake

K = 16


def corpus_of(make, robot="conveyor"):
    """Four episodes whose actions are make(state, t), the last one held out."""
    source = Fake(lengths=(40, 33, 50, 37), robot=robot)
    source.rows = [(state, make(state).astype(np.float32)) for state, _ in source.rows]
    trained = windows(source, 15, episodes=range(3))
    corpus = Corpus([], sources={0: source}, windows={0: trained}, held_out=source,
                    held_out_windows=windows(source, 15, episodes=[3]))
    return corpus, statistics({0: source}, {0: trained}, K, "absolute", 1e-3)


def policy_that(plan, stats):
    """The interface of support.inference.policy.Policy, without a model."""
    return SimpleNamespace(plan=plan, stats=stats, config=get_config("conveyor"))


def test_chunks_are_laid_end_to_end_over_the_whole_episode():
    """A policy that knows the recording has no error, whatever the episode's length."""
    corpus, stats = corpus_of(lambda state: np.cumsum(state, 0))
    asked = []

    def plan(seen, state, tasks):
        _, action = corpus.held_out.numbers(3)
        t = len(asked) * K
        asked.append((state[0], [frame[0, 0, 0] for frame in seen[0]["head"]], tasks[0]))
        return np.concatenate([action[t:], np.full((K, 6), 99, np.float32)])[None, :K], None

    reports, found = open_loop(policy_that(plan, stats), corpus)
    traces, starts = found[3]
    assert starts == [0, 16, 32] and traces["policy"].shape == (37, 6) and reports[3]["policy"]["mse"] == 0
    state, _ = corpus.held_out.numbers(3)
    assert all((q == state[t]).all() for (q, _, _), t in zip(asked, starts))
    assert [past for _, (past, _), _ in asked] == [8 * 3 + max(t - 15, 0) for t in starts]   # t - m, clamped
    assert asked[0][2] == "pick 3"
    asked.clear()
    found = trained_errors(policy_that(plan, stats), corpus)   # what a training run ends with
    assert found["open_loop"]["policy"] == found["open_loop_median"]["policy"] == 0 < found["open_loop"]["mean action"]


def test_baselines_are_what_all_frames_at_once_give_and_a_bad_episode_is_left_out(capsys):
    """Sums episode by episode against the matrices of all frames; --on_bad_sample skip says which episode is bad."""
    corpus, stats = corpus_of(lambda state: 1000 + np.cumsum(state, 0))     # far from zero beside its spread
    numbers, read = corpus.held_out.numbers, [corpus.held_out.numbers(e) for e in (0, 2)]

    def torn(e):
        if e == 1:
            raise ValueError("dataset fake, episode 1 is torn")
        return numbers(e)
    corpus.held_out.numbers = torn
    baselines = Baselines(corpus, stats, K, skip=True)
    q = [stats.normalise("state", state).astype(np.float64) for state, _ in read]
    X = np.concatenate([np.concatenate([x, x - x[[0, *range(len(x) - 1)]], x - x[[0, 0, *range(len(x) - 2)]],
                                        np.ones((len(x), 1))], 1) for x in q])
    Y = np.concatenate([[stats.normalise("action", action[np.minimum(t + np.arange(K), len(action) - 1)]).ravel()
                         for t in range(len(action))] for _, action in read]).astype(np.float64)
    penalty = np.diag(0.01 * len(X) * X.var(0))   # none on the intercept
    actions = np.concatenate([action for _, action in read]).astype(np.float64)
    np.testing.assert_allclose(baselines.weights, np.linalg.solve(X.T @ X + penalty, X.T @ Y), rtol=1e-6, atol=1e-6)
    state = read[0][0]
    np.testing.assert_allclose(baselines.chunks(state, 5)["mean action"], np.tile(stats.action_mean, (K, 1)), rtol=1e-6)
    np.testing.assert_allclose(baselines.chunks(state, 5)["ridge regression"], stats.actions(
        (X[5] @ baselines.weights).reshape(K, 6), state[5]), rtol=1e-5)
    np.testing.assert_allclose(baselines.unit, actions.std(0), rtol=1e-6)
    assert capsys.readouterr().err.count("dataset fake, episode 1 is torn") == 1

    policy = policy_that(lambda seen, state, tasks: (np.zeros((1, K, 6)), None), stats)
    with pytest.raises(ValueError, match="episode 1 is torn"):
        open_loop(policy, corpus)
    policy.config = get_config("conveyor", {"on_bad_sample": "skip"})
    assert set(open_loop(policy, corpus)[0]) == {3} and "episode 1 is torn" in capsys.readouterr().err


def test_errors_are_in_training_deviations_and_per_joint_in_raw_units():
    corpus, stats = corpus_of(lambda state: 10 * state)
    baselines = Baselines(corpus, stats, K)
    true = np.zeros((20, 6))
    found = {"true": true, "policy": true + 2 * baselines.unit}
    report = errors(found, baselines, stats.action_names)
    assert report["policy"]["mse"] == pytest.approx(4)
    joint = report["policy"]["joints"]["joint 2"]
    assert joint["mae"] == pytest.approx(2 * baselines.unit[2]) and joint["mse"] == pytest.approx(joint["mae"] ** 2)
    json.dumps(report)


@pytest.mark.parametrize("mode", ["absolute", "delta"])
def test_a_training_sample_replayed_through_inference_is_the_same_bit_for_bit(mode):
    """Policy.batch and data.example: one preprocessing; start, middle and end of an episode, clamped past included."""
    source = Fake(lengths=(40,), views=("head", "right_wrist"))
    config = get_config("conveyor", SMALL | {"action_mode": mode, "chunk": 16, "text_tokens": 5})
    stats = statistics({0: source}, {0: windows(source, 15)}, K, mode, 1e-3)
    policy = Policy(InternVLA_A1(config.model), config, stats)
    for t in (0, 3, 20, 39):
        assert replay(policy, source, 0, t) < 1e-6


@pytest.mark.parametrize("name, spoil", [
    ("state", lambda arrays: arrays["state"].add_(1e-7)),
    ("frames", lambda arrays: arrays["frames"][0, 0].copy_(arrays["frames"][0, 1]))])
def test_a_replay_names_what_differs(monkeypatch, name, spoil):
    """A preprocessing of its own at inference, however close, is an error that names the input."""
    source, config = Fake(lengths=(40,)), get_config("conveyor", SMALL)
    stats = statistics({0: source}, {0: windows(source, 15)}, 4, "absolute", 1e-3)
    policy = Policy(InternVLA_A1(config.model), config, stats)
    right = support.inference.policy.observation

    def wrong(*args):
        arrays = right(*args)
        spoil(arrays)
        return arrays
    monkeypatch.setattr(support.inference.policy, "observation", wrong)
    with pytest.raises(ValueError, match=f"replay: '{name}' of dataset fake, episode 0, frame 20 is not the same"):
        replay(policy, source, 0, 20)


def test_an_image_folder_cut_from_a_dataset_gives_the_training_inputs_bit_for_bit(script, tmp_path):
    """infer.py --cut, then --image-dir: pictures, state and task survive the files."""
    root, folder = write_folder(tmp_path / "arm", T=40, ends=np.array([38, 40])), tmp_path / "cut"
    script("infer.py", "--cut", root, "--episode", 0, "--frame", 20, "--image-dir", folder)
    source, config = open_source(root), get_config("conveyor", SMALL)
    stats = statistics({0: source}, {0: windows(source, 15)}, 4, "absolute", 1e-3)
    policy = Policy(InternVLA_A1(config.model), config, stats)
    observed, trained = image_folder.read(folder, stats), example(config.model, 15, stats, source, 0, 20)
    live = policy.batch([observed.seen], observed.state[None], [observed.task])
    assert torch.equal(live.frames[0], trained["frames"][:, :2])
    assert all(torch.equal(getattr(live, name)[0], trained[name])
               for name in ("image", "view_mask", "text_ids", "text_mask", "state", "dim_mask"))


def test_a_folder_is_cut_with_the_m_of_the_checkpoint_and_is_refused_with_another(script, refuses, tmp_path):
    """The past of a policy that was trained with m = 4 is 4 frames old; without --checkpoint it is 15."""
    root = write_folder(tmp_path / "arm", T=40, robot=np.array("arm"), ends=np.array([40]), task=np.array("go"))
    config, own, other = get_config("conveyor", SMALL | {"m": 4}), tmp_path / "own", tmp_path / "other"
    path = save_checkpoint(tmp_path / "run", config.model, to_dict(config))
    script("infer.py", "--cut", root, "--frame", 20, "--checkpoint", path, "--image-dir", own)
    script("infer.py", "--cut", root, "--frame", 20, "--image-dir", other)
    source = open_source(root)
    for folder, m in ((own, 4), (other, 15)):
        assert json.loads((folder / "m.json").read_text()) == m
        assert (np.asarray(Image.open(folder / "head_past.png")) == source.frame("head", 0, 20 - m)).all()
    script("infer.py", "--image-dir", own, "--checkpoint", path)
    assert "was cut with m = 15 frames, the checkpoint has m = 4" in refuses("infer.py", "--image-dir", other,
                                                                             "--checkpoint", path)


def test_infer_reports_the_held_out_episode_with_plot_foresight_and_json(script, tmp_path, capsys):
    """infer.py --open-loop on a folder of two episodes: the last is held out, all baselines stand beside the policy."""
    root = write_folder(tmp_path / "arm", T=80, ends=np.array([40, 80]), robot=np.array("arm"))
    model = replace(get_config("conveyor", SMALL).model, gen_expert=True)
    path = save_checkpoint(tmp_path / "run", model)
    script("infer.py", "--open-loop", "--data", root, "--checkpoint", path, "--out", tmp_path / "out",
           "--euler_steps", 5)
    report = json.loads((tmp_path / "out" / "open_loop.json").read_text())
    assert list(report) == ["1"]
    assert set(report["1"]) == {"policy", "hold the state", "mean action", "ridge regression"}
    assert {"episode_1.png", "foresight_1.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    imagined = json.loads((tmp_path / "out" / "foresight.json").read_text())
    assert {view: set(row) for view, row in imagined.items()} == {
        "head": {"policy", "copy of t", "training-mean picture"}}
    printed = capsys.readouterr().out
    assert "foresight, head: mean squared error of latents: policy" in printed
    assert "episode 1: mean squared error in training standard deviations: policy" in printed
    assert "5 instead of 2 Euler steps move the actions by" in printed
    assert "replay: 8 recorded windows give the model the same inputs in training and at inference" in printed


def test_data_of_ones_own_robot_train_and_open_loop_with_the_same_robot_file(script, tmp_path, capsys):
    """The README's commands on a dataset that no table knows, in delta mode, and on its frame cache, whose pictures the
    VAE enlarges as in the release; other cameras are refused."""
    pytest.importorskip("av", reason="PyAV is not installed: pip install -r requirements-robot.txt")
    from test_lerobot import HEAD, WRIST, edit_info, pq, write_dataset
    root, robot = write_dataset(tmp_path / "toy"), tmp_path / "mine.json"
    features = json.loads((root / "meta/info.json").read_text())["features"]
    edit_info(root, features={key: x for key, x in features.items() if key != "action"} |
              {"action": features["observation.state"]})
    for e in (0, 1):   # commands as wide as the state, which is what delta mode needs
        path = root / f"data/chunk-{e:03d}/episode_{e:06d}.parquet"
        table = pq.read_table(path).drop_columns("action")
        pq.write_table(table.append_column("action", table["observation.state"]), path)

    def describe(**cameras):
        robot.write_text(json.dumps({"name": "mine", "cameras": cameras, "delta": [2, -1]}))
    describe(head=HEAD, left_wrist=WRIST)
    run = ["--data", str(root), "--robot", str(robot), "--action_mode", "delta", "--m", "3", *RUN,
           "--out", str(tmp_path / "run"), "--gen_from_view", "true", "--vae_size", "64"]
    train.run(run)
    assert f"it reads head = {HEAD}, left_wrist = {WRIST}, state = observation.state, action = action" in \
        capsys.readouterr().out

    def look(*more, data=root):
        script("infer.py", "--checkpoint", tmp_path / "run", "--open-loop", "--data", data, "--out", tmp_path / "out",
               *more)
        return capsys.readouterr()
    original = open_source(root, find_robot(str(robot)))
    frame_cache.fill(original, frame_cache.cache_for(original, tmp_path / "cache", [32]), 0)
    found = [[line for line in look("--robot", str(robot), data=data).out.splitlines() if line.startswith("episode 1")]
             for data in (root, tmp_path / "cache")]
    assert found[0] == found[1] and "episode 1: mean squared error" in found[0][0]
    for more, message in (((), "give the same --robot as in training"),
                          (("--robot", str(robot)), f"gives head = {WRIST}, left_wrist = {HEAD}; trained was on")):
        describe(head=WRIST, left_wrist=HEAD)
        with pytest.raises(SystemExit):
            look(*more)
        assert message in capsys.readouterr().err


def test_a_mixture_weighs_datasets_of_any_kind_and_holds_out_the_last_episode(tmp_path):
    """Table 3 in small: weights, kinds, paths relative to the file; without a validation dataset the first with
    actions gives its last episode."""
    for name, more in (("one", {}), ("two", {"task": np.array(["put", "stop"])}), ("video", {"action": None})):
        write_folder(tmp_path / name, d=14, **more)
    rows = [{"path": "video", "weight": 0.1, "kind": "human"}, {"path": "one", "weight": 0.6}, {"path": "two"}]
    (tmp_path / "mixture.json").write_text(json.dumps({"datasets": rows, "robot": "aloha"}))
    for path in (tmp_path, tmp_path / "mixture.json"):
        corpus = open_corpus(path, 3)
        assert [row.weight for row in corpus.listed] == [0.1, 0.6, 1.0]
        assert corpus.weights == [0.1 / 1.7, 0.6 / 1.7, 1 / 1.7] and [row.kind for row in corpus.listed] == ["human", "robot", "robot"]
        assert corpus.held_out is corpus.sources[1] and set(corpus.held_out_windows[:, 0]) == {1}
        assert [set(rows[:, 0]) for rows in corpus.windows.values()] == [{0, 1}, {0}, {0, 1}]
        assert {source.robot for source in corpus.sources.values()} == {"aloha"}
    for text, message in (("[]", "holds a list, expected a dict"), ('{"datasets": []}', "at least one dataset"),
                          ('{"datasets": [{"path": "one", "weight": 0}]}', "weight must be above 0"),
                          ('{"datasets": [{"path": "one"}], "robot": "r2"}', "--robot r2: unknown")):
        (tmp_path / "mixture.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            open_corpus(tmp_path, 3)


def test_foresight_is_left_out_where_nothing_changed():
    """The error over that of copying t: without any change there is nothing to compare with, and no infinity."""
    config = get_config("conveyor", SMALL)
    source, stats = Fake(lengths=(40,)), corpus_of(lambda state: state)[1]
    source.frame = lambda view, e, t: np.full((8, 8, 3), 50, np.uint8)
    batches = held_out_batches(config, stats, source, windows(source, 15), 4)
    report, _ = validate(InternVLA_A1(config.model), config, batches)
    assert set(report) == {"loss_act", "loss_gen"} and all(np.isfinite(value) for value in report.values())
