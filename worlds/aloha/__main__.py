"""python -m worlds.aloha record: 200 demonstrations of each task, to train on. It goes on where it was interrupted.

The same seed gives the same bytes on the same machine. Then `python train.py --config aloha`, with --data for --out."""

from support.entry import command   # first: Ctrl-C during the imports is one line, too
from pathlib import Path

from support.files import must, require_writable
from support.flags import COUNT, Parser, value
from support.owner import contents
from worlds.aloha.record import EPISODES, RECORDED, prepare
from worlds.aloha.sim import TASKS


def main(argv):
    parser = Parser(prog="python -m worlds.aloha", description=__doc__)
    parser.add_argument("command", choices=("record",))
    parser.add_argument("--episodes", type=value(int, COUNT), default=EPISODES, help="successful ones of each task")
    parser.add_argument("--out", default="data/aloha", help="folder (default data/aloha)")
    parser.add_argument("--tasks", default=",".join(RECORDED),
                        help=f"of {', '.join(TASKS)}, separated by commas (default: the package's two)")
    args = parser.parse_args(argv)
    tasks = tuple(dict.fromkeys(args.tasks.split(",")))
    must(set(tasks) <= set(TASKS), f"--tasks {args.tasks}: they are {', '.join(TASKS)}")
    require_writable(args.out, "--out")
    must((Path(args.out) / "world").exists() or not contents(args.out),
         f"--out {args.out} is not empty and holds no recording: give another folder")
    print(f"recorded: {prepare(args.out, args.episodes, tasks)}")


if __name__ == "__main__":
    command("python -m worlds.aloha", main)
