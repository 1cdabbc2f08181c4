"""Look at a LeRobot dataset, record or verify its files, or decode and resize its pictures once.

    python -m support.data --inspect DIR | --verify DIR | --cache DIR OUT
"""

import os
import sys
from pathlib import Path

from config import get_config
from support.data import file_hashes, frame_cache, inspection
from support.data.lerobot import LeRobotSource, copy_numbers
from support.data.robots import find_robot
from support.flags import Parser
from support.progress import drawn


def main(argv):
    parser = Parser(prog="python -m support.data",
                    description="Look at a LeRobot dataset, record or verify its files, or decode and resize its "
                    "pictures once.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--inspect", metavar="DIR", help="print what is matched and what is wrong in a LeRobot dataset, "
                      "and record the SHA-256 of its files; of a plain folder of episodes, the latter alone")
    what.add_argument("--verify", metavar="DIR", help="name every file that has changed since it was recorded")
    what.add_argument("--cache", nargs=2, metavar=("DIR", "OUT"), type=Path,
                      help="decode and resize the pictures of a LeRobot dataset once, into the dataset OUT")
    parser.add_argument("--robot", help="a robot of support/data/robots.py or a .json file (default: the dataset's)")
    parser.add_argument("--config", default="a1_2b", help="with --cache: the preset whose picture sizes are taken")
    parser.add_argument("--sizes", help="with --cache: picture sizes instead, as 448,256")
    parser.add_argument("--loaders", type=int, default=os.cpu_count(), help="with --cache: processes that decode")
    args = parser.parse_args(argv)
    robot = find_robot(args.robot) if args.robot else None
    if args.verify:
        changed = file_hashes.verify(args.verify, drawn("files"))
        inspection.refuse(changed, f"{args.verify} is not as it was recorded", shown=len(changed))
        print(f"{args.verify}: every file is as it was recorded")
    elif args.inspect and (Path(args.inspect) / "episode.npz").exists():   # a plain folder: nothing is matched there
        print(file_hashes.record(args.inspect, drawn("files")))
    elif args.inspect:
        source = LeRobotSource(args.inspect, robot, check_files=False)
        wrong, readable = inspection.faults(source, drawn("episodes"))
        print("\n".join(inspection.inspect(source, episodes=readable)))
        inspection.refuse(wrong, f"{args.inspect}: repair this before training on it; its files are not recorded")
        print(file_hashes.record(args.inspect, drawn("files")))
    else:
        cache_pictures(args, robot)


def cache_pictures(args, robot):
    """--cache."""
    model = get_config(args.config).model
    try:
        sizes = [int(size) for size in args.sizes.split(",")] if args.sizes else [model.view_size, model.frame_size]
        if min(sizes) < 1:
            raise ValueError
    except ValueError:
        raise ValueError(f"--sizes {args.sizes}: expected pixels, as 448,256") from None
    for line in frame_cache.make(LeRobotSource(args.cache[0], robot), args.cache[1], sizes, args.loaders, copy_numbers):
        print(line, flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, ImportError, OSError) as error:
        print(f"support.data: {inspection.said(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("support.data: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
