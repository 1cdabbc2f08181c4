"""python -m support.weights import | export | random"""

import sys

from support.weights.loading import export_run, import_release, parse, random_release

if __name__ == "__main__":
    try:
        args = parse(sys.argv[1:])
        {"import": import_release, "export": export_run, "random": random_release}[args.command](args)
    except (ValueError, OSError) as error:
        print(f"support.weights: {error}", file=sys.stderr)
        sys.exit(2)
