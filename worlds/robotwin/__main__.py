"""python -m worlds.robotwin convert DIR ... --out OUT | report DIR: RoboTwin's demonstrations as training data, and its
results as a table. docs/robotwin.md has the steps."""

from support.entry import command   # first: Ctrl-C during the imports is one line, too

import re
from pathlib import Path

import numpy as np

from support.data import robotwin
from support.files import must, read_text
from support.flags import COUNT, Parser, refuse_ignored, value
from worlds.closed_loop import rate

SUITES = {"demo_clean": "easy", "demo_randomized": "hard"}
TASKS = """adjust_bottle beat_block_hammer blocks_ranking_rgb blocks_ranking_size click_alarmclock click_bell
dump_bin_bigbin grab_roller handover_block handover_mic hanging_mug lift_pot move_can_pot move_pillbottle_pad
move_playingcard_away move_stapler_pad open_laptop open_microwave pick_diverse_bottles pick_dual_bottles place_a2b_left
place_a2b_right place_bread_basket place_bread_skillet place_burger_fries place_can_basket place_cans_plasticbox
place_container_plate place_dual_shoes place_empty_cup place_fan place_mouse_pad place_object_basket place_object_scale
place_object_stand place_phone_stand place_shoe press_stapler put_bottles_dustbin put_object_cabinet rotate_qrcode
scan_object shake_bottle shake_bottle_horizontally stack_blocks_three stack_blocks_two stack_bowls_three
stack_bowls_two stamp_seal turn_switch""".split()


def read(root, trials):
    """RoboTwin's eval_result -> {(policy, checkpoint, kind of instructions): {suite: {task: successes}}}, the newest of
    each. trials: of each result, which does not say so. ValueError: one line."""
    found, root = {}, Path(root)
    for path in sorted(root.rglob("_result.txt"), key=lambda path: path.parent.name):   # which is the time
        parts, text = path.relative_to(root).parts, read_text(path)
        must(len(parts) > 5 and parts[0] in TASKS and parts[2] in SUITES, f"{path} is not TASK/POLICY/CONFIG/"
             f"CHECKPOINT/TIME/_result.txt below {root}, CONFIG {' or '.join(SUITES)}: give RoboTwin's eval_result")
        said, last = re.search(r"Instruction Type: (\w+)", text), re.search(r"\n([01](\.\d+)?)\s*$", text)
        success = float(last[1]) * trials if said and last else -1
        must(0 <= success <= trials and abs(success - round(success)) < 1e-6,
             f"{path} does not end in the success of {trials} trials: evaluate again, or give --trials")
        row = found.setdefault((parts[1], "/".join(parts[3:-2]), said[1]), {suite: {} for suite in SUITES.values()})
        row[SUITES[parts[2]]][parts[0]] = round(success)
    must(found, f"{root} holds no _result.txt: give RoboTwin's eval_result")
    return found


def report(root, trials):
    """Print the table of Section 5.4 for each policy, checkpoint and kind of instructions, with Wilson's intervals."""
    for (policy, checkpoint, texts), row in read(root, trials).items():
        print(f"{policy}, {checkpoint}, {texts} instructions, {trials} trials a task\n{'':<28}{'easy':<24}hard")
        for name, tasks in {**{task: [task] for task in TASKS}, "mean of the tasks": TASKS}.items():
            cells = [[of[task] for task in tasks if task in of] for of in row.values()]
            rates = [rate(np.arange(len(of) * trials) < sum(of)) if of else None for of in cells]
            shown = ["{:.1%} [{:.1%}, {:.1%}]".format(of["success"], *of["interval"]) if of else "-" for of in rates]
            if any(cells):
                print(f"{name:<28}{shown[0]:<24}{shown[1]}")
        for suite, of in row.items():
            missing = [task for task in TASKS if task not in of]
            print(f"{suite}: {len(of)} of {len(TASKS)} tasks" + (f"; not {', '.join(missing)}" if missing else ""))


def main(argv):
    parser = Parser(prog="python -m worlds.robotwin", description=__doc__)
    parser.add_argument("job", choices=("convert", "report"))
    parser.add_argument("folders", nargs="+", metavar="DIR", help="convert: RoboTwin's data/TASK, or one set of it; "
                        "report: RoboTwin's eval_result")
    parser.add_argument("--out", help="with convert: the new folder, for train.py --data")
    parser.add_argument("--save_freq", type=value(int, COUNT), default=15, help="with convert: of the task's config")
    parser.add_argument("--trials", type=value(int, COUNT), default=100, help="with report: of each result")
    args = parser.parse_args(argv)
    refuse_ignored(parser.prog, args, args.job)
    if args.job == "convert":
        must(args.out, "--out is missing: name a new folder")
        robotwin.convert(args.folders, args.out, args.save_freq)
    else:
        must(len(args.folders) == 1, "report takes one folder: give RoboTwin's eval_result")
        report(args.folders[0], args.trials)


if __name__ == "__main__":
    command("worlds.robotwin", main)
