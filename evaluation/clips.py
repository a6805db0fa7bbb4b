"""A data set of clips: what is learned from in video prediction, in the place of environment and replay."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from compute.random_streams import derive_seed
from configuration.schema import Config
from configuration.spaces import ActionSpec, ObservationSpec, Spaces
from run_files.clip_files import ClipFile, find_clips, fingerprint
from sub_models.batch import Batch
from utils import UserError, disk_errors

MOST_ACTIONS = 2**16  # classes


class Clips:
    """The training clips or the held-out ones of a run, resized once into a temporary file.

    Windows are read from that file as they are drawn, so that memory does not grow with the data.

    Args:
        config: of the run. held_out: those that training never sees. folder: of the temporary file.
        shortest: frames of the longest window that will be drawn; shorter clips are left out.

    Raises:
        UserError: a file is damaged or of another form, named; or no clip is long enough.
    """

    count = oldest = 0  # rows that a resumable state must hold
    observation = None  # nothing is acted on

    def __init__(self, config: Config, held_out: bool, folder: Path, shortest: int) -> None:
        self.device = torch.device("cpu")
        self._source, size = Path(config.BasicSettings.trajectory_path), config.BasicSettings.ImageSize
        clips = find_clips(self._source)
        actions = [clip.actions() for clip in clips]
        spec = action_spec(clips, actions)
        self.spaces = Spaces(ObservationSpec("image", (size, size, 3)), spec)
        held = self._held_out(clips, config)
        chosen = [pair for pair in zip(clips, actions, strict=True) if (pair[0] in held) == held_out]
        self.notes, lengths, rows = [], [], []
        with disk_errors(folder / "clips"):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (open as long as the data is used)
        for clip, action in chosen:
            with disk_errors(folder / "clips"):
                length = self._store(clip.frames(), size)
            lengths.append(length)
            rows.append(fitting(clip, action, length, spec))
        kind = "held-out" if held_out else "training"
        if max(lengths, default=0) < shortest:
            raise UserError(f"{self._source}: no {kind} clip has {shortest} frames, the length of a window")
        short = sum(length < shortest for length in lengths)
        self.notes += [f"{short} {kind} clips are shorter than {shortest} frames"] if short else []
        if not held:
            self.notes.append("no clip is held out: predictions cannot be judged")
        marks = {path: fingerprint(path) for path in {clip.path for clip in clips}}
        self.files = {self._name(clip): marks[clip.path] for clip, _ in chosen}
        self.others = {self._name(clip): marks[clip.path] for clip in clips if (clip in held) != held_out}
        self.lengths = torch.tensor(lengths)
        self._first = self.lengths.cumsum(0) - self.lengths
        self._actions = torch.from_numpy(np.concatenate(rows))
        self._file.flush()
        self._frames = np.memmap(self._file, np.uint8, "r", shape=(len(self), size, size, 3))

    def _name(self, clip: ClipFile) -> str:
        path = clip.path.relative_to(self._source) if clip.path != self._source else clip.path.name
        return f"{path}#{clip.group}" if clip.group else str(path)

    def _held_out(self, clips: list[ClipFile], config: Config) -> set[ClipFile]:
        """Return a share of the clips, drawn by the seed from their names; one at least stays to train on."""
        seed, share = config.BasicSettings.Seed, config.VideoPrediction.HeldOutShare
        ranked = sorted(clips, key=lambda clip: derive_seed(seed, "held-out clips", self._name(clip)))
        return set(ranked[: min(max(round(share * len(clips)), share > 0), len(clips) - 1)])

    def _store(self, pieces: Iterable[np.ndarray], size: int) -> int:
        """Append resized frames to the temporary file; return how many."""
        length = 0
        for piece in pieces:
            if piece.shape[1:3] != (size, size):
                frames = (cv2.resize(each, (size, size), interpolation=cv2.INTER_AREA) for each in piece)
                piece = np.stack(list(frames))
            self._file.write(np.ascontiguousarray(piece))
            length += len(piece)
        return length

    def __len__(self) -> int:
        """Frames of all clips together."""
        return int(self.lengths.sum())

    @property
    def rows(self) -> int:
        """Frames of the longest clip."""
        return int(self.lengths.max())

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Batch:
        """Return uniformly drawn windows (B, L), none of which crosses the end of a clip."""
        total = int(self._starts(length).sum())
        return self._windows(torch.randint(total, (batch_size,), generator=generator), length)

    def spread(self, windows: int, length: int, batch_size: int) -> Iterator[Batch]:
        """Yield evenly spread windows (B, L), fewer than asked for where there are fewer."""
        total = int(self._starts(length).sum())
        spread = torch.linspace(0, total - 1, min(windows, total), dtype=torch.float64)
        for numbers in spread.long().split(batch_size):
            yield self._windows(numbers, length)

    def _starts(self, length: int) -> Tensor:
        """Number of the windows of each clip."""
        return (self.lengths - length + 1).clamp(min=0)

    def _windows(self, numbers: Tensor, length: int) -> Batch:
        """Return windows by their numbers, counted through all clips."""
        ends = self._starts(length).cumsum(0)
        clip = torch.searchsorted(ends, numbers, right=True)
        first = self._first[clip] + numbers - (ends - self._starts(length))[clip]
        rows = first.unsqueeze(1) + torch.arange(length)
        nothing = torch.zeros(rows.shape)  # clips tell of no rewards
        return Batch(torch.from_numpy(self._frames[rows.numpy()]), self._actions[rows], nothing, nothing)

    # What a run asks of its environment and of its replay memory.

    def reset(self) -> None:
        """Begin: there is nothing to do."""

    def export_rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Return no rows: the clips stay where they are."""
        return {}

    def state_dict(self) -> dict[str, dict[str, str]]:
        """Return the names of the clips, and what tells their files from others."""
        return {"clips": self.files}

    def load_state_dict(self, state: dict[str, dict[str, str]]) -> list[str]:
        """Check that these are the clips that the run began with; raise UserError if not."""
        if state["clips"] != self.files:
            raise UserError(
                f"{self._source}: its training clips are not those that the run began with "
                f"({len(state['clips'])} then, {len(self.files)} now)"
            )
        return []

    def close(self) -> None:
        """Remove the temporary file."""
        self._file.close()


