"""RoboTwin's demonstrations as training data, and its results as a table. docs/robotwin.md has the steps.

    python -m worlds.robotwin convert DIR ... --out OUT | report DIR
"""

from support.entry import command   # first: Ctrl-C during the imports is one line, too

from support.data import robotwin
from support.files import must
from support.flags import COUNT, Parser, refuse_ignored, value
from worlds.robotwin import results


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
        results.report(args.folders[0], args.trials)


if __name__ == "__main__":
    command("worlds.robotwin", main)
