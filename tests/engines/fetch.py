"""Puts the engines under .local/engines: `make engines`, or `python tests/engines/fetch.py`.

Everything comes from a package registry through its ordinary client, and is held against a digest when it comes: Prism
by Go (whose checksum database has its own), Flink's and Spark's jars and what the SDK needs for Dataflow by pip (pinned
in requirements.txt and dataflow.txt), the runners of Beam by Maven (pinned here). Each name holds its versions, or
the digest of its pins, so that others are fetched beside it. What is there under its name is kept, unexamined.

Beam's ready-made job servers of the SDK's own version could not be had from Maven when this was written: so
the jars are made of the newest runner whose parts all could. It is older than the SDK; see docs/runners.md.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

__all__ = ["DATAFLOW", "ENGINES", "FLINK", "PRISM", "SPARK", "BrokenDownload", "find_tool", "main"]

HERE = Path(__file__).parent
ENGINES = Path(os.environ.get("BEAM_ENTRA_CACHE", HERE.parents[1] / ".local")) / "engines"
_PRISM = "2.77.0"
_BEAM = "2.62.0"  # of the runners that the job servers are made of
_DATAFLOW_PINS = HERE / "dataflow.txt"


class BrokenDownload(RuntimeError):
    """What a registry gave is not what is pinned here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A cluster that runs on Java.

    Attributes:
        name: Its folder's name.
        distribution: The sdist on PyPI that holds the jars below `deps/`: a pattern of its name.
        runner: Beam's artifact in Maven's registry.
        driver: The job server's main class.
        digest: SHA-256 over the names and the SHA-256 of the runner's jars and those it needs.
    """

    name: str
    distribution: str
    runner: str
    driver: str
    digest: str

    @property
    def home(self) -> Path:
        """The cluster's distribution: FLINK_HOME, SPARK_HOME."""
        return ENGINES / self.name

    @property
    def job_server(self) -> Path:
        """The job server's jar."""
        return ENGINES / f"{self.name}-job-server-{_BEAM}.jar"


PRISM = ENGINES / f"prism-{_PRISM}"
DATAFLOW = ENGINES / f"dataflow-{hashlib.sha256(_DATAFLOW_PINS.read_bytes()).hexdigest()[:8]}"  # a folder for sys.path
FLINK = Engine(
    name="flink-1.19.3",
    distribution="apache[-_]flink[-_]libraries-1.19.3.tar.gz",
    runner="beam-runners-flink-1.19",
    driver="org.apache.beam.runners.flink.FlinkJobServerDriver",
    digest="d683240a3a15aea8c691ca62f02567eb467471f5881125b7ffc4caa84ecb70d2",
)
SPARK = Engine(
    name="spark-3.5.9",
    distribution="pyspark-3.5.9.tar.gz",
    runner="beam-runners-spark-3",
    driver="org.apache.beam.runners.spark.SparkJobServerDriver",
    digest="d2497d201dcf18b2c574a57bec4905c07a372f64749ee121f42c0d5c337f5436",
)


def main() -> int:
    """Fetch what is missing, all at once; what no tool is there for is left out, and the exit code says so."""
    ENGINES.mkdir(parents=True, exist_ok=True)
    to_make: list[tuple[Path, Callable[[Path], None], tuple[str, ...]]] = [
        (PRISM, _install_prism, ("go",)),
        (DATAFLOW, _install_dataflow, ()),
    ]
    for engine in (FLINK, SPARK):
        to_make.append((engine.job_server, partial(_make_job_server, engine), ("mvn", "java")))
        to_make.append((engine.home, partial(_unpack, engine), ()))
    left_out = False
    with ThreadPoolExecutor(len(to_make)) as threads:
        making = []
        for target, make, tools in to_make:
            lacking = [tool for tool in tools if find_tool(tool) is None]
            if lacking and not target.exists():
                print(f"{target.name} is left out: there is no {' and no '.join(lacking)} on the PATH", file=sys.stderr)
                left_out = True
            else:
                making.append(threads.submit(_once, target, make))
        for made in making:
            made.result()
    return 1 if left_out else 0


def find_tool(name: str) -> str | None:
    """Where `go`, `java` or `mvn` is; also a Go that is not on the PATH."""
    usual = "/usr/local/go/bin/go"
    return shutil.which(name) or (usual if name == "go" and Path(usual).exists() else None)


def _once(target: Path, make: Callable[[Path], None]) -> None:
    """Make it beside its place, then put it there, so that what is there is whole."""
    if target.exists():
        return
    print(f"{target.name} ...", flush=True)
    with tempfile.TemporaryDirectory(dir=ENGINES, prefix="making-") as folder:
        made = Path(folder) / target.name
        make(made)
        made.rename(target)


def _install_prism(to: Path) -> None:
    go = find_tool("go")
    assert go is not None
    # its toolchain and sums are pinned by the module itself; what it keeps for building goes with the folder
    settings = {**os.environ, "GOBIN": str(to.parent), "GOFLAGS": "-modcacherw", "GOPATH": str(to.parent / "go")}
    settings["GOCACHE"] = str(to.parent / "go-build")
    subprocess.run([go, "install", f"github.com/apache/beam/sdks/v2/go/cmd/prism@v{_PRISM}"], env=settings, check=True)
    (to.parent / "prism").rename(to)


def _install_dataflow(to: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    subprocess.run([*pip, f"--requirement={_DATAFLOW_PINS}", f"--target={to}"], check=True)


def _unpack(engine: Engine, to: Path) -> None:
    with tempfile.TemporaryDirectory(dir=to.parent) as folder:
        wanted = [line for line in (HERE / "requirements.txt").read_text("utf-8").splitlines() if line[:1] != "#"]
        name = engine.distribution.partition("-")[0].partition("[")[0]
        pins = Path(folder) / "requirements.txt"
        pins.write_text("\n".join(line for line in wanted if line.startswith(name)), "utf-8")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        subprocess.run([*pip, f"--requirement={pins}", f"--dest={folder}"], check=True)
        (sdist,) = Path(folder).glob(engine.distribution)
        with tarfile.open(sdist) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python has it from 3.11.4 on
            archive.extractall(folder)  # noqa: S202 - its digest is pinned
        (deps,) = Path(folder).glob("*/deps")
        deps.rename(to)


def _make_job_server(engine: Engine, to: Path) -> None:
    out = to.parent / "out"
    settings = {"runner": engine.runner, "driver": engine.driver, "beam": _BEAM, "out": str(out)}
    settings["maven.repo.local"] = str(to.parent / "m2")
    maven = ["mvn", "--batch-mode", "--quiet", f"--file={HERE / 'job_servers' / 'pom.xml'}"]
    subprocess.run([*maven, *(f"-D{name}={value}" for name, value in settings.items()), "package"], check=True)
    found = _digest(out / "jars")
    if found != engine.digest:
        raise BrokenDownload(f"the jars of {engine.runner} {_BEAM} have the digest {found}, not {engine.digest}")
    (out / "job-server.jar").rename(to)


def _digest(folder: Path) -> str:
    """SHA-256 over the names and digests of a folder's files, in the names' order."""
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(folder.iterdir())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
