"""The imagination videos of runs: the newest of each, as bytes an HTML page can hold."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path

from reporting.runs import Run

VIDEO_TAG = "Imagine/predict_video"
MEDIA_TYPES = {b"GIF8": "image/gif", b"\x89PNG": "image/png", b"RIFF": "image/webp"}  # by first bytes
LARGEST_VIDEO = 8_000_000  # bytes; a larger one would make the page unwieldy


@dataclass(frozen=True)
class Video:
    run: Run
    step: int
    content: bytes

    @property
    def address(self) -> str:
        """The video as a data: address."""
        return f"data:{media_type(self.content)};base64,{base64.b64encode(self.content).decode()}"


def media_type(content: bytes) -> str | None:
    """The media type of an encoded image, None if it is none of MEDIA_TYPES."""
    return MEDIA_TYPES.get(content[:4])


def newest_video(run: Run) -> Video | None:
    """The last video a run left, in its videos/ folder or its TensorBoard events; None if it left none."""
    video = _from_folder(run) or _from_events(run)
    usable = video is not None and media_type(video.content) and len(video.content) <= LARGEST_VIDEO
    return video if usable else None


def _from_folder(run: Run) -> Video | None:
    files = [path for path in (run.folder / "videos").glob("*") if path.suffix in (".gif", ".png", ".webp")]
    newest = max(files, key=lambda path: (_step_of(path), path.name), default=None)
    return Video(run, _step_of(newest), newest.read_bytes()) if newest else None


def _step_of(path: Path) -> int:
    numbers = re.findall(r"\d+", path.stem)
    return int(numbers[-1]) if numbers else 0


def _from_events(run: Run) -> Video | None:
    if run.events is None or not any(run.events.glob("*tfevents*")):
        return None
    from tensorboard.backend.event_processing import event_accumulator

    keep_only_newest_image = {event_accumulator.IMAGES: 1, event_accumulator.SCALARS: 1}
    events = event_accumulator.EventAccumulator(str(run.events), size_guidance=keep_only_newest_image)
    events.Reload()
    if VIDEO_TAG not in events.Tags()["images"]:
        return None
    newest = events.Images(VIDEO_TAG)[-1]
    return Video(run, newest.step, newest.encoded_image_string)
