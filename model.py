"""InternVLA-A1: three experts in one Mixture-of-Transformers (Sec. 3, Fig. 2).

    h_und = f_und(l, o_t)      z_hat_{t+m} = f_gen(z_{t-m}, z_t; h_und)      v_theta(q_t, a_tau; h_und, h_gen)

The tokens of one expert are a stream: und, gen, act. There is no single tensor h_und or h_gen. Layer i of the
generation expert reads the keys and values of layer i of the understanding expert, and layer i of the action expert
those of both. There are three ways through the layers:

    forward    training: und, gen and act
    prefill    inference: und and gen, whose keys and values are kept
    v_theta    inference: act in one Euler step, against the kept keys and values

No token sees a later segment, so prefill followed by v_theta gives what forward gives. Noise and tau are arguments,
never drawn here. `python model.py` prints the trace: each line of Section 3 with its shapes. What makes it fast is in
support/inference/engine.py."""

import support.entry   # first: Ctrl-C during the slow imports prints one line and no traceback
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

import flow
from attention_mask import Layout, attention_bias, draw_of_token, segment_mask, segments, valid_tokens
from cosmos_vae import CosmosVAE
from experts import ActExpert, Block, GenExpert, UndExpert, attend
from support.rotary import part_of, positions, rotary_frequencies, rotary_tables
from support.tiny import DctVAE


@dataclass
class Losses:
    """Sums and counts of one forward pass. `total` divides them by the counts of the whole optimizer step: [release]
    means, where Eq. (1) and (2) print squared norms. So lambda weighs means."""

    act_sum: torch.Tensor    # of squared velocity errors where `act_mask`, over all draws
    gen_sum: torch.Tensor    # of squared latent errors over valid views
    act_count: torch.Tensor
    gen_count: torch.Tensor
    z_hat: torch.Tensor = None    # (B, V, 16, g, g), when asked for
    z: torch.Tensor = None        # (B, V, 3, 16, g, g) at t-m, t, t+m, when asked for

    def total(self, lambda_gen, act_count, gen_count):
        """L_total = lambda L_gen + L_act, Eq. (4), with the given counts; a loss without elements is 0."""
        return lambda_gen * self.gen_sum / max(gen_count, 1) + self.act_sum / max(act_count, 1)


def masked_sum(error, mask):
    """Sum and number of the elements of `error` where `mask`, broadcast to it, is true: two scalars."""
    mask = mask.expand_as(error)
    return (error * mask).sum(), mask.sum()


def act_mask(batch, tau):
    """Which elements L_act counts: (B, R, k, d_a) bool. tau (B, R), or (B, R, k), which is 1 where an action is given
    (train.py --rtc_delay): of that nothing is to be learned."""
    learned = tau < 1 if tau.ndim == 3 else torch.ones_like(tau, dtype=torch.bool)[..., None]
    return batch.action_mask[:, None] & learned[..., None]


class JointLayer(nn.Module):
    """Layer i of all experts and their joint attention: the unit of the Mixture-of-Transformers."""

    def __init__(self, config, last):
        super().__init__()
        self.und = Block(config.und_width, config.und_mlp, config, kv_only=last and not config.und_tail)
        if config.gen_expert:
            self.gen = Block(config.gen_width, config.gen_mlp, config)
        self.act = Block(config.act_width, config.act_mlp, config)

    def extend(self, name, x, rotary, bias, kv=None):
        """One stream attends to those before it and to itself: the Mixture-of-Transformers in seven lines.

        name: und, gen or act. x (B, n, D). bias (B, 1, n, N_before + n). kv: (key, value) of the streams before
        it, each (B, G, N_before, d), or None. Returns x after this layer, unchanged if its block is kv_only, and
        (key, value) with its own appended: what the next stream attends to."""
        block = getattr(self, name)
        query, key, value = block.project(x, rotary)
        if kv is not None:
            key, value = torch.cat([kv[0], key], 2), torch.cat([kv[1], value], 2)
        if query is not None:
            x = block.finish(x, attend(query, key, value, bias))
        return x, (key, value)

    def forward(self, streams, rotary, bias):
        """All streams after this layer, and (key, value) of all their tokens.

        streams: name -> (B, n, D), in the order und, gen, act. rotary: tables (B, 1, N, d), or None, and bias
        (B, 1, N, N): both of the whole sequence."""
        out, kv, start = {}, None, 0
        for name, x in streams.items():
            end = start + x.shape[1]
            rows = bias[:, :, start:end, :end]                                     # nobody sees what comes later
            out[name], kv = self.extend(name, x, part_of(rotary, slice(start, end)), rows, kv)
            start = end
        return out, kv


