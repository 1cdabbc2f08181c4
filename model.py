"""InternVLA-A1: three experts in one Mixture-of-Transformers (Sec. 3, Fig. 2).

    h_und = f_und(l, o_t)      z_hat_{t+m} = f_gen(z_{t-m}, z_t; h_und)      v_theta(q_t, a_tau; h_und, h_gen)

Conditioning is per layer: layer i of the generation expert attends to layer i's keys and values of the
understanding expert, and layer i of the action expert to both. Three explicit paths share the joint attention:

    forward    training: all three streams at once, one mask
    prefill    inference: und, then gen, keeping their keys and values
    v_theta    inference: one Euler step of the action expert against the kept keys and values

The cumulative mask makes the second and third exactly equal to the first. Noise and tau are arguments, never
drawn here. What makes it fast (fused weights, compilation, caches) is in support/engine.py, not here.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

import flow
from attention_mask import Layout, attention_bias, draws, positions, segment_mask, segments, valid_tokens
from cosmos_vae import CosmosVAE, DctVAE
from experts import ActExpert, Block, GenExpert, RMSNorm, UndExpert, attend, part_of, rotary_frequencies, rotary_tables


@dataclass
class Losses:
    """Sums and counts of one forward pass; Eq. (4) divides sums by the counts of the whole optimizer step."""

    act_sum: torch.Tensor    # of squared velocity errors over real dimensions and steps, all draws
    gen_sum: torch.Tensor    # of squared latent errors over valid views
    act_count: torch.Tensor
    gen_count: torch.Tensor
    z_hat: torch.Tensor = None    # (B, V, 16, g, g), when asked for
    z: torch.Tensor = None        # (B, V, 3, 16, g, g) at t-m, t, t+m, when asked for

    def total(self, lambda_gen, act_count, gen_count):
        """L_total = lambda L_gen + L_act, Eq. (4), with the given counts; a loss without elements is 0."""
        return lambda_gen * self.gen_sum / max(gen_count, 1) + self.act_sum / max(act_count, 1)


class JointLayer(nn.Module):
    """Layer i of all experts and their joint attention: the unit of the Mixture-of-Transformers."""

    def __init__(self, config, last):
        super().__init__()
        self.und = Block(config.und_width, config.und_mlp, config, kv_only=last and not config.und_tail)
        if config.gen_expert:
            self.gen = Block(config.gen_width, config.gen_mlp, config)
        self.act = Block(config.act_width, config.act_mlp, config)

    def forward(self, streams, rotary, bias):
        """All streams at once. streams: name -> (B, n, D) in the order und, gen, act; bias (B, 1, N, N).

        Returns the same dict after this layer. A stream whose block is kv_only passes through unread.
        """
        start, parts = 0, {}
        for name, x in streams.items():
            parts[name] = slice(start, start + x.shape[1])
            start += x.shape[1]
        here = {name: part_of(rotary, part) for name, part in parts.items()}
        blocks = {name: getattr(self, name) for name in streams}

        keys, values = zip(*(blocks[name].keys_values(x, here[name]) for name, x in streams.items()))
        asking = [name for name in streams if not blocks[name].kv_only]
        query = torch.cat([blocks[name].query(streams[name], here[name]) for name in asking], 2)
        # A kv_only stream stands first in the sequence, so the askers' rows are the last ones.
        attended = attend(query, torch.cat(keys, 2), torch.cat(values, 2), bias[:, :, -query.shape[2]:])

        out, attended = dict(streams), attended.split([streams[name].shape[1] for name in asking], 1)
        for name, mine in zip(asking, attended):
            out[name] = blocks[name].finish(streams[name], mine)
        return out

    def extend(self, name, x, rotary, bias, cache=None):
        """One stream after the cached ones. x (B, n, D), cache (key, value) each (B, G, N_before, d) or None.

        Returns x after this layer and the cache extended by this stream.
        """
        block = getattr(self, name)
        key, value = block.keys_values(x, rotary)
        if cache is not None:
            key, value = torch.cat([cache[0], key], 2), torch.cat([cache[1], value], 2)
        if not block.kv_only:
            x = block.finish(x, attend(block.query(x, rotary), key, value, bias))
        return x, (key, value)


class InternVLA_A1(nn.Module):
    """The model. config: ModelConfig. The VAE is frozen and part of the module (Table 1 counts it)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        before = after = 1 if config.view_tokens else 0
        self.layout = Layout(side=config.view_side, text=config.text_tokens, gen=32 if config.gen_expert else 0,
                             chunk=config.chunk, before=before, after=after, mrope=bool(config.mrope_sections))
        self.und = UndExpert(config)
        if config.gen_expert:
            self.gen = GenExpert(config)
            self.vae = DctVAE() if config.vae == "dct" else CosmosVAE()
            self.vae.requires_grad_(False)
        self.act = ActExpert(config)
        self.layers = nn.ModuleList(JointLayer(config, last=i == config.layers - 1) for i in range(config.layers))
        frequency, axis = rotary_frequencies(config)
        self.register_buffer("rope_frequency", frequency, persistent=False)
        self.register_buffer("rope_axis", axis, persistent=False)
        self._initialise()

    def _initialise(self):
        """[release] normal weights in the experts' blocks, torch's defaults in the projections around them."""
        for layer in self.layers.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=self.config.init_std)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        if not self.config.learned_positions:   # beside sines and cosines of size 1, words must not be tiny
            nn.init.normal_(self.und.embed_tokens.weight, std=self.config.init_std)

    @property
    def dtype(self):
        """Compute dtype of the residual streams."""
        return self.layers[0].und.self_attn.k_proj.weight.dtype

    def to_compute(self, dtype):
        """Cast for inference: norms, action projections and all buffers (rotary frequencies) stay float32."""
        exact = [(m, name, b) for m in self.modules() for name, b in m.named_buffers(recurse=False)]
        self.to(dtype)
        for module, name, buffer in exact:
            setattr(module, name, buffer)
        keep = [m for m in self.modules() if isinstance(m, RMSNorm)]
        for module in keep + [self.act.state_proj, self.act.action_in_proj, self.act.action_out_proj,
                              self.act.action_time_mlp_in, self.act.action_time_mlp_out]:
            module.float()
        return self

    # ---- images ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def phi_cosmos(self, frames):
        """z = phi_cosmos(o): frames (B, V, T, 3, s, s) uint8 -> latents (B, V, T, 16, g, g) float32, no gradient."""
        size = self.config.vae_size
        x = frames.flatten(0, 2).float().div_(127.5).sub_(1)
        if x.shape[-1] != size:   # [release] the letterboxed view is enlarged bilinearly
            x = F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
        weight = next(self.vae.parameters(), x)
        return self.vae.encode(x.to(weight.dtype)).float().unflatten(0, frames.shape[:3])

    @torch.no_grad()
    def to_pictures(self, z):
        """Latents (..., 16, g, g) -> pictures (..., 3, H, W) uint8."""
        weight = next(self.vae.parameters(), z)
        x = self.vae.decode(z.flatten(0, -4).to(weight.dtype)).float()
        return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().unflatten(0, z.shape[:-3])

    # ---- tokens ---------------------------------------------------------------------------------------------

    def _sequence(self, batch, R):
        """Mask (B, 1, N, N) and rotary tables (B, 1, N, d), or None, of the joint sequence with R action draws."""
        layout = replace(self.layout, draws=R)
        valid = valid_tokens(layout, batch.view_mask, batch.text_mask)
        device = valid.device
        allowed = segment_mask(segments(layout).to(device), draws(layout).to(device), valid)
        bias = attention_bias(allowed, self.dtype)
        if self.config.learned_positions:   # [ours] they take the place of rotary ones
            return bias, None
        position = positions(layout, batch.view_mask, batch.text_mask)
        return bias, rotary_tables(position, self.rope_frequency, self.rope_axis)

    # ---- training -------------------------------------------------------------------------------------------

    def forward(self, batch, eps, tau, pictures=False):
        """One masked pass over all streams -> Losses.

        batch: data.Batch. eps (B, R, k, d_a) standard normal, tau (B, R) in [0, 1]. `pictures` keeps z and z_hat.
        """
        config, R = self.config, eps.shape[1]
        real = batch.dim_mask[:, None, None].float()                               # (B, 1, 1, d_a)
        if not config.noise_on_padding:
            eps = eps * real
        a = batch.action[:, None]                                                  # (B, 1, k, d_a)
        a_tau = flow.interpolate(a, eps, tau)

        streams = {"und": self.und.embed(batch.image, batch.text_ids).to(self.dtype)}
        z = None
        if config.gen_expert:
            z = self.phi_cosmos(batch.frames)                                      # (B, V, 3, 16, g, g)
            streams["gen"] = self.gen.embed(z[:, :, :2]).to(self.dtype)
        streams["act"] = self.act.embed(batch.state, a_tau, tau).to(self.dtype)
        bias, rotary = self._sequence(batch, R)
        for layer in self.layers:
            streams = layer(streams, rotary, bias)

        v = self.act.velocity(streams["act"], R)                                   # (B, R, k, d_a)
        if not config.noise_on_padding:
            v = v * real
        error = (v - flow.velocity_target(a, eps)).square()                        # Eq. (2)
        mask = batch.action_mask[:, None].expand_as(error)
        zero = error.new_zeros(())
        losses = Losses((error * mask).sum(), zero, mask.sum(), zero)
        if config.gen_expert:
            z_hat = self.gen.decode(streams["gen"]).float()
            target = z[:, :, 2] if config.gen_target == "future" else z[:, :, 1]   # sg[z_{t+m}]: phi has no gradient
            seen = (batch.view_mask & batch.future_mask[:, None])[..., None, None, None].expand_as(target)
            losses.gen_sum = ((z_hat - target).square() * seen).sum()              # Eq. (1)
            losses.gen_count = seen.sum()
            if pictures:
                losses.z_hat, losses.z = z_hat.detach(), z
        return losses

    def counts(self, batch, R):
        """Elements of L_act and L_gen in a batch, without running the model: (int, int)."""
        act = int(batch.action_mask.sum()) * R
        views = int((batch.view_mask & batch.future_mask[:, None]).sum())
        return act, views * 16 * self.config.latent_grid ** 2 if self.config.gen_expert else 0

    # ---- inference ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prefill(self, batch):
        """Understanding, then generation: what the action expert conditions on.

        Returns (caches, h_gen, bias, rotary): per layer the keys and values of und + gen tokens; the generation
        expert's output (B, 96, D) or None; the mask and rotary rows of the action tokens.
        """
        bias, rotary = self._sequence(batch, R=1)
        u, g = self.layout.n_und, self.layout.n_und + self.layout.n_gen
        x = self.und.embed(batch.image, batch.text_ids).to(self.dtype)
        caches = []
        for layer in self.layers:
            x, cache = layer.extend("und", x, part_of(rotary, slice(u)), bias[:, :, :u, :u])
            caches.append(cache)
        h_gen = None
        if self.config.gen_expert:
            h_gen = self.gen.embed(self.phi_cosmos(batch.frames[:, :, :2])).to(self.dtype)
            here = part_of(rotary, slice(u, g))
            for i, layer in enumerate(self.layers):
                h_gen, caches[i] = layer.extend("gen", h_gen, here, bias[:, :, u:g, :g], caches[i])
        return caches, h_gen, bias[:, :, g:], part_of(rotary, slice(g, None))

    def v_theta(self, prefix, batch, a_tau, tau):
        """One evaluation of the velocity field. a_tau (B, k, d_a), tau python float -> (B, k, d_a)."""
        caches, _, bias, rotary = prefix
        tau = torch.full((len(a_tau), 1), tau, dtype=torch.float64, device=a_tau.device)   # periods go down to 0.004
        x = self.act.embed(batch.state, a_tau[:, None], tau).to(self.dtype)
        for layer, cache in zip(self.layers, caches):
            x, _ = layer.extend("act", x, rotary, bias, cache)
        v = self.act.velocity(x, 1)[:, 0]
        return v if self.config.noise_on_padding else v * batch.dim_mask[:, None].float()

    @torch.no_grad()
    def sample_actions(self, batch, eps, steps=None, prefix=None):
        """Eq. (3): denoise eps (B, k, d_a) into normalised actions (B, k, d_a). steps: default config.euler_steps."""
        prefix = prefix or self.prefill(batch)
        if not self.config.noise_on_padding:
            eps = eps * batch.dim_mask[:, None].float()
        return flow.euler(lambda a, tau: self.v_theta(prefix, batch, a, tau), eps, steps or self.config.euler_steps)

    @torch.no_grad()
    def imagine(self, batch, prefix=None):
        """z_hat_{t+m} from the frames at t-m and t: (B, V, 16, g, g). ValueError without a generation expert."""
        if not self.config.gen_expert:
            raise ValueError("this model was built with --gen_expert false: it imagines nothing")
        prefix = prefix or self.prefill(batch)
        return self.gen.decode(prefix[1]).float()


def count_parameters(model):
    """Unique parameters by part: dict of und, gen, act, projections, vae, total (Table 1's columns)."""
    def size(modules):
        return sum(p.numel() for m in modules for p in m.parameters())

    layers = model.layers
    rows = {"und": size([model.und] + [layer.und for layer in layers]),
            "act": size([layer.act for layer in layers] + [model.act.norm]),
            "gen": 0, "vae": 0}
    if model.config.gen_expert:
        rows["gen"] = size([layer.gen for layer in layers] + [model.gen.norm])
        rows["vae"] = size([model.vae])
    rows["total"] = sum(p.numel() for p in model.parameters())
    rows["projections"] = rows["total"] - sum(rows[name] for name in ("und", "gen", "act", "vae"))
    return rows
