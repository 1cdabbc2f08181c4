"""AdamW in three memory budgets (Table 2's settings), one interface.

    fp32      fp32 weights, gradients and moments: torch.optim.AdamW                                16 bytes a parameter
    split     bf16 weights; the low 16 bits of their fp32 masters beside them; bf16 moments         10
    offload   bf16 weights and gradients on the device; fp32 masters and moments in host memory     4 (and 12 of host)

Weights always have an exact fp32 master: at these learning rates a bf16 weight that is rounded after each step mostly
does not move. Moments in bf16 move: at beta2 = 0.95 their smallest relative change, 0.05, is far above its resolution.
Norms and action projections keep fp32 weights and compute in fp32 in every mode. Each rank updates its own shards."""

import threading

import torch
from torch.distributed.tensor import DTensor

from support.training.ranks import local, share, whole

PIECE = 1 << 24   # elements of one fp32 working piece of `split`: 64 MiB each for master, two moments, denominator


def global_norm(parameters):
    """Euclidean norm of all gradients, over all shards, accumulated in float32 -> 0-dim tensor."""
    norms = [torch.linalg.vector_norm(p.grad, dtype=torch.float32) for p in parameters if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack([x.full_tensor() if isinstance(x, DTensor) else x for x in norms]))


def clip_scale(norm, clip):
    """What brings a global norm of gradients to at most `clip`. A 0-dim tensor."""
    return (clip / (norm + 1e-6)).clamp(max=1.0)


def adamw(kind, model, masters, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01):
    """AdamW in one of the three memory budgets for a model's trained parameters; the defaults are Table 2's.
    masters: name -> float32 value (may share memory), emptied: no second copy stands beside the finished state."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    budget = {"fp32": Fp32, "split": Split, "offload": Offload}[kind]
    optimizer = budget(parameters, masters, {"betas": betas, "eps": eps, "weight_decay": weight_decay})
    masters.clear()
    if kind == "offload":
        optimizer.hold_back(model)
    return optimizer


class Fp32:
    """torch.optim.AdamW on the weights themselves."""

    def __init__(self, parameters, masters, settings):
        self.parameters = parameters
        self.weights = {name: local(p.detach()) for name, p in parameters.items()}
        self.adamw = torch.optim.AdamW(self.weights.values(), fused=True, **settings)
        self.adamw.state.update({weight: fresh(weight) for weight in self.weights.values()})

    def step(self, lr, scale):
        """One update. scale: 0-dim tensor that gradients are multiplied by first."""
        self.adamw.param_groups[0]["lr"] = lr
        for name, p in self.parameters.items():
            self.weights[name].grad = local(p.grad).mul_(scale)
        self.adamw.step()
        self.adamw.zero_grad()

    def zero_grad(self):
        for p in self.parameters.values():
            p.grad = None

    def finish(self):
        """Wait until the last update is complete. Here it always is."""

    def state(self, name):
        """What is kept of one parameter, key -> this rank's part."""
        return self.adamw.state[self.weights[name]]

    def tensors(self, keep=True):
        """The whole state as full tensors, "parameter.key" -> tensor. Sharded: every rank calls, `keep` keeps."""
        found = {}
        for name, p in self.parameters.items():
            for key, part in self.state(name).items():
                full = part if key == "step" else whole(part, p)   # all ranks take part
                if keep:
                    found[f"{name}.{key}"] = full.cpu() if full is not part else full
        return found

    def load(self, tensors):
        """The reverse, exactly; KeyError names a tensor that is missing."""
        for name, p in self.parameters.items():
            for key, part in self.state(name).items():
                full = tensors[f"{name}.{key}"]
                part.copy_(full if key == "step" else local(share(full, p)))


def fresh(weight):
    """AdamW's state of a weight before its first update."""
    return {"step": torch.zeros((), device=weight.device), "exp_avg": torch.zeros_like(weight),
            "exp_avg_sq": torch.zeros_like(weight)}


