"""Published files in and out, from the command line.

    python -m support.weights import DIR OUT --config a1_3b_release --robot NAME --action_mode delta
    python -m support.weights export RUN OUT --base DIR
"""

from support.entry import command   # first: Ctrl-C during the imports is one line, too

from config import CONFIGS, WORLDS
from support.files import must
from support.flags import Parser, value
from support.owner import contents, own
from support.weights.release import export_run, import_release


def parse(argv):
    parser = Parser(prog="python -m support.weights", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    load = commands.add_parser("import", help="the release's directory to a checkpoint of ours")
    load.add_argument("dir", help="directory or hub id with model.safetensors and stats.json")
    load.add_argument("out", help="run folder to write")
    load.add_argument("--config", choices=[name for name in CONFIGS if name not in WORLDS],
                      help="default: what config.json names, else a1_3b_release")
    load.add_argument("--robot", help="whose statistics: a robot of support/data/robots.json or a .json file such as "
                      "described there (default: the only one)")
    load.add_argument("--action_mode", choices=("absolute", "delta"),
                      help="how the weights act, where train_config.json does not say")
    load.add_argument("--fps", type=value(float, {"above": 0}), help="frames per second of that robot (default: 30)")
    load.add_argument("--revision", help="branch, tag or commit of a hub id")
    load.add_argument("--vae", help="directory of encoder.jit and decoder.jit, instead of the release's copy")
    load.add_argument("--tokenizer", help="directory or hub id of the tokenizer (default: DIR's own)")
    save = commands.add_parser("export", help="a checkpoint of ours to a directory the release can load")
    save.add_argument("run", help="a run or one checkpoint of it")
    save.add_argument("out", help="directory to write")
    save.add_argument("--base", required=True, help="the published directory or hub id, for what is not built here")
    save.add_argument("--revision", help="branch, tag or commit of that hub id")
    return parser.parse_args(argv)


def main(argv):
    args = parse(argv)
    own(args.out)
    must(not contents(args.out), f"{args.out} is not empty: give a new directory")
    {"import": import_release, "export": export_run}[args.command](args)


if __name__ == "__main__":
    command("support.weights", main)
