"""One model's optimizer: loss scaling, clipping, and updates that a bad number cannot poison."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from compute.execution import Execution


class GuardedOptimizer:
    """Adam on one model's loss, whose step happens only if the loss and all gradients are finite.

    The decision is taken on the device, without waiting for it: a bad update leaves the weights, Adam's
    averages and the module's buffers (BatchNorm statistics, return averages) as they were.

    Args:
        module: the model; those of its parameters that require gradients are updated.
        loss: of the model, returns (0-d loss, metrics as detached 0-d tensors).
        learning_rate, eps: Adam's.
        max_grad_norm: gradient-norm clip over all parameters.
        execution: precision, compilation and CUDA graph of an update.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[..., tuple[Tensor, dict[str, Tensor]]],
        learning_rate: float,
        eps: float,
        max_grad_norm: float,
        execution: Execution,
    ) -> None:
        self.module = module
        self.max_grad_norm = max_grad_norm
        named = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self._names, self.parameters = list(named), list(named.values())
        device = self.parameters[0].device
        self._fused = device.type in ("cpu", "cuda")  # Apple's does not skip bad updates in every PyTorch
        on_cuda = device.type == "cuda"
        self._settings = {"lr": learning_rate, "eps": eps, "fused": self._fused, "capturable": on_cuda}
        self.adam = torch.optim.Adam(self.parameters, **self._settings)
        is_scaled = execution.dtype == torch.float16  # its gradients would vanish
        self.scaler = torch.amp.GradScaler(device.type, execution.initial_loss_scale, enabled=is_scaled)
        self.bad_streak = torch.zeros((), device=device)
        self.bad_total = torch.zeros((), device=device)
        self.gradient_norms = torch.zeros(len(self.parameters), device=device)
        self._buffers = list(module.buffers())
        self._loss = execution.autocast(execution.compile(loss))
        self._update = execution.graph(self._update_eagerly)

    def update(self, *inputs: object) -> dict[str, Tensor]:
        """Take one gradient step on loss(*inputs), or undo it, as one CUDA graph where the run uses them.

        Returns:
            The loss's metrics, `updated` (1.0 if the update happened, else 0.0), `gradient_norm` before
            the clip, and `bad_updates` so far; 0-d tensors on the device, overwritten by the next call.
        """
        return self._update(*inputs)

    def _update_eagerly(self, *inputs: object) -> dict[str, Tensor]:
        before = [buffer.clone() for buffer in self._buffers]
        self.module.train()
        loss, metrics = self._loss(*inputs)
        self.module.eval()
        self.adam.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.adam)
        norm = self._clip_gradients()
        finite = (torch.isfinite(norm) & torch.isfinite(loss)).float()
        if self._fused:
            self.adam.found_inf = 1 - finite  # fused Adam skips where this is 1, its step counter included
        if self._fused or finite.is_meta or finite.item():
            self.adam.step()
        self.scaler.update()
        for buffer, value in zip(self._buffers, before, strict=True):
            buffer.copy_(torch.where(finite.bool(), buffer, value))
        self.bad_total.add_(1 - finite)
        self.bad_streak.add_(1).mul_(1 - finite)
        return metrics | {"updated": finite, "gradient_norm": norm, "bad_updates": self.bad_total.clone()}

    def _clip_gradients(self) -> Tensor:
        """Scale the gradients so that their joint norm is at most `max_grad_norm`; return it as it was."""
        gradients = [parameter.grad for parameter in self.parameters]
        self.gradient_norms = torch.stack(torch._foreach_norm(gradients))
        norm = self.gradient_norms.norm()
        torch._foreach_mul_(gradients, (self.max_grad_norm / norm).clamp(max=1.0))
        return norm

    def bad_parameters(self) -> list[str]:
        """Return the names of parameters whose last gradient was not finite; waits for the device."""
        finite = torch.isfinite(self.gradient_norms).tolist()
        return [name for name, good in zip(self._names, finite, strict=True) if not good]

    def state_dict(self) -> dict[str, object]:
        """Return everything but the weights."""
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
        self.adam.load_state_dict(state["adam"])
        for parameter, name in zip(self.parameters, self._names, strict=True):
            averages = self.adam.state.get(parameter, {})
            for key in ("exp_avg", "exp_avg_sq"):
                average = averages.get(key, parameter)
                if average.shape != parameter.shape:
                    raise ValueError(
                        f"{key} of {name} is {tuple(average.shape)}, not {tuple(parameter.shape)}"
                    )
        for group in self.adam.param_groups:
            group.update(self._settings)
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.bad_streak.copy_(state["bad_streak"])
        self.bad_total.copy_(state["bad_total"])