class Split(Fp32):
    """bf16 weight + int16 = fp32 master, moments in bf16; AdamW in fp32 on pieces, in torch's order of operations."""

    def __init__(self, parameters, masters, settings):
        self.parameters, self.settings, self.kept, self.steps = parameters, settings, {}, 0
        for name, p in parameters.items():
            weight = local(p.detach())
            state = {key: torch.zeros_like(weight, dtype=torch.bfloat16) for key in ("exp_avg", "exp_avg_sq")}
            if p.dtype == torch.bfloat16:
                state["low"] = torch.zeros_like(weight, dtype=torch.int16)
                master = local(share(masters.pop(name), p)).contiguous()
                for hi, low, piece in pieces(weight, state["low"], master):
                    put_master(piece.to(hi.device), hi, low)
            self.kept[name] = state

    def state(self, name):
        return {"step": torch.tensor(float(self.steps))} | self.kept[name]

    @torch.no_grad()
    def step(self, lr, scale):
        self.steps += 1
        for name, p in self.parameters.items():
            state, weight = self.kept[name], local(p.detach())
            low = state.get("low", weight)
            for hi, low, m, v, g in pieces(weight, low, state["exp_avg"], state["exp_avg_sq"], local(p.grad)):
                master = hi if hi.dtype == torch.float32 else get_master(hi, low)
                update(master, g.float() * scale, m, v, self.steps, lr, **self.settings)
                if master is not hi:
                    put_master(master, hi, low)

    def load(self, tensors):
        super().load(tensors)
        self.steps = int(tensors[f"{next(iter(self.parameters))}.step"])


def pieces(*tensors):
    """Contiguous tensors of one shape -> tuples of flat views of at most PIECE elements each."""
    return zip(*(x.view(-1).split(PIECE) for x in tensors))


def get_master(hi, low):
    """bf16 weight and int16 -> fp32 master: (bits of hi) * 2^16 + low."""
    return ((hi.view(torch.int16).to(torch.int32) << 16) + low).view(torch.float32)


def put_master(master, hi, low):
    """fp32 master -> its nearest bf16, in hi, and the difference of the bit patterns, in low. Exact."""
    bits = master.view(torch.int32)
    rounded = (bits + 0x8000) >> 16
    low.copy_(bits - (rounded << 16))
    hi.view(torch.int16).copy_(rounded)


def update(weight, g, m, v, step, lr, betas, eps, weight_decay):
    """AdamW on one fp32 tensor in place. m, v: moments as they are stored, bf16; the update uses them unrounded."""
    one, two = m.float().lerp_(g, 1 - betas[0]), v.float().mul_(betas[1]).addcmul_(g, g, value=1 - betas[1])
    m.copy_(one)
    v.copy_(two)
    weight.mul_(1 - lr * weight_decay)
    denominator = (two.sqrt_() / (1 - betas[1] ** step) ** 0.5).add_(eps)
    weight.addcdiv_(one, denominator, value=-lr / (1 - betas[0] ** step))


