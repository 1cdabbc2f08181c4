"""python -m bench params: Table 1 for every preset, counted on the meta device, and what is not built of it."""

from config import CONFIGS
from support.flags import Parser
from support.table1 import not_built, table


def run(argv):
    Parser(prog="python -m bench params", description=__doc__).parse_args(argv)
    for config in CONFIGS.values():
        print("\n".join(table(config)))
        for key, count in not_built(config.model).items():   # negative: built here, absent in the release's file
            print(f"    {key:<50}{count / 1e6:>8.2f}")
        print()
