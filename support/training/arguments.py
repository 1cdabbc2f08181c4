"""The flags of train.py: which data and weights, which run folder; beside them one flag for each field of config.py."""

from config import CONFIGS
from support.flags import Parser, add_config_flags


def parse(argv, description=None):
    """Arguments of train.py -> argparse's namespace. A bad one is one line and exit code 2."""
    parser = Parser(prog="train.py", description=description)
    parser.add_argument("--config", default="conveyor", help=f"one of {', '.join(CONFIGS)}")
    parser.add_argument("--data", "--mixture", help="dataset folder or mixture.json; 'conveyor' is the embedded world")
    parser.add_argument("--robot", help="a robot of support/data/robots.py or a .json file (default: the dataset's)")
    parser.add_argument("--verify", action="store_true", help="first compare every dataset's files with their record")
    parser.add_argument("--init", choices=("scratch",), help="start the a1_* presets from random weights")
    parser.add_argument("--from", dest="origin", help="start from the weights of this run or checkpoint")
    parser.add_argument("--weights", help="directory of a run or of published files: the release's, or a backbone's "
                        "and Cosmos'")
    parser.add_argument("--init_und", help="directory or hub id of the backbone: InternVL3-1B-hf or Qwen3-VL-2B")
    parser.add_argument("--init_vae", help="directory or hub id of Cosmos CI8x8: encoder.jit and decoder.jit")
    parser.add_argument("--init_experts", default="scratch", help="generation and action experts: scratch (as the "
                        "release), und (copy --init_und's text blocks: a1_2b), or a directory (a1_3b: Qwen3-0.6B)")
    parser.add_argument("--out", help="run folder (default runs/<config>)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--shard", action="store_true", help="under torchrun: FSDP2, each rank holds a part")
    parser.add_argument("--dry-run", action="store_true", help="print the memory table, try one step, and stop")
    parser.add_argument("--memory_gb", type=float, help="memory of the card in GiB (default: this one's, else 24)")
    parser.add_argument("--fit", action="store_true", help="choose optimizer, layers and micro-batch by --memory_gb")
    parser.add_argument("--episodes", type=int, default=200, help="closed-loop episodes a suite in the final report")
    parser.add_argument("--eval_seed", type=int, default=4242, help="seed of the report's closed-loop scenes")
    add_config_flags(parser)
    return parser.parse_args(argv)
