"""Pictures from paths, URLs and PIL."""

from __future__ import annotations

import http.server
import io
import socket
import threading
import time

import numpy as np
import pytest
from PIL import Image

from safelight import InputError, RepositoryError
from safelight.utils import load_image

PHOTO = Image.new("RGB", (6, 4), "red")
PHOTO.paste("blue", (3, 0, 6, 4))


def encoded(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def server():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answers = {"/photo.png": encoded(PHOTO), "/page": b"<html>", "/cut.png": encoded(PHOTO)}
            if self.path == "/slow":
                time.sleep(0.6)
            body = answers.get(self.path)
            self.send_response(200 if body and self.headers["User-Agent"].startswith("safelight/") else 404)
            # A length that is not kept is how a broken connection looks.
            self.send_header("Content-Length", str(len(body or b"") + (100 if self.path == "/cut.png" else 0)))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_path_url_and_pil_are_the_same_picture(tmp_path, server):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(PHOTO))
    for source in (path, str(path), PHOTO, f"{server}/photo.png"):
        assert np.array_equal(np.asarray(load_image(source)), np.asarray(PHOTO))


def test_orientation_and_mode(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    grey = PHOTO.convert("L")
    (tmp_path / "turned.png").write_bytes(encoded(grey, exif=exif))
    loaded = load_image(tmp_path / "turned.png")
    assert loaded.mode == "RGB"
    assert np.array_equal(np.asarray(loaded), np.asarray(grey.rotate(-90, expand=True).convert("RGB")))
    assert load_image(tmp_path / "turned.png", lambda image: image).mode == "L"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("/missing.png", "answers 404"),
        ("/page", "not a picture"),
        ("/slow", "cannot be fetched|timed out"),
        ("/cut.png", "cannot be fetched"),
    ],
)
def test_urls_that_give_no_picture(server, address, message):
    with pytest.raises(RepositoryError, match=message) as caught:
        load_image(server + address, timeout=0.2)
    assert server + address in str(caught.value)


def test_nobody_listens():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/photo.png"
        with pytest.raises(RepositoryError, match="cannot be fetched") as caught:
            load_image(url, timeout=2)
    assert url in str(caught.value)


def test_files_that_are_no_picture(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    (tmp_path / "cut.png").write_bytes(encoded(Image.fromarray(noise))[:5000])
    for name, message in (("none.png", "no file"), ("text.png", "not a picture"), ("cut.png", "cannot be read")):
        with pytest.raises(RepositoryError, match=message) as caught:
            load_image(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(InputError, match="int"):
        load_image(3)