class Offload(Fp32):
    """Masters and moments in host memory, torch's fused CPU AdamW; the device holds bf16 weights and gradients. The
    next gradient travels to the host while this tensor is updated, and the new weight travels back behind it, through
    two pinned buffers each way. With `overlap` (default: on a GPU) all that happens on a thread beside the next forward
    pass, in which each layer waits for its own weights (`hold_back`)."""

    def __init__(self, parameters, masters, settings, overlap=None):
        self.parameters = parameters
        self.masters = {name: local(share(masters.pop(name).float(), p)).cpu().contiguous()
                        for name, p in parameters.items()}
        self.adamw = {name: torch.optim.AdamW([x], fused=True, **settings) for name, x in self.masters.items()}
        for name, master in self.masters.items():
            self.adamw[name].state[master] = fresh(master)
        self.cuda = any(local(p).is_cuda for p in parameters.values())
        self.slots = [Slot(max(local(p).nbytes for p in parameters.values()), self.cuda) for _ in range(2)]
        self.stream = torch.cuda.Stream() if self.cuda else None
        self.overlap, self.thread, self.problem = self.cuda if overlap is None else overlap, None, None
        self.ready = {}   # name -> event: its last update is through, and the weight on its way to the device

    def hold_back(self, model):
        """From now on each joint layer's forward pass waits for its new weights, and the model's for all others."""
        layers = {f"layers.{i}.": layer for i, layer in enumerate(model.layers)}
        for start, module in {"": model, **layers}.items():
            own = [key for key in self.parameters if key.startswith(start or tuple(layers)) == bool(start)]
            # First of all hooks: sharding gathers weights in one of its own.
            module.register_forward_pre_hook(lambda module, args, own=own: self.wait(own), prepend=True)

    def wait(self, names):
        """Until these weights are new. What the update died of is raised here."""
        for name in names:
            if name in self.ready:
                self.ready[name].wait()
        if self.cuda:
            torch.cuda.current_stream().wait_stream(self.stream)
        if self.problem:
            raise self.problem

    def finish(self):
        self.wait(self.ready)
        if self.thread:
            self.thread.join()

    def state(self, name):
        return self.adamw[name].state[self.masters[name]] | {"master": self.masters[name]}

    def step(self, lr, scale):
        self.finish()
        if self.cuda:
            self.stream.wait_stream(torch.cuda.current_stream())   # the gradients are complete
        self.ready = {name: threading.Event() for name in self.parameters}
        gradients = [local(p.grad) for p in self.parameters.values()]   # held until they are read, whoever drops them
        work = gradients, lr, scale.to("cpu")
        if self.overlap:
            self.thread = threading.Thread(target=self._update, args=work)
            self.thread.start()
        else:
            self._update(*work)
            self.finish()

    @torch.no_grad()
    def _update(self, gradients, lr, scale):
        try:
            with torch.cuda.stream(self.stream):   # a thread starts on the default one; None changes nothing
                self.slots[0].fetch(gradients[0])
                for i, (name, p) in enumerate(self.parameters.items()):
                    if i + 1 < len(gradients):
                        self.slots[(i + 1) % 2].fetch(gradients[i + 1])
                    slot, master = self.slots[i % 2], self.masters[name]
                    master.grad = slot.gradient().view(master.shape).float().mul_(scale)
                    gradients[i] = None
                    self.adamw[name].param_groups[0]["lr"] = lr
                    self.adamw[name].step()
                    master.grad = None
                    slot.send(master, local(p.detach()))
                    self.ready[name].set()
        except BaseException as error:
            self.problem = error
        finally:
            for ready in self.ready.values():
                ready.set()


class Slot:
    """Two host buffers: one tensor's gradient on its way in, and its new weight on its way out."""

    def __init__(self, size, pinned):
        self.incoming, self.outgoing = (torch.empty(size, dtype=torch.uint8, pin_memory=pinned) for _ in range(2))
        self.arrived, self.left = (torch.cuda.Event() if pinned else None for _ in range(2))

    def fetch(self, gradient):
        """Start copying a gradient to the host."""
        flat = gradient.reshape(-1)
        self.view = self.incoming[:flat.nbytes].view(flat.dtype)
        self.view.copy_(flat, non_blocking=True)
        if self.arrived:
            self.arrived.record()

    def gradient(self):
        if self.arrived:
            self.arrived.synchronize()
        return self.view

    def send(self, master, weight):
        """Start copying a master, rounded to the weight's dtype, to the device."""
        if self.left:
            self.left.synchronize()   # the weight before last has left this buffer
        view = self.outgoing[:weight.nbytes].view(weight.dtype)
        view.copy_(master.view(-1))
        weight.view(-1).copy_(view, non_blocking=True)
        if self.left:
            self.left.record()
