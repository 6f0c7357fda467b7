"""The wheel, installed alone, finds its configuration from any folder."""

import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("pyproject.toml", "README.md", "LICENSE", "conf", "deopt_lightning", "recsys_models")


def call(*command, cwd):
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build from a copy: setuptools leaves build/ beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for part in PARTS:
        path = ROOT / part
        if path.is_dir():
            shutil.copytree(path, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.is_file():
            shutil.copy(path, source / part)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    build = ("wheel", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", folder)
    call(*pip, *build, source, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed_python(wheel, tmp_path_factory):
    """An empty environment with the wheel; dependencies are borrowed from the running one.

    A .pth line adds the folder but not that folder's own .pth files, so an editable install of
    this project there stays invisible.
    """
    folder = tmp_path_factory.mktemp("environment")
    call(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    site = call(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
    ).strip()
    call(*pip, "install", "--no-deps", "--no-index", "--target", site, wheel, cwd=folder)
    (Path(site) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_wheel_holds_the_configuration_inside_the_package_only(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {name.removeprefix("recsys_models/conf/") for name in names if "conf/" in name}
    assert shipped == {
        path.relative_to(ROOT / "conf").as_posix() for path in (ROOT / "conf").rglob("*.yaml")
    }
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if ".dist-info" not in top} == {"deopt_lightning", "recsys_models"}
    assert {"deopt_lightning/py.typed", "recsys_models/py.typed"} <= set(names)


def test_wheel_holds_all_sources(wheel):
    sources = {
        file.relative_to(ROOT).as_posix()
        for package in ("deopt_lightning", "recsys_models")
        for kind in ("py", "c", "h")
        for file in (ROOT / package).rglob(f"*.{kind}")
    }
    assert {"recsys_models/native/library.py", "recsys_models/native/rows.c"} <= sources
    assert sources <= set(zipfile.ZipFile(wheel).namelist())


def test_wheel_composes_from_a_foreign_folder(installed_python, tmp_path):
    arguments = ("tuner=deopt", "seed=5", "--cfg", "all")
    shown = call(installed_python, "-m", "recsys_models.train", *arguments, cwd=tmp_path)
    assert "_target_: deopt_lightning.DEOptCallback" in shown
    assert "seed: 5" in shown
    (folder,) = {Path(p) for p in re.findall(r"path: (.*recsys_models.conf)\n", shown)}
    assert folder.is_relative_to(installed_python.parents[1])


@pytest.mark.parametrize("model", ["bpr_mf", "neumf", "ngcf"])
def test_wheel_trains_and_recommends_from_a_foreign_folder(model, installed_python, tmp_path):
    (tmp_path / "pairs.csv").write_text(
        "user,item\n" + "".join(f"{n % 30},{n * n % 17}\n" for n in range(300))
    )
    data = ("data=table", "data.path=pairs.csv", "data.rating_column=null")
    options = ("trainer.max_epochs=2", "logger=none", "tuner=deopt", "hydra.run.dir=out")
    call(
        installed_python,
        "-m",
        "recsys_models.train",
        f"model={model}",
        *data,
        *options,
        cwd=tmp_path,
    )
    assert (tmp_path / "out" / "result.json").is_file()
    best = "out/checkpoints/best.ckpt"
    shown = call(installed_python, "-m", "recsys_models.recommend", best, "--k", 3, cwd=tmp_path)
    assert shown
