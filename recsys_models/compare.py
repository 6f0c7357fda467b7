"""Hydra entry: runs the missing cells of a comparison, then writes its tables and its page.

Run ``python -m recsys_models.compare experiment=table4 data=synthetic seeds=[0] fast=true``;
``--cfg job`` shows what can be set.
"""

import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from recsys_models.comparison.archive import (
    is_archive,
    kept_from_others,
    read_archive,
    write_archive,
)
from recsys_models.comparison.cells import Cell, launcher, plan, run_missing
from recsys_models.comparison.frame import Frame
from recsys_models.comparison.page import write_report
from recsys_models.comparison.results import Results
from recsys_models.train import config_dir, heed_interrupts


def main() -> None:
    """Console entry: compose the comparison from the command line and run it."""
    heed_interrupts()
    path = str(Path(config_dir()) / "compare")
    hydra.main(version_base="1.3", config_path=path, config_name="compare")(_task)()


def run(cfg: DictConfig, own_configs: str | None = None, command: str = "") -> list[Cell]:
    """Run what is missing and write the report.

    With ``report_only`` nothing is run. If the folder then holds the collected runs of another
    one (``collect``), the report is made from these, whatever else the configuration says. With
    ``add_to`` finished runs join those collected in another folder.

    Args:
        cfg: the composed configuration.
        own_configs: a folder of the user's own configurations.
        command: the command line, for the report.

    Returns:
        The cells that failed.
    """
    folder, failed = output_folder(cfg), []
    if cfg.add_to is not None and not is_archive(Path(cfg.add_to)):
        raise ValueError(
            f"add_to={cfg.add_to} holds no collected runs; make it with collect={cfg.add_to}."
        )
    with TemporaryDirectory() as scratch:
        if cfg.report_only and is_archive(folder):
            frame, cells = read_archive(folder, Path(scratch))
        else:
            cells = cells_of(cfg, folder)
            frame = frame_of(cfg, command)
        if not cfg.report_only:
            launch = launcher(own_configs)
            failed = run_missing(cells, launch, cfg.n_jobs, _say, frame.metrics)
        results = Results(cells, frame.metrics, frame.baseline)
        if cfg.report_only and not results.of:
            raise ValueError(
                f"report_only=true makes a report of runs that have ended; {folder} has none of "
                f"this comparison, such as {cells[0].folder}. Give the output_dir and the "
                "selection that they were run with."
            )
        if frame.baseline not in results.tuners:
            _say(f"no tests: the baseline {frame.baseline} is none of {', '.join(results.tuners)}")
        _report(folder, frame, results)
        if cfg.collect is not None:
            _collect(Path(cfg.collect), frame, results)
        if cfg.add_to is not None:
            add_runs(list(results.of), Path(cfg.add_to), Path(scratch) / "kept")
    for cell in failed:
        print(f"failed: {cell.name} (see {cell.folder / 'log.txt'})", file=sys.stderr)
    return failed


def add_runs(finished: list[Cell], folder: Path, scratch: Path) -> None:
    """Let runs join collected ones, in place of earlier runs of the same cells.

    Args:
        finished: cells with a result.
        folder: of the collected runs.
        scratch: an empty folder.
    """
    with kept_from_others(folder):
        frame, kept = read_archive(folder, scratch)
        cells = {cell.name: cell for cell in [*kept, *finished]}
        _collect(folder, frame, Results(list(cells.values()), frame.metrics, frame.baseline))


def _collect(folder: Path, frame: Frame, results: Results) -> None:
    """Keeps runs in small files, with their report."""
    _report(folder, frame, results)
    write_archive(folder, frame, results)


def _report(folder: Path, frame: Frame, results: Results) -> None:
    write_report(folder, frame, results)
    _say(f"report: {folder / 'report.html'}")


def frame_of(cfg: DictConfig, command: str) -> Frame:
    """What the report says beside the runs."""
    printed = OmegaConf.to_container(cfg.printed) if cfg.printed is not None else {}
    return Frame(
        title=cfg.title,
        metrics=list(cfg.metrics),
        baseline=cfg.baseline,
        withdrawn=_withdrawn(cfg),
        time_only=cfg.time_only,
        printed=cast(dict[str, Any], printed),
        command=command,
    )


def output_folder(cfg: DictConfig) -> Path:
    """Where the comparison keeps its cells and its report."""
    if cfg.output_dir is not None:
        return Path(str(cfg.output_dir))
    return Path("comparisons", cfg.name + ("_fast" if cfg.fast else ""))


def cells_of(cfg: DictConfig, folder: Path) -> list[Cell]:
    """All cells of a comparison but those of withdrawn data sets."""
    if cfg.n_jobs < 1:
        raise ValueError(f"n_jobs must be at least 1; got {cfg.n_jobs}. One per core is usual.")
    for name in ("datasets", "models", "tuners", "seeds", "metrics"):
        if not isinstance(cfg[name], ListConfig):
            raise ValueError(f"{name} must be a list, such as [{cfg[name]}]; got {cfg[name]!r}.")
    gone = _withdrawn(cfg)
    shared = [*cfg.overrides, *(cfg.fast_overrides if cfg.fast else []), *cfg.extra]
    overrides = {
        name: [
            *shared,
            *cfg.data_overrides.get(name, []),
            *(cfg.fast_data_overrides.get(name, []) if cfg.fast else []),
        ]
        for name in _datasets(cfg)
    }
    rows = {str(name): list(parts) for name, parts in cfg.rows.items()}
    cells = plan(
        folder,
        [name for name in _datasets(cfg) if name not in gone],
        list(cfg.models),
        list(cfg.tuners),
        list(cfg.seeds),
        rows,
        overrides,
    )
    if not cells:
        raise ValueError(
            "a comparison needs data sets, models, tuners and seeds; got "
            f"datasets={_datasets(cfg)}, models={list(cfg.models)}, tuners={list(cfg.tuners)}, "
            f"seeds={list(cfg.seeds)}, of which {gone} cannot be had. Name at least one of each."
        )
    return cells


def _datasets(cfg: DictConfig) -> list[str]:
    return list(cfg.datasets) if cfg.data is None else [cfg.data]


def _withdrawn(cfg: DictConfig) -> list[str]:
    return [name for name in _datasets(cfg) if name in cfg.withdrawn]


def _task(cfg: DictConfig) -> None:
    own = [
        source.path
        for source in HydraConfig.get().runtime.config_sources
        if source.provider == "command-line"
    ]
    try:
        failed = run(cfg, own[0] if own else None, _command())
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; the same command again runs what is missing", file=sys.stderr)
        sys.exit(130)
    if failed:
        sys.exit(1)


def _command() -> str:
    """The command line, without what decides only where, how fast or whether anything is run."""
    how = ("report_only=", "collect=", "add_to=", "output_dir=", "n_jobs=")
    chosen = [text for text in HydraConfig.get().overrides.task if not text.startswith(how)]
    return shlex.join(["recsys-compare", *chosen])


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
