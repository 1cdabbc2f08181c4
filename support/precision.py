"""In which dtype the network computes: bfloat16 where it may, float32 where it must."""

from experts import RMSNorm


def to_compute(model, dtype):
    """Cast a model: norms, action projections and all buffers (rotary frequencies) stay float32. Returns it."""
    exact = [(m, name, b) for m in model.modules() for name, b in m.named_buffers(recurse=False)]
    model.to(dtype)
    for module, name, buffer in exact:
        setattr(module, name, buffer)
    act = model.act
    for module in [*(m for m in model.modules() if isinstance(m, RMSNorm)), act.state_proj, act.action_in_proj,
                   act.action_out_proj, act.action_time_mlp_in, act.action_time_mlp_out]:
        module.float()
    return model
