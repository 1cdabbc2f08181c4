"""Noise in the published form and size, for who has no published file: `import`, `export` and fine-tuning can be tried.

    python tests/random_release.py DIR --keys tests/data/keys_3b.tsv

Each line of --keys is a key, a shape and a dtype. The statistics are genie1's, of mean 0 and deviation 1. The 3B's text
embedding is left out, as safetensors does with a tied pair."""

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.data.robots import ROBOTS


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path, help="directory to write")
    parser.add_argument("--keys", type=Path, required=True, help="tests/data/keys_3b.tsv or keys_2b.tsv")
    args, tensors, robot = parser.parse_args(argv), {}, ROBOTS["genie1"]
    torch.manual_seed(0)
    for line in args.keys.read_text().splitlines():
        key, shape, dtype = line.split("\t")[:3]
        if not (key.endswith("embed_tokens.weight") and "qwen3_vl" in key):
            tensors[key] = 0.02 * torch.randn(json.loads(shape), dtype=getattr(torch, dtype))
    moments = {key: {"mean": [0.0] * width, "std": [1.0] * width}
               for keys in (robot.state, robot.action) for key, width in zip(keys, robot.widths)}
    args.dir.mkdir(parents=True, exist_ok=True)
    save_file(tensors, args.dir / "model.safetensors", {"format": "pt"})
    (args.dir / "stats.json").write_text(json.dumps({"genie1": moments}, indent=1) + "\n")
    print(f"wrote {sum(t.numel() for t in tensors.values()) / 1e9:.2f} billion random numbers to {args.dir}")


if __name__ == "__main__":
    main()
