"""Weight files: what is saved comes back, and nothing damaged or hostile gets in."""

from __future__ import annotations

import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from run_files.tensor_files import read_tensors, sha256_of, write_tensors
from run_files.weights import checkpoint_files, list_checkpoints, load_into, load_weights, save_weights
from utils import UserError


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


class Compiled(nn.Module):
    """Names its weights as torch.compile does, without its import time."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class TestRoundTrip:
    def test_module_to_module(self, tmp_path: Path) -> None:
        source, target = small_network(), small_network()
        source(torch.randn(7, 3))  # moves the running statistics
        with torch.no_grad():
            target[0].weight.add_(1)
        save_weights(tmp_path / "w.pth", source)
        load_into(target, load_weights(tmp_path / "w.pth"), "w.pth")
        assert equal(source.state_dict(), target.state_dict())

    def test_plain_torch_load_reads_it(self, tmp_path: Path) -> None:
        save_weights(tmp_path / "w.pth", small_network())
        for mmap in (False, True):
            state = torch.load(tmp_path / "w.pth", weights_only=True, mmap=mmap)
            assert type(state) is dict
            assert equal(state, dict(small_network().state_dict()))
        assert zipfile.ZipFile(tmp_path / "w.pth").testzip() is None

    def test_prefix_of_compiled_modules_is_left_out(self, tmp_path: Path) -> None:
        compiled = nn.Sequential(Compiled(nn.Linear(2, 2)))
        assert set(compiled.state_dict()) == {"0._orig_mod.weight", "0._orig_mod.bias"}
        save_weights(tmp_path / "w.pth", compiled)
        state = load_weights(tmp_path / "w.pth")
        assert set(state) == {"0.weight", "0.bias"}
        state["0.weight"] = state["0.weight"] + 1
        load_into(compiled, state, "w.pth")
        assert torch.equal(compiled[0]._orig_mod.weight, state["0.weight"])

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
    def test_prefixes_of_wrapped_modules_are_left_out(self, tmp_path: Path, prefix: str) -> None:
        torch.save({f"{prefix}0.weight": torch.ones(2)}, tmp_path / "w.pth")
        assert set(load_weights(tmp_path / "w.pth")) == {"0.weight"}

    def test_file_of_plain_torch_save(self, tmp_path: Path) -> None:
        module = small_network()
        torch.save(module.state_dict(), tmp_path / "foreign.pth")
        assert equal(load_weights(tmp_path / "foreign.pth"), dict(module.state_dict()))

    def test_views_and_shared_tensors(self, tmp_path: Path) -> None:
        base = torch.arange(1_000_000.0)
        weights = {
            "view": base[3:7],
            "row": base.reshape(1000, 1000)[1, :5],
            "tied": base[:2],
            "tied_too": base[:2],
        }
        weights["expanded"] = torch.ones(1).expand(50)
        save_weights(tmp_path / "w.pth", weights)
        assert (tmp_path / "w.pth").stat().st_size < 10_000
        assert equal(load_weights(tmp_path / "w.pth"), weights)

    def test_strides_are_kept(self, tmp_path: Path) -> None:
        weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
        save_weights(tmp_path / "w.pth", {"weight": weight})
        assert load_weights(tmp_path / "w.pth")["weight"].stride() == weight.stride()

    def test_same_weights_give_the_same_bytes(self, tmp_path: Path) -> None:
        for name in ("a.pth", "b.pth"):
            save_weights(tmp_path / name, small_network())
        assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()

    def test_only_what_can_be_loaded_is_saved(self, tmp_path: Path) -> None:
        import numpy as np

        with pytest.raises(TypeError, match=r"\['b'\]\[0\] is float64"):
            write_tensors(tmp_path / "a.pt", {"b": [np.float64(1)]})
        assert list(tmp_path.iterdir()) == []


class TestDamage:
    @pytest.mark.parametrize("seed", range(3))
    def test_flipped_bits_are_noticed_or_mean_nothing(self, tmp_path: Path, seed: int) -> None:
        path = tmp_path / "w.pth"
        save_weights(path, small_network())
        data, generator = path.read_bytes(), random.Random(seed)
        weights = load_weights(path)
        start = data.index(weights["0.weight"].numpy().tobytes())
        places = [
            start,
            *(generator.randrange(len(data)) for _ in range(70)),
            *range(len(data) - 70, len(data)),
        ]
        noticed = []
        for place in places:
            flipped = bytearray(data)
            flipped[place] ^= 1 << generator.randrange(8)
            path.write_bytes(flipped)
            try:
                assert equal(load_weights(path), weights)
            except UserError as error:
                assert str(error).startswith(str(path)) and "\n" not in str(error)
                noticed.append(place)
        assert start in noticed

    def test_every_truncation_is_noticed(self, tmp_path: Path) -> None:
        path = tmp_path / "w.pth"
        save_weights(path, small_network())
        data, generator = path.read_bytes(), random.Random(1)
        for length in [0, 1, 21, len(data) - 1, *(generator.randrange(len(data)) for _ in range(20))]:
            path.write_bytes(data[:length])
            with pytest.raises(UserError, match=r"w\.pth"):
                load_weights(path)

    def test_another_file_than_the_one_that_was_saved(self, tmp_path: Path) -> None:
        digest = write_tensors(tmp_path / "a.pt", {"a": torch.ones(2)})
        assert digest == sha256_of(tmp_path / "a.pt")
        write_tensors(tmp_path / "a.pt", {"a": torch.zeros(2)})
        with pytest.raises(UserError, match=r"a\.pt: is not the file that was saved"):
            read_tensors(tmp_path / "a.pt", digest)

    def test_an_old_file_survives_a_failed_write(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "w.pth"
        save_weights(path, {"weight": torch.ones(3)})

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"w\.pth: No space left on device"):
            save_weights(path, {"weight": torch.zeros(3)})
        assert torch.equal(load_weights(path)["weight"], torch.ones(3))
        assert [entry.name for entry in tmp_path.iterdir()] == ["w.pth"]


class Crafted:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


class TestHostile:
    @pytest.mark.parametrize("zipped", [True, False])
    def test_code_is_not_run(self, tmp_path: Path, zipped: bool) -> None:
        marker, path = tmp_path / "touched", tmp_path / "evil.pth"
        content = {"w": Crafted(os.mkdir, str(marker))}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match=r"evil\.pth: " + (r".*asks for \w+\.mkdir" if zipped else "")):
            load_weights(path)
        assert not marker.exists()
        pickle.loads(pickle.dumps(content))
        assert marker.exists()  # as the file would have done it

    def test_a_claim_of_a_terabyte(self, tmp_path: Path) -> None:
        torch.save({"w": Crafted(torch.zeros, 3)}, tmp_path / "w.pth")
        torch.save({"w": torch.zeros(3).expand(1 << 40, 3)}, tmp_path / "wide.pth")
        with pytest.raises(UserError, match=r"w\.pth"):
            load_weights(tmp_path / "w.pth")
        with pytest.raises(UserError, match=r"0\.weight has shape \(1099511627776, 3\), expected"):
            wide = load_weights(tmp_path / "wide.pth")["w"]
            load_into(small_network(), dict.fromkeys(small_network().state_dict(), wide), "wide.pth")

    @pytest.mark.parametrize(
        "content", [[1, 2], {}, {"a": 1}, {3: torch.ones(1)}, {"a": {"b": torch.ones(1)}}]
    )
    def test_not_flat_weights(self, tmp_path: Path, content: Any) -> None:
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(UserError, match=r"w\.pth.*expected a"):
            load_weights(tmp_path / "w.pth")

    @pytest.mark.filterwarnings("ignore:Sparse invariant checks")
    def test_sparse_tensors(self, tmp_path: Path) -> None:
        torch.save(
            {"w": torch.sparse_coo_tensor(torch.zeros(1, 1), torch.ones(1), (1 << 40,))}, tmp_path / "w.pth"
        )
        with pytest.raises(UserError, match=r"w\.pth"):
            load_weights(tmp_path / "w.pth")

    def test_what_is_not_a_file(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.pth")
        (tmp_path / "folder.pth").mkdir()
        (tmp_path / "text.pth").write_text("weights\n" * 100)
        for name, reason in [("pipe", "not a regular"), ("folder", "not a regular"), ("text", "not a zip")]:
            with pytest.raises(UserError, match=rf"{name}\.pth: .*{reason}"):
                load_weights(tmp_path / f"{name}.pth")
        for name in ("nul\0.pth", "x" * 5000):
            with pytest.raises(UserError):
                load_weights(tmp_path / name)

    def test_missing_file_suggests_a_near_one(self, tmp_path: Path) -> None:
        save_weights(tmp_path / "agent_5000.pth", small_network())
        with pytest.raises(UserError, match=r"does not exist \(did you mean 'agent_5000\.pth'\?\)"):
            load_weights(tmp_path / "agent_500.pth")


class TestLoadInto:
    def check(self, change: dict[str, torch.Tensor | None], message: str) -> None:
        module = small_network()
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        state = {**{name: tensor + 1 for name, tensor in before.items()}, **change}
        with pytest.raises(UserError, match=message):
            load_into(module, {name: tensor for name, tensor in state.items() if tensor is not None}, "w.pth")
        assert equal(module.state_dict(), before)  # all or nothing

    def test_missing(self) -> None:
        self.check({"2.bias": None}, r"w\.pth: has no entry '2\.bias'; 1 of 9 entries are missing")

    def test_misspelt(self) -> None:
        self.check(
            {"2.bias": None, "2.bais": torch.zeros(2)}, r"no entry '2\.bias' \(did you mean '2\.bais'\?\)"
        )

    def test_unexpected(self) -> None:
        self.check({"3.bias": torch.zeros(2)}, r"w\.pth: '3\.bias' is not expected")

    def test_shape(self) -> None:
        self.check(
            {"2.weight": torch.zeros(2, 4)}, r"w\.pth: 2\.weight has shape \(2, 4\), expected \(2, 5\)"
        )

    def test_dtype(self) -> None:
        self.check({"2.bias": torch.zeros(2).double()}, r"2\.bias is torch\.float64, expected torch\.float32")

    def test_float32_may_be_stored_in_half_precision(self) -> None:
        module = small_network()
        state = {name: tensor + 1 for name, tensor in module.state_dict().items()}
        load_into(module, state | {"2.bias": torch.tensor([0.5, 3.0], dtype=torch.bfloat16)}, "w.pth")
        assert equal(module.state_dict(), state | {"2.bias": torch.tensor([0.5, 3.0])})

    def test_whole_numbers_may_not(self) -> None:
        state = small_network().state_dict()
        (name,) = (name for name, tensor in state.items() if tensor.dtype == torch.int64)
        self.check({name: torch.tensor(1.0, dtype=torch.bfloat16)}, "is torch.bfloat16, expected torch.int64")

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_not_finite(self, value: float) -> None:
        self.check({"2.bias": torch.tensor([0, value])}, r"w\.pth: 2\.bias holds NaN or infinity")


class TestListing:
    def test_steps_are_sorted_and_complete(self, tmp_path: Path) -> None:
        for name in ("world_model_10000.pth", "agent_10000.pth", "world_model_5000.pth", "agent_5000.pth"):
            (tmp_path / name).touch()
        for name in (
            "world_model_15000.pth",
            "agent_20000.pth",
            "world_model_x.pth",
            ".world_model_1.pth.ab.tmp",
        ):
            (tmp_path / name).touch()
        assert list_checkpoints(tmp_path) == [5000, 10000]
        assert [path.name for path in checkpoint_files(tmp_path, 5000)] == [
            "world_model_5000.pth",
            "agent_5000.pth",
        ]
        with pytest.raises(
            UserError, match=r"no checkpoint of step 9000 .* nearest of 2 saved steps is 10000"
        ):
            checkpoint_files(tmp_path, 9000)

    def test_none(self, tmp_path: Path) -> None:
        assert list_checkpoints(tmp_path / "missing") == []
        with pytest.raises(UserError, match="no checkpoints"):
            checkpoint_files(tmp_path / "missing", 5000)
