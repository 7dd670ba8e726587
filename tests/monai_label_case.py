"""For the tests with a real MONAI Label: released bundles in its app, a small datastore, a server on the loopback."""

from __future__ import annotations

import email
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.spatial.transform import Rotation
from sharing.archive import package
from sharing.tiny import tiny, write_subject

ROOT = Path(__file__).resolve().parent.parent
PYTHON = Path(os.environ.get("MONAI_LABEL_PYTHON", ROOT / ".venv-monailabel" / "bin" / "python"))
TINY = "_tiny"
SUBJECTS = 4
WEIGHTS = """
import sys, torch
from monai.bundle import ConfigParser
for root in sys.argv[1:]:
    sys.path.insert(0, root)
    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        del sys.modules[name]
    parser = ConfigParser()
    parser.read_config(f"{root}/configs/inference.json")
    torch.save(parser.get_parsed_content("network_def").state_dict(), f"{root}/models/model.pt")
"""


def environment() -> dict[str, str]:
    """Variables for MONAI Label: none that could lead Python to this repository."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return kept | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "MONAI_NO_PROGRESS": "1"}


def make_app(folder: Path, bundles: Sequence[Path]) -> Path:
    """Return MONAI Label's app ``monaibundle`` with each bundle twice: as released, and made tiny for training."""
    command = [PYTHON, "-m", "monailabel.main", "apps", "--download", "--name", "monaibundle", "--output", folder]
    subprocess.run(list(map(str, command)), env=environment(), check=True, capture_output=True, timeout=600)
    app = folder / "monaibundle"
    made = []
    for bundle in bundles:
        shutil.unpack_archive(package(bundle, folder / "dist"), app / "model")
        made.append(_make_tiny(app / "model" / bundle.name, app / "model" / f"{bundle.name}{TINY}"))
    subprocess.run([sys.executable, "-c", WEIGHTS, *map(str, made)], env=environment(), check=True, timeout=600)
    return app


def _make_tiny(release: Path, target: Path) -> Path:
    shutil.copytree(release, target)
    for name in ("inference", "train"):
        file = target / "configs" / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | tiny(release, name)))
    return target


def write_studies(folder: Path, ndim: int) -> Path:
    """Write a datastore: images s0_t1 ... that lie differently in the world, each with a final label."""
    finals = folder / "labels" / "final"
    finals.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for index in range(SUBJECTS):
        files = write_subject(folder, f"s{index}", ndim, generator)
        for key, target in (("image", Path(files["image"])), ("label", finals / Path(files["image"]).name)):
            image = nib.load(files[key])
            values = np.asarray(image.dataobj)
            Path(files[key]).unlink()
            nib.save(nib.Nifti1Image(values, _lie(index, ndim) @ image.affine), target)
    return folder


def _lie(index: int, ndim: int) -> np.ndarray:
    """The first image lies straight, the others turned by some degrees and elsewhere."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (0, 0, 5 * index), degrees=True).as_matrix()
    affine[: min(ndim, 3), 3] = 4.0 * index
    return affine


@dataclass
class Server:
    """A running server.

    Attributes:
        url: its address.
        app: folder of its app.
        studies: folder of its datastore.
        log: file that it prints to.
    """

    url: str
    app: Path
    studies: Path
    log: Path

    def get(self, path: str) -> Any:
        """Return the JSON at a path."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=600) as answer:
            return json.load(answer)

    def infer(self, model: str, image: str, **params: Any) -> tuple[int, dict[str, Any], bytes]:
        """Return status, JSON and file that a client gets for an image and its parameters."""
        query = urllib.parse.urlencode({"image": image})
        form = urllib.parse.urlencode({"params": json.dumps({"device": "cpu", **params})}).encode()
        try:
            with urllib.request.urlopen(f"{self.url}/infer/{model}?{query}", form, timeout=1800) as answer:
                kind, body, status = answer.headers["Content-Type"], answer.read(), answer.status
        except urllib.error.HTTPError as error:
            return error.code, json.load(error), b""
        parts = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + body).get_payload()
        told, file = (part.get_payload(decode=True) for part in parts)
        return status, json.loads(told), file

    def train(self, model: str, timeout: float = 1800, **params: Any) -> dict[str, Any]:
        """Start a training as 3D Slicer does and return its task when it has ended."""
        body = json.dumps({"device": "cpu", **params}).encode()
        headers = {"Content-Type": "application/json"}
        start = urllib.request.Request(f"{self.url}/train/{model}?enqueue=true", body, headers)
        with urllib.request.urlopen(start, timeout=60) as answer:
            began = json.load(answer)["id"]
        limit = time.monotonic() + timeout
        while time.monotonic() < limit:
            (task,) = [task for task in self.get("/train/?all=true") if task["id"] == began]
            if task["status"] in ("DONE", "ERROR"):
                return task
            time.sleep(2)
        raise TimeoutError(f"{model} still trains after {timeout} s; see {self.log}")


@contextmanager
def running(app: Path, studies: Path, models: Sequence[str], log: Path, timeout: float = 1200) -> Iterator[Server]:
    """Start a server on a free port of the loopback, wait until it answers, and stop it at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    conf = {"models": ",".join(models), "zoo_source": "ngc", "sam2": "false"}
    command = [PYTHON, "-m", "monailabel.main", "start_server", "--app", app, "--studies", studies]
    command += ["--host", "127.0.0.1", "--port", port]
    command += [word for key, value in conf.items() for word in ("--conf", key, value)]
    server = Server(f"http://127.0.0.1:{port}", app, studies, log)
    with log.open("w") as stream:
        process = subprocess.Popen(
            list(map(str, command)), cwd=log.parent, env=environment(), stdout=stream, stderr=subprocess.STDOUT
        )
        try:
            _wait(process, server, timeout)
            yield server
        finally:
            process.terminate()
            process.wait(60)


def _wait(process: subprocess.Popen, server: Server, timeout: float) -> None:
    limit = time.monotonic() + timeout
    while time.monotonic() < limit and process.poll() is None:
        try:
            server.get("/info/")
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(1)
    raise RuntimeError(f"the server does not answer:\n{server.log.read_text()[-3000:]}")
