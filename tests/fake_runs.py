"""Run folders as training and evaluation leave them, made without training anything."""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

import report
from configuration.loading import config_to_yaml
from configuration.schema import Config
from reporting import statistics as report_statistics
from run_files.directory import RunDirectory
from run_files.manifest import enter

FULL_RUN = 102_000
RESULTS = Path(__file__).resolve().parents[1] / "results"


@dataclass
class FakeRun:
    """What a fake run looks like; `write_run` makes its files."""

    game: str = "Boxing"
    label: str = "STORM"
    seed: int = 0
    score: float = 80.0  # mean return of its last evaluation
    steps: int = FULL_RUN  # SampleMaxSteps
    reached: int | None = None  # step it stopped at, None: it finished
    evaluated: Sequence[int] = (50_000, 100_000)
    episodes: int = 4
    env_name: str | None = None
    quirks: bool = False
    how: str = "fair,0"  # protocol and greedy of its evaluations

    @property
    def name(self) -> str:
        return f"{self.game}-{self.label}-seed_{self.seed}"

    @property
    def last_step(self) -> int:
        return self.steps if self.reached is None else self.reached


def write_run(root: Path, run: FakeRun) -> str:
    """Write the files of `run` under `root`/outputs; its name."""
    folder = root / "outputs" / run.name
    folder.mkdir(parents=True)
    config = Config()
    config.BasicSettings.n, config.BasicSettings.Seed = run.name, run.seed
    config.BasicSettings.env_name = run.env_name or f"ALE/{run.game}-v5"
    config.BasicSettings.config_path = f"config_files/{run.label}.yaml"
    config.BasicSettings.ReleaseQuirks = run.quirks
    config.JointTrainAgent.SampleMaxSteps = run.steps
    config.JointTrainAgent.ModelType = "GITSTORM" if run.label.startswith("GIT") else "STORM"
    (folder / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    (folder / "run.json").write_text(json.dumps(_status(run)))
    (folder / "metrics.jsonl").write_text(_metrics(run, config.JointTrainAgent.LogEverySteps))
    enter(folder, RunDirectory(run.name, root).trained)
    write_evaluations(root, run)
    return run.name


def _status(run: FakeRun) -> dict:
    return {
        "status": "finished" if run.reached is None else "stopped",
        "started": "2025-01-02T03:04:05+00:00",
        "finished_step": run.last_step,
        "sample_max_steps": run.steps,
        "elapsed_s": run.last_step / 20,
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "device": "cpu",
        "hardware": "a fake processor",
        "versions": {"torch": "2.6.0"},
    }


def _metrics(run: FakeRun, every: int) -> str:
    lines = []
    for step in range(every, run.last_step + 1, every):
        lines.append({"step": step, "WorldModel/total_loss": 1 / step, "time/elapsed_s": step / 20})
        if step % (every * 10) == 0:
            reward = run.score * step / run.last_step
            lines.append({"step": step, f"sample/ALE/{run.game}-v5_reward": reward})
    return "".join(json.dumps(line) + "\n" for line in lines)


def write_evaluations(root: Path, run: FakeRun) -> None:
    """Write both evaluation CSVs; the score grows linearly with the evaluated step."""
    folder = root / "outputs" / "eval_result"
    folder.mkdir(parents=True, exist_ok=True)
    how = "episodes,seed,protocol,greedy,num_envs,settings"
    rows = [f"step,episode_avg_return,episode_std_return,human_normalised_score,{how}"]
    single = [f"step,episode,return,length,{how}"]
    for step in run.evaluated:
        mean = run.score * step / run.evaluated[-1]
        returns = [mean + (-1) ** number * 2 for number in range(run.episodes)]
        scores = f"{statistics.fmean(returns)},{statistics.stdev(returns)},"
        how = f"{run.episodes},0,{run.how},1,"
        rows.append(f"{step},{scores},{how}")
        single += [f"{step},{number},{value},100,{how}" for number, value in enumerate(returns)]
    if run.evaluated:
        (folder / f"{run.name}.csv").write_text("\n".join(rows) + "\n")
        (folder / f"{run.name}_episodes.csv").write_text("\n".join(single) + "\n")
    directory = RunDirectory(run.name, root)
    enter(directory.outputs, directory.evaluated)


def gif(shade: int) -> bytes:
    """A small animated GIF of four frames, the first of grey level `shade`."""
    frames = [Image.new("RGB", (48, 24), (shade, shade, 40 * index)) for index in range(4)]
    content = io.BytesIO()
    frames[0].save(content, format="GIF", save_all=True, append_images=frames[1:], duration=200, loop=0)
    return content.getvalue()


def make_report(root: Path, *arguments: str, draw: bool = False) -> Path:
    """Report on the runs under `root`, with quick intervals and figures only to `draw`; its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_statistics, "RESAMPLES", 100)
        if not draw:
            patch.setattr(Figure, "savefig", lambda figure, path, **options: Path(path).touch())
        report.main(["--outputs", str(root / "outputs"), *arguments])
    return root / "outputs" / "report"
