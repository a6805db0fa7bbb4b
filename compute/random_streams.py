"""Random numbers by purpose, so that one use never shifts another's."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def derive_seed(seed: int, *purpose: object) -> int:
    """A 63-bit seed for one purpose of a run, from the run's seed."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class RandomStreams:
    """One generator per purpose, made on first use from the run's seed and the purpose's name.

    PyTorch's default generator is left to dropout, which can take no other; `seed_default` makes
    it part of a run.

    Args:
        seed: of the run. device: where the generators live, unless asked for elsewhere.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        self.device = device
        self._generators: dict[str, torch.Generator] = {}
        self._saved: dict[str, dict[str, object]] = {}  # states of streams that were not asked for since

    def seed_default(self) -> None:
        """Seed PyTorch's default generators for this run."""
        torch.manual_seed(derive_seed(self.seed, "default"))

    def generator(self, purpose: str, device: torch.device | None = None) -> torch.Generator | None:
        """Return the generator of a purpose; `device` is where it is made on first use; none on "meta"."""
        if (device or self.device).type == "meta":
            return None
        if purpose not in self._generators:
            generator = torch.Generator(device or self.device).manual_seed(derive_seed(self.seed, purpose))
            saved = self._saved.pop(purpose, None)
            if saved is not None and saved["device"] == generator.device.type:
                generator.set_state(saved["state"])
            self._generators[purpose] = generator
        return self._generators[purpose]

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """Float32 numbers in [0, 1) from the stream of this purpose."""
        return torch.rand(shape, generator=self.generator(purpose), device=self.device)

    def state_dict(self) -> dict[str, object]:
        """State of every stream used so far, and of PyTorch's default generators."""
        streams = {
            name: {"device": generator.device.type, "state": generator.get_state()}
            for name, generator in self._generators.items()
        }
        state: dict[str, object] = {"streams": self._saved | streams, "default": torch.get_rng_state()}
        if self.device.type != "cpu":
            state["device_default"] = torch.get_device_module(self.device).get_rng_state(self.device)
        return state

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue every stream where `state_dict` left it.

        Generators of another kind of device have another form, so a stream that is now drawn
        on one begins anew. Raise KeyError, TypeError or RuntimeError for what is no such state.
        """
        torch.set_rng_state(state["default"])
        if "device_default" in state and self.device.type != "cpu":
            torch.get_device_module(self.device).set_rng_state(state["device_default"], self.device)
        for saved in state["streams"].values():
            if saved["device"] in ("cpu", self.device.type):
                torch.Generator(saved["device"]).set_state(saved["state"])  # refused now, not at first use
        self._generators, self._saved = {}, dict(state["streams"])
