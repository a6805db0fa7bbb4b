"""One model's optimizer: loss scaling, clipping, and updates that a bad number cannot poison."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GuardedOptimizer:
    """Adam whose step happens only if the loss and all gradients are finite.

    The decision is taken on the device, without waiting for it: a bad update leaves the
    weights, Adam's averages and the module's buffers (BatchNorm statistics, return averages)
    as they were.

    Args:
        module: whose buffers are guarded.
        parameters: to update.
        learning_rate, eps: Adam's.
        max_grad_norm: gradient-norm clip over all parameters.
        scale_loss: scale the loss, as float16 needs; first by `initial_scale`.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: list[nn.Parameter],
        learning_rate: float,
        eps: float,
        max_grad_norm: float,
        scale_loss: bool,
        initial_scale: float = 1.0,
    ) -> None:
        self.parameters = parameters
        self.max_grad_norm = max_grad_norm
        device = parameters[0].device
        capturable = device.type not in ("cpu", "mps")
        self.adam = torch.optim.Adam(parameters, lr=learning_rate, eps=eps, fused=True, capturable=capturable)
        self.scaler = torch.amp.GradScaler(device.type, init_scale=initial_scale, enabled=scale_loss)
        self.bad_streak = torch.zeros((), device=device)
        self.bad_total = torch.zeros((), device=device)
        self.gradient_norms = torch.zeros(len(parameters), device=device)
        self._buffers = list(module.buffers())
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        self._names = [names[id(parameter)] for parameter in parameters]

    def remember(self) -> list[Tensor]:
        """Copies of the buffers, to be taken before the forward pass and given to `step`."""
        return [buffer.clone() for buffer in self._buffers]

    def step(self, loss: Tensor, buffers_before: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Differentiate the loss and update, or undo.

        Returns:
            1.0 if the update happened, else 0.0 (0-d tensor on the device), and metrics.
        """
        self.adam.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.adam)
        gradients = [parameter.grad for parameter in self.parameters]
        self.gradient_norms = torch.stack(torch._foreach_norm(gradients))
        norm = self.gradient_norms.norm()
        torch._foreach_mul_(gradients, (self.max_grad_norm / norm).clamp(max=1.0))
        finite = (torch.isfinite(norm) & torch.isfinite(loss)).float()
        self.adam.found_inf = 1 - finite  # fused Adam skips where this is 1, its step counter included
        self.adam.step()
        if self.scaler.is_enabled():
            self.scaler.update()
        for buffer, before in zip(self._buffers, buffers_before, strict=True):
            buffer.copy_(torch.where(finite.bool(), buffer, before))
        self.bad_total.add_(1 - finite)
        self.bad_streak.add_(1).mul_(1 - finite)
        return finite, {"gradient_norm": norm, "bad_updates": self.bad_total.clone()}

    def bad_parameters(self) -> list[str]:
        """Names of the parameters whose gradient was not finite in the last update (reads the device)."""
        finite = torch.isfinite(self.gradient_norms).tolist()
        return [name for name, good in zip(self._names, finite, strict=True) if not good]

    def state_dict(self) -> dict[str, object]:
        """Everything but the weights."""
        return {
            "adam": self.adam.state_dict(),
            "scaler": self.scaler.state_dict(),
            "bad_streak": self.bad_streak,
            "bad_total": self.bad_total,
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from `state_dict`, with the learning rate and eps given to the constructor.

        Raises:
            ValueError: Adam's averages are of other parameters.
        """
        groups = [{**group} for group in self.adam.param_groups]
        self.adam.load_state_dict(state["adam"])
        for parameter, name in zip(self.parameters, self._names, strict=True):
            averages = self.adam.state.get(parameter, {})
            for key in ("exp_avg", "exp_avg_sq"):
                average = averages.get(key, parameter)
                if average.shape != parameter.shape:
                    raise ValueError(
                        f"{key} of {name} is {tuple(average.shape)}, not {tuple(parameter.shape)}"
                    )
        for group, own in zip(self.adam.param_groups, groups, strict=True):
            group.update({name: value for name, value in own.items() if name != "params"})
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.bad_streak.copy_(state["bad_streak"])
        self.bad_total.copy_(state["bad_total"])
