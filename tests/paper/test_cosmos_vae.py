"""cosmos_vae.py: equality with the released tokenizer's code on a small fixture, and the DCT's algebra.

The fixture holds weights, pictures and outputs of a narrow CI8x8 (channels 32) computed by the reference
implementation in fp32; the key list is that of the published model. The real weights are not needed here.
"""
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from cosmos_vae import CosmosVAE, haar_patch, haar_unpatch
from support.tiny import DctVAE

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def small():
    with safe_open(DATA / "cosmos_small.safetensors", "pt") as f:
        config = json.loads(f.metadata()["config"])
        tensors = {key: f.get_tensor(key) for key in f.keys()}
    vae = CosmosVAE(**config)
    vae.load_state_dict({key[3:]: value for key, value in tensors.items() if key.startswith("sd.")})
    return vae.requires_grad_(False), tensors


def max_abs(a, b):
    assert a.shape == b.shape
    return (a - b).abs().max().item()


@pytest.mark.parametrize("case", ["a", "c"])  # square pictures; a wide one
def test_equals_reference(small, case):
    vae, t = small
    assert max_abs(vae.encode(t[f"in.x_{case}"]), t[f"out.latent_{case}"]) < 1e-5
    expected = t[f"out.recon_{case}"]  # random weights: the values reach 14, so the bound is relative
    assert max_abs(vae.decode(t[f"out.latent_{case}"]), expected) < 1e-5 * expected.abs().max().item()


def test_haar_equals_reference_and_inverts(small):
    _, t = small
    patched = haar_patch(t["in.x_a"], 4)
    assert max_abs(patched, t["out.patched_a"]) < 1e-5
    assert max_abs(haar_unpatch(patched, 4), t["in.x_a"]) < 1e-5


def test_keys_shapes_and_size_of_the_published_model():
    with torch.device("meta"):
        vae = CosmosVAE()
    published = {}
    for line in (DATA / "keys_cosmos_ci8x8.tsv").read_text().splitlines():
        _, key, shape, _ = line.split("\t")
        published[key] = json.loads(shape)
    assert {key: list(value.shape) for key, value in vae.state_dict().items()} == published
    assert len(published) == 198
    assert sum(p.numel() for p in vae.parameters()) == 76_789_472
    assert vae.encode(torch.empty(1, 3, 256, 256, device="meta")).shape == (1, 16, 32, 32)
    assert vae.decode(torch.empty(1, 16, 32, 32, device="meta")).shape == (1, 3, 256, 256)


def toy_picture(size=64):
    """A smooth coloured picture, (1, 3, size, size) in [-1, 1]."""
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    blob = torch.exp(-((x - 0.4) ** 2 + (y - 0.6) ** 2) / 0.05)
    return (torch.stack([blob, 0.5 + 0.4 * torch.sin(5 * x), y]) * 2 - 1).unsqueeze(0)


def test_dct_reconstructs_a_smooth_picture():
    vae, picture = DctVAE(), toy_picture()
    z = vae.encode(picture)
    psnr = 10 * torch.log10(4 / (vae.decode(z) - picture).square().mean())
    assert psnr > 30
    assert z[:, 0].abs().max() <= 8 * 3 ** 0.5


def test_dct_algebra():
    vae, g = DctVAE(), torch.Generator().manual_seed(0)
    z, other = torch.randn(2, 2, 16, 4, 6, generator=g)
    assert max_abs(vae.encode(vae.decode(z)), z) < 1e-5
    pixels = (vae.decode(z) - vae.decode(other)).square().mean()
    assert torch.isclose((z - other).square().mean(), 192 / 16 * pixels, rtol=1e-5)
    # The transpose: <decode(z), x> = <z, encode(x)>.
    x = torch.randn(2, 3, 32, 48, generator=g)
    assert torch.isclose((vae.decode(z) * x).sum(), (z * vae.encode(x)).sum(), rtol=1e-4)
    assert not list(vae.parameters()) and not vae.state_dict()
    grey = vae.encode(torch.ones(1, 3, 8, 8)).flatten()
    assert torch.allclose(grey, torch.tensor([8 * 3 ** 0.5] + [0.0] * 15), atol=1e-5)
