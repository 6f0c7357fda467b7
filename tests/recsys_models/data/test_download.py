import dataclasses
import http.server
import threading
import zipfile
from pathlib import Path

import pytest

from recsys_models.data import RecsysDataModule
from recsys_models.data.download import SOURCES, download_ratings, ratings_path


@pytest.fixture
def archive(tmp_path) -> Path:
    path = tmp_path / "served" / "ml-1m.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as content:
        content.writestr("ml-1m/README", "read me")
        content.writestr("ml-1m/ratings.dat", "1::10::5::97\n2::10::3::98\n2::20::4::99\n")
    return path


@pytest.fixture
def publish(monkeypatch):
    def publish(address: str) -> None:
        monkeypatch.setitem(
            SOURCES, "ml_1m", dataclasses.replace(SOURCES["ml_1m"], archive=address)
        )

    return publish


def test_files_are_looked_up_in_the_argument_then_the_environment_then_the_cache(
    tmp_path, monkeypatch
):
    monkeypatch.delenv("RECSYS_DATA", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    home = tmp_path / "home" / ".cache" / "recsys_models"
    assert ratings_path("filmtrust") == home / "filmtrust" / "ratings.txt"
    assert ratings_path("ml_1m") == home / "ml-1m" / "ratings.dat"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert ratings_path("ml_1m") == tmp_path / "cache/recsys_models/ml-1m/ratings.dat"
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path / "data"))
    assert ratings_path("ml_1m") == tmp_path / "data/ml-1m/ratings.dat"
    assert ratings_path("ml_1m", tmp_path) == tmp_path / "ml-1m/ratings.dat"
    assert ratings_path("ml_1m", "~/x") == tmp_path / "home/x/ml-1m/ratings.dat"


def test_the_data_module_downloads_over_http_and_reads_the_file(archive, publish, tmp_path):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(archive.parent))

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        publish(f"http://127.0.0.1:{server.server_port}/ml-1m.zip")
        data = RecsysDataModule("ml_1m", data_dir=str(tmp_path / "data"), download=True)
        data.prepare_data()
        server.shutdown()
        thread.join()
    assert [path.name for path in (tmp_path / "data/ml-1m").iterdir()] == ["ratings.dat"]
    data.setup()
    assert (data.num_users, data.num_items, data.item_ids.tolist()) == (2, 2, [10, 20])


def test_a_file_already_there_is_kept(publish, tmp_path):
    publish((tmp_path / "nowhere.zip").as_uri())
    target = tmp_path / "ratings.dat"
    target.write_text("mine")
    download_ratings("ml_1m", target)
    assert target.read_text() == "mine"


@pytest.mark.parametrize("defect", ["absent", "not a zip", "cut short", "without ratings"])
def test_a_failed_download_leaves_no_file_and_says_what_to_put_where(
    archive, publish, tmp_path, defect
):
    if defect == "absent":
        archive.unlink()
    elif defect == "not a zip":
        archive.write_bytes(b"<html>moved</html>")
    elif defect == "cut short":
        archive.write_bytes(archive.read_bytes()[:100])
    else:
        with zipfile.ZipFile(archive, "w") as content:
            content.writestr("ml-1m/README", "read me")
    publish(archive.as_uri())
    target = tmp_path / "data" / "ml-1m" / "ratings.dat"
    with pytest.raises(OSError, match="could not download ml_1m") as error:
        download_ratings("ml_1m", target)
    for hint in (archive.as_uri(), "grouplens.org", f"ratings.dat at {target}", "data.path=FILE"):
        assert hint in str(error.value)
    assert list(target.parent.iterdir()) == []


def test_nothing_is_downloaded_unless_asked_for(publish, tmp_path):
    publish((tmp_path / "nowhere.zip").as_uri())
    data = RecsysDataModule("ml_1m", data_dir=str(tmp_path))
    data.prepare_data()
    with pytest.raises(FileNotFoundError, match="data.download=true"):
        data.setup()


def test_what_nobody_distributes_is_asked_for_by_path(tmp_path):
    data = RecsysDataModule("eachmovie", data_dir=str(tmp_path), download=True)
    with pytest.raises(ValueError, match=r"no longer distributed.*Vote\.txt.*data\.path=FILE"):
        data.prepare_data()