class Prefix(NamedTuple):
    """What `prefill` returns: all that the action expert conditions on."""

    kv: list                # per layer (key, value) of the und and gen tokens, each (B, G, N_und + N_gen, d)
    gen_out: torch.Tensor   # the generation expert's last output (B, 96, D), for `decode` alone; None without one
    rotary: tuple           # cos and sin of the action expert's tokens; None with learned positions
    bias: torch.Tensor      # the rows of these tokens of the mask, (B, 1, N_act, N)


class InternVLA_A1(nn.Module):
    """The model. config: ModelConfig. The VAE is frozen and part of the module (Table 1 counts it)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        gen = 2 * 4 * 4 if config.gen_expert else 0   # of a view: two times of 4 x 4 tokens, 96 for three views
        self.layout = Layout(side=config.view_side, text=config.text_tokens, gen=gen, chunk=config.chunk,
                             marks=len(config.view_tokens) // 2, mrope=bool(config.mrope_sections))
        self.und = UndExpert(config)
        if config.gen_expert:
            self.gen = GenExpert(config)
            self.vae = (DctVAE() if config.vae == "dct" else CosmosVAE()).requires_grad_(False)
        self.act = ActExpert(config)
        self.layers = nn.ModuleList(JointLayer(config, last=i == config.layers - 1) for i in range(config.layers))
        frequency, axis = rotary_frequencies(config)
        self.register_buffer("rope_frequency", frequency, persistent=False)
        self.register_buffer("rope_axis", axis, persistent=False)
        self._initialise()

    def _initialise(self):
        """[release] Linear weights of the blocks and word embeddings are normal. Projections keep torch's defaults."""
        for layer in self.layers.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=self.config.init_std)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        if not self.config.learned_positions:   # beside those, word embeddings keep torch's deviation of 1
            nn.init.normal_(self.und.embed_tokens.weight, std=self.config.init_std)

    @property
    def dtype(self):
        """Of the residual streams."""
        return self.layers[0].und.self_attn.k_proj.weight.dtype

    # ---- images ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def phi_cosmos(self, frames):
        """z = phi_cosmos(o): frames (B, V, T, 3, s, s) uint8 -> latents (B, V, T, 16, g, g) float32, no gradient."""
        size = self.config.vae_size
        x = frames.flatten(0, 2).float().div_(127.5).sub_(1)
        if x.shape[-1] != size:   # [release] the letterboxed view is enlarged bilinearly
            x = F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
        weight = next(self.vae.parameters(), x)   # for its dtype; DctVAE has none
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
        allowed = segment_mask(segments(layout).to(valid.device), draw_of_token(layout).to(valid.device), valid)
        bias = attention_bias(allowed, self.dtype)
        if self.config.learned_positions:   # [ours] in place of rotary ones
            return bias, None
        position = positions(layout, batch.view_mask, batch.text_mask)
        return bias, rotary_tables(position, self.rope_frequency, self.rope_axis)

    def _noised_dims(self, batch):
        """1 for an action dimension that exists and moved in training, else 0, (B, 1, d_a) float32: eps and v_theta are
        multiplied by it."""
        mask = batch.dim_mask[:, None].float()
        return torch.ones_like(mask) if self.config.noise_on_padding else mask    # [release] all dimensions

    # ---- training -------------------------------------------------------------------------------------------

    def forward(self, batch, eps, tau, latents=False):
        """One masked pass over all streams -> Losses.

        batch: data.Batch. eps (B, R, k, d_a) standard normal, tau (B, R) or (B, R, k) in [0, 1]. `latents` keeps z
        and z_hat."""
        config, R = self.config, eps.shape[1]
        dim_mask = self._noised_dims(batch)[:, None]                               # (B, 1, 1, d_a)
        a, eps = batch.action[:, None], eps * dim_mask                             # (B, 1, k, d_a), (B, R, k, d_a)
        a_tau = flow.interpolate(a, eps, tau)

        streams = {"und": self.und.embed(batch.image, batch.text_ids).to(self.dtype)}
        if config.gen_expert:
            z = self.phi_cosmos(batch.frames)                                      # (B, V, 3, 16, g, g)
            streams["gen"] = self.gen.embed(z[:, :, :2]).to(self.dtype)
        streams["act"] = self.act.embed(batch.state, a_tau, tau).to(self.dtype)
        bias, rotary = self._sequence(batch, R)
        for layer in self.layers:
            streams, _ = layer(streams, rotary, bias)

        v = self.act.velocity(streams["act"], R) * dim_mask                          # (B, R, k, d_a)
        error = (v - flow.velocity_target(a, eps)).square()                        # Eq. (2)
        act_sum, act_count = masked_sum(error, act_mask(batch, tau))
        losses = Losses(act_sum, torch.zeros_like(act_sum), act_count, torch.zeros_like(act_count))
        if config.gen_expert:
            z_hat = self.gen.decode(streams["gen"]).float()
            target = z[:, :, 2] if config.gen_target == "future" else z[:, :, 1]   # sg: no gradient in phi
            error = (z_hat - target).square()                                      # Eq. (1)
            valid = batch.view_mask & batch.future_mask[:, None]                   # (B, V)
            losses.gen_sum, losses.gen_count = masked_sum(error, valid[..., None, None, None])
            if latents:
                losses.z_hat, losses.z = z_hat.detach(), z
        return losses

    def counts(self, batch, tau):
        """Elements of L_act and L_gen in a batch, without running the model: (int, int). tau: as in `forward`."""
        views = int((batch.view_mask & batch.future_mask[:, None]).sum()) if self.config.gen_expert else 0
        return int(act_mask(batch, tau).sum()), views * 16 * self.config.latent_grid ** 2

    # ---- inference ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prefill(self, batch):
        """Understanding, then generation -> Prefix. batch: data.Batch; of its frames those at t-m and t are read."""
        streams = {"und": self.und.embed(batch.image, batch.text_ids).to(self.dtype)}
        if self.config.gen_expert:
            streams["gen"] = self.gen.embed(self.phi_cosmos(batch.frames[:, :, :2])).to(self.dtype)
        bias, rotary = self._sequence(batch, R=1)
        kv = []
        for layer in self.layers:
            streams, kept = layer(streams, rotary, bias)
            kv.append(kept)
        n = self.layout.n_und + self.layout.n_gen
        return Prefix(kv, streams.get("gen"), part_of(rotary, slice(n, None)), bias[:, :, n:])

    def v_theta(self, prefix, batch, a_tau, tau):
        """One evaluation of the velocity field. a_tau (B, k, d_a), tau python float or (k,) -> (B, k, d_a)."""
        ones = torch.ones(len(a_tau), 1, 1, dtype=torch.float64, device=a_tau.device)   # errors grow in tau_embedding
        tau = tau * ones
        x = self.act.embed(batch.state, a_tau[:, None], tau).to(self.dtype)
        for layer, kv in zip(self.layers, prefix.kv):
            x, _ = layer.extend("act", x, prefix.rotary, prefix.bias, kv)
        return self.act.velocity(x, R=1)[:, 0] * self._noised_dims(batch)

    @torch.no_grad()
    def sample_actions(self, batch, eps, steps=None, prefix=None, solve=None):
        """Eq. (3): denoise eps (B, k, d_a) into normalised actions (B, k, d_a). steps: default config.euler_steps.
        solve: what takes the place of flow.euler, with its arguments, such as a handover.Guide."""
        v_theta = partial(self.v_theta, prefix or self.prefill(batch), batch)
        return (solve or flow.euler)(v_theta, eps * self._noised_dims(batch), steps or self.config.euler_steps)

    @torch.no_grad()
    def imagine(self, batch, prefix=None):
        """z_hat_{t+m} from the frames at t-m and t: (B, V, 16, g, g). ValueError without a generation expert."""
        if not self.config.gen_expert:
            raise ValueError("this model was built with --gen_expert false: it imagines nothing")
        return self.gen.decode((prefix or self.prefill(batch)).gen_out).float()


if __name__ == "__main__":
    import runpy
    runpy.run_module("support.trace", run_name="__main__")
