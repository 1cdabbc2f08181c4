"""Look at a LeRobot dataset, record or verify its files, or decode and resize its pictures once.

    python -m support.data --inspect DIR | --verify DIR | --cache DIR OUT"""

from support.entry import command   # first: Ctrl-C during the imports is one line, too
import os
from pathlib import Path

from config import get_config
from support.data import file_hashes, frame_cache, inspection
from support.data.lerobot import LeRobotSource
from support.data.robots import find_robot
from support.flags import Parser, refuse_ignored, value
from support.owner import own


def main(argv):
    parser = Parser(prog="python -m support.data", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--inspect", metavar="DIR", help="print what is matched and what is wrong in a LeRobot dataset, "
                      "and record the SHA-256 of its files; of a plain folder of episodes, the latter alone")
    what.add_argument("--verify", metavar="DIR", help="name every file that has changed since it was recorded")
    what.add_argument("--cache", nargs=2, metavar=("DIR", "OUT"), type=Path,
                      help="decode and resize the pictures of a LeRobot dataset once, into the dataset OUT")
    parser.add_argument("--robot", help="a robot of support/data/robots.json or a .json file (default: the dataset's)")
    parser.add_argument("--timestamps", choices=("check", "index"), default="check",
                        help="index: row t is frame t, whatever its time stamp says")
    parser.add_argument("--config", default="a1_2b", help="with --cache: the preset whose picture sizes are taken")
    parser.add_argument("--loaders", type=value(int, {"at_most": 256}), default=os.cpu_count(),
                        help="with --cache: processes that decode")
    args = parser.parse_args(argv)
    plain = args.inspect and (Path(args.inspect) / "episode.npz").exists()   # where nothing is matched
    refuse_ignored(parser.prog, args, "--cache" if args.cache else "--inspect of LeRobot" if args.inspect and not plain
                   else "a plain folder, or --verify")
    robot = find_robot(args.robot) if args.robot else None
    if args.verify:
        changed = file_hashes.verify(args.verify)
        inspection.refuse(changed, f"{args.verify} is not as it was recorded", shown=len(changed))
        print(f"{args.verify}: every file is as it was recorded")
    elif args.cache:
        source = LeRobotSource(args.cache[0], robot, timestamps=args.timestamps)
        cache_pictures(source, args.cache[1], get_config(args.config).model, args.loaders)
    else:
        if not plain:
            source = LeRobotSource(args.inspect, robot, check_files=False, timestamps=args.timestamps)
            wrong, readable = inspection.faults(source)
            print("\n".join(inspection.inspect(source, readable)))
            inspection.refuse(wrong, f"{args.inspect}: repair this before training on it; its files are not recorded")
        print(file_hashes.record(args.inspect))


def cache_pictures(source, out, model, loaders):
    """--cache: decode and resize a dataset's pictures once, as far as that was not done. ValueError: one line."""
    own(out, make=False)
    cache = frame_cache.cache_for(source, out, [model.view_size, model.frame_size])
    total = sum(sum(cache.files(e).values()) for e in range(len(cache.lengths)))
    print(f"{source.root}: {len(source.lengths)} episodes, {sum(source.lengths):,} frames of {len(cache.cameras)} "
          f"cameras, at {' and '.join(map(str, cache.sizes))} pixels: {total / 1e9:.2f} GB", flush=True)
    own(out)
    try:
        frame_cache.fill(source, cache, loaders)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from here") from None
    print(f"{out} is complete; train with --data {out}")


if __name__ == "__main__":
    command("support.data", main)