def action_spec(clips: list[ClipFile], actions: list[np.ndarray | None]) -> ActionSpec:
    """Return what the actions of clips are: classes, points of [−1, 1]^n, or one constant class if none.

    Raises:
        UserError: they are of different kinds, or neither.
    """
    if all(action is None for action in actions):
        return ActionSpec("discrete", 1)
    specs = []
    for clip, action in zip(clips, actions, strict=True):
        if action is None:
            raise UserError(f"{clip.path}: has no actions, which other clips have")
        discrete = action.dtype.kind in "iu" and action.ndim == 1
        low, high = (action.min(), action.max()) if action.size else (0, 0)
        if discrete:
            fits = 0 <= low <= high < MOST_ACTIONS
        else:
            fits = action.dtype.kind == "f" and action.ndim == 2 and -1 <= low <= high <= 1
        if not fits:
            raise UserError(
                f"{clip.path}: its actions are {action.dtype} {action.shape} from {low} to {high}, expected "
                f"integers (T,) from 0 on, below {MOST_ACTIONS}, or floats (T, n) in [-1, 1]"
            )
        specs.append(("discrete", int(high) + 1) if discrete else ("continuous", action.shape[1]))
        if specs[-1][0] != specs[0][0] or (not discrete and specs[-1] != specs[0]):
            raise UserError(f"{clip.path}: its actions are {specs[-1]}, those of {clips[0].path} {specs[0]}")
    return ActionSpec(*max(specs))


def fitting(clip: ClipFile, action: np.ndarray | None, length: int, spec: ActionSpec) -> np.ndarray:
    """Return an action for each of `length` frames; what followed the last one may be missing."""
    if action is None:
        return np.zeros(length, spec.dtype)
    if len(action) not in (length, length - 1):
        raise UserError(f"{clip.path}: has {len(action)} actions of {length} frames")
    return np.concatenate([action, np.zeros((length - len(action), *spec.shape))]).astype(spec.dtype)
