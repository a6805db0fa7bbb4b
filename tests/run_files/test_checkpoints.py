"""Weight files: what is saved comes back, and nothing damaged or hostile gets in."""

from __future__ import annotations

import collections
import io
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from run_files.tensor_files import read_archive, write_archive
from run_files.weights import checkpoint_files, list_checkpoints, load_into, load_weights, save_weights
from utils import UserError

TERABYTE = 1 << 40


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


def write_torch_zip(path: Path, records: dict[str, bytes]) -> Path:
    """A file laid out as torch.save does, with any content."""
    writer = torch._C.PyTorchFileWriter(str(path))
    for name, data in records.items():
        writer.write_record(name, data, len(data))
    writer.write_end_of_file()
    return path


class Storage:
    """Stands for a storage of `numel` floats in a crafted pickle."""

    def __init__(self, numel: int) -> None:
        self.numel = numel


class Crafted:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def crafted_tensor(numel: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Crafted:
    rebuild = torch._utils._rebuild_tensor_v2
    return Crafted(rebuild, Storage(numel), 0, size, stride, False, collections.OrderedDict())


class Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return (
            ("storage", torch.FloatStorage, "0", "cpu", value.numel) if isinstance(value, Storage) else None
        )


def write_crafted(path: Path, content: Any, protocol: int = 2) -> Path:
    data = io.BytesIO()
    Pickler(data, protocol).dump(content)
    return write_torch_zip(path, {"data.pkl": data.getvalue(), "byteorder": b"little", "data/0": bytes(400)})


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

    def test_heads_of_earlier_files(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.pth"
        torch.save({"reward_head.layers.0.weight": torch.ones(2)}, path)
        assert set(load_weights(path)) == {"reward_head.0.weight"}

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

    def test_result_does_not_depend_on_the_file(self, tmp_path: Path) -> None:
        save_weights(tmp_path / "w.pth", {"weight": torch.ones(1000)})
        state = load_weights(tmp_path / "w.pth")
        (tmp_path / "w.pth").write_bytes(bytes(100))
        assert state["weight"].sum() == 1000

    def test_same_weights_give_the_same_bytes(self, tmp_path: Path) -> None:
        for name in ("a.pth", "b.pth"):
            save_weights(tmp_path / name, small_network())
        assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()

    def test_only_what_can_be_loaded_is_saved(self, tmp_path: Path) -> None:
        import numpy as np

        with pytest.raises(TypeError, match=r"\['b'\]\[0\] is float64"):
            write_archive(tmp_path / "a.pt", {"b": [np.float64(1)]})
        assert list(tmp_path.iterdir()) == []


class TestDamage:
    def test_every_bit_flip_is_detected(self, tmp_path: Path) -> None:
        path = tmp_path / "w.pth"
        save_weights(path, small_network())
        data = path.read_bytes()
        generator = random.Random(0)
        places = [generator.randrange(len(data)) for _ in range(50)]
        places += [0, *range(len(data) - 170, len(data))]  # the zip's end and the seal
        for place in places:
            flipped = bytearray(data)
            flipped[place] ^= 1 << generator.randrange(8)
            path.write_bytes(flipped)
            with pytest.raises(UserError, match=r"w\.pth"):
                load_weights(path)
        path.write_bytes(data)
        assert load_weights(path)

    def test_every_truncation_is_detected(self, tmp_path: Path) -> None:
        path = tmp_path / "w.pth"
        save_weights(path, small_network())
        data = path.read_bytes()
        generator = random.Random(1)
        for length in [
            0,
            1,
            21,
            len(data) - 71,
            len(data) - 1,
            *(generator.randrange(len(data)) for _ in range(50)),
        ]:
            path.write_bytes(data[:length])
            with pytest.raises(UserError, match=r"w\.pth"):
                load_weights(path)

    def test_flips_in_the_tensors_of_a_foreign_file(self, tmp_path: Path) -> None:
        path = tmp_path / "foreign.pth"
        torch.save({"weight": torch.zeros(1000)}, path)
        data = path.read_bytes()
        start = data.index(bytes(4000))
        generator = random.Random(2)
        for _ in range(50):
            flipped = bytearray(data)
            flipped[start + generator.randrange(4000)] ^= 1 << generator.randrange(8)
            path.write_bytes(flipped)
            with pytest.raises(UserError, match="damaged"):
                load_weights(path)

    def test_random_bytes_never_end_in_a_traceback(self, tmp_path: Path) -> None:
        path = tmp_path / "foreign.pth"
        torch.save({"weight": torch.zeros(10), "bias": torch.zeros(3)}, path)
        data = path.read_bytes()
        generator = random.Random(3)
        for _ in range(200):
            broken = bytearray(data)
            for _ in range(generator.randrange(1, 5)):
                broken[generator.randrange(len(broken))] = generator.randrange(256)
            path.write_bytes(broken)
            try:
                state = load_weights(path)
            except UserError as error:
                assert "foreign.pth" in str(error)
            else:  # bytes that mean nothing, such as padding
                assert equal(state, {"weight": torch.zeros(10), "bias": torch.zeros(3)})

    def test_an_old_file_survives_a_failed_write(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "w.pth"
        save_weights(path, {"weight": torch.ones(3)})

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"w\.pth: No space left on device.*MB needed"):
            save_weights(path, {"weight": torch.zeros(3)})
        assert torch.equal(load_weights(path)["weight"], torch.ones(3))
        assert [entry.name for entry in tmp_path.iterdir()] == ["w.pth"]


class TestHostile:
    @pytest.mark.parametrize("protocol", [0, 2, 4])
    def test_code_is_not_run(self, tmp_path: Path, protocol: int) -> None:
        marker = tmp_path / "touched"
        path = write_crafted(tmp_path / "evil.pth", {"w": Crafted(os.mkdir, str(marker))}, protocol)
        with pytest.raises(UserError, match=r"evil\.pth"):
            load_weights(path)
        assert not marker.exists()
        pickle.loads(pickle.dumps(Crafted(os.mkdir, str(marker))))
        assert marker.exists()  # as the file would have done it

    def test_the_global_is_named(self, tmp_path: Path) -> None:
        path = write_crafted(tmp_path / "evil.pth", {"w": Crafted(os.system, "true")})
        with pytest.raises(UserError, match=r"asks for 'posix\.system'"):
            load_weights(path)

    @pytest.mark.parametrize(
        "content",
        [
            crafted_tensor(TERABYTE, (TERABYTE,), (1,)),
            crafted_tensor(100, (TERABYTE,), (1,)),
            crafted_tensor(100, (TERABYTE,), (0,)),
            crafted_tensor(1, (10, TERABYTE), (0, 0)),
            crafted_tensor(200, (200,), (1,)),  # twice the bytes that are there
            crafted_tensor(100, (-5,), (1,)),
            crafted_tensor(-5, (5,), (1,)),
            crafted_tensor(100, (5,), (-1,)),
            Crafted(torch.Tensor, TERABYTE),
            Crafted(bytearray, TERABYTE),
        ],
    )
    def test_claims_of_terabytes(self, tmp_path: Path, content: Crafted) -> None:
        path = write_crafted(tmp_path / "huge.pth", {"w": content})
        with pytest.raises(UserError, match=r"huge\.pth"):
            load_weights(path)

    def test_crafted_tensors_of_honest_size_load(self, tmp_path: Path) -> None:
        path = write_crafted(tmp_path / "fine.pth", {"w": crafted_tensor(100, (100,), (1,))})
        assert load_weights(path)["w"].shape == (100,)

    def test_many_views_of_one_storage(self, tmp_path: Path) -> None:
        views = {str(index): crafted_tensor(100, (100,), (1,)) for index in range(5_000)}
        storage = Storage(100)
        for view in views.values():
            view.call = (view.call[0], (storage, *view.call[1][1:]))
        path = write_crafted(tmp_path / "views.pth", views)
        with pytest.raises(UserError, match="claims more than the file holds"):
            load_weights(path)

    def test_entry_size_in_the_zip_header(self, tmp_path: Path) -> None:
        path = tmp_path / "w.pth"
        torch.save({"weight": torch.zeros(1000)}, path)
        data = bytearray(path.read_bytes())
        end = data.rindex(b"PK\x06\x06")
        for name in (b"data.pkl", b"data/0"):  # in the central directory
            broken = bytearray(data)
            entry = broken.rindex(b"PK\x01\x02", 0, broken.rindex(name, 0, end))
            broken[entry + 20 : entry + 28] = b"\xf0\xff\xff\xff" * 2  # 4 GiB, both sizes
            path.write_bytes(broken)
            with pytest.raises(UserError, match="claim more than the file's"):
                load_weights(path)

    def test_size_of_the_central_directory(self, tmp_path: Path) -> None:
        path = tmp_path / "w.pth"
        torch.save({"weight": torch.zeros(10)}, path)
        data = bytearray(path.read_bytes())
        end = data.rindex(b"PK\x06\x06")
        data[end + 40 : end + 48] = TERABYTE.to_bytes(8, "little")
        path.write_bytes(data)
        with pytest.raises(UserError, match="damaged"):
            load_weights(path)

    def test_compressed_entries(self, tmp_path: Path) -> None:
        path = tmp_path / "bomb.pth"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02}.")
            archive.writestr("archive/data/0", bytes(10_000_000))
        with pytest.raises(UserError, match=r"bomb\.pth"):
            load_weights(path)

    def test_structures_that_repeat_themselves(self, tmp_path: Path) -> None:
        laughs: list[Any] = ["ha"]
        for _ in range(40):
            laughs = [laughs, laughs]
        with pytest.raises(UserError, match="nested too deeply, or repeats itself"):
            read_archive(write_crafted(tmp_path / "laughs.pth", laughs))
        circle: list[Any] = []
        circle.append(circle)
        with pytest.raises(UserError, match="nested too deeply, or repeats itself"):
            read_archive(write_crafted(tmp_path / "circle.pth", circle))

    def test_case_of_record_names(self, tmp_path: Path) -> None:
        records = {"data.pkl": b"\x80\x02}.", "DATA.PKL": b"\x80\x02]."}
        with pytest.raises(UserError, match=r"is not a file that torch\.save wrote"):
            load_weights(write_torch_zip(tmp_path / "two.pth", records))

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
            {"w": torch.sparse_coo_tensor(torch.zeros(1, 1), torch.ones(1), (TERABYTE,))}, tmp_path / "w.pth"
        )
        with pytest.raises(UserError, match=r"w\.pth"):
            load_weights(tmp_path / "w.pth")

    def test_what_is_not_a_file(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.pth")
        (tmp_path / "folder.pth").mkdir()
        (tmp_path / "text.pth").write_text("weights\n" * 100)
        for name, reason in [("pipe", "not a regular"), ("folder", "not a regular"), ("text", "not a file")]:
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
        self.check({"2.bias": None}, r"w\.pth: has no entry '2\.bias'; 1 of 9 are missing")

    def test_misspelt(self) -> None:
        self.check(
            {"2.bias": None, "2.bais": torch.zeros(2)}, r"no entry '2\.bias' \(did you mean '2\.bais'\?\)"
        )

    def test_unexpected(self) -> None:
        self.check({"3.bias": torch.zeros(2)}, r"w\.pth: entry '3\.bias' is not expected")

    def test_shape(self) -> None:
        self.check(
            {"2.weight": torch.zeros(2, 4)}, r"w\.pth: 2\.weight has shape \(2, 4\), expected \(2, 5\)"
        )

    def test_dtype(self) -> None:
        self.check({"2.bias": torch.zeros(2).double()}, r"2\.bias is torch\.float64, expected torch\.float32")

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
