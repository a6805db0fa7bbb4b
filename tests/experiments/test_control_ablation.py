"""experiments/control_ablation.py: its sides differ in what their names say alone."""

from __future__ import annotations

from configuration.loading import differences, load_config
from experiments import control_ablation, grid


def test_five_sides_of_two_tasks_and_seeds_differ_in_one_thing_each() -> None:
    suite = control_ablation.SUITE
    runs = grid.cells(suite, grid.grid_parser(suite, "").parse_args([]))
    assert len(set(runs)) == 5 * 2 * 2 and not any("/" in run.name for run in runs)
    changed = {}
    for run in runs:
        path = f"BasicSettings.config_path={run.model}"
        plain = load_config([path, control_ablation.SHORT])
        config = load_config([path, *suite.variants(run.model)[run.variant]])
        changed[run.label] = {key: value for key, _, value in differences(plain, config)}
    assert changed == {
        "STORM-control": {},
        "STORM-control concat_attention": {"Models.WorldModel.StateMixer": "concat_attention"},
        "STORM-control latent_attention": {"Models.WorldModel.StateMixer": "latent_attention"},
        "GITSTORM-control": {},
        "GITSTORM-control joint": {"Models.MaskGit.T_draft": 4, "Models.MaskGit.T_revise": 4},
    }


def test_each_side_is_told_seed_by_seed() -> None:
    runs = [
        {"model": "a", "final_training_return": 1.0, "evaluation_returns": [1, 2], "training_cpu_minutes": 3},
        {"model": "b", "final_training_return": 2.0, "evaluation_returns": [4, 4], "training_cpu_minutes": 5},
        {"model": "a", "final_training_return": 3.0, "evaluation_returns": [5, 6], "training_cpu_minutes": 4},
    ]
    assert control_ablation.compare("task", runs)["sides"] == {
        "a": {"training": [1.0, 3.0], "evaluated": [1.5, 5.5], "cpu_minutes": [3, 4]},
        "b": {"training": [2.0], "evaluated": [4.0], "cpu_minutes": [5]},
    }
