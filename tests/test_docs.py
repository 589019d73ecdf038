"""The Python of the README and the docs is run, and the README's commands are."""

from __future__ import annotations

import gzip
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apache_beam as beam
import fastavro
import jwt
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import FixedWindows
from pyarrow import parquet

import beam_entra
from beam_entra import EntraOptions, Scoped, ScopedPipeline
from beam_entra.access import AccessManifest, Endpoints
from beam_entra.identity import check_credential
from beam_entra.io.blocks import Block
from beam_entra.testing.certificates import RunCertificates
from beam_entra.testing.https import Answer, HttpsServer, Request, ServiceHandler
from beam_entra.testing.local import LocalCloud, LocalContainer

ROOT = Path(__file__).parent.parent
GRAPH = "https://graph.microsoft.com"


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def shell_block(document: str, beginning: str) -> str:
    """The indented block that begins with this line."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.search(rf"^    {re.escape(beginning)}.*?(?=^\S)", text, re.DOTALL | re.MULTILINE)
    assert found, f"{document} has no block that begins with {beginning}"
    return re.sub(r"^ {4}", "", found.group(0), flags=re.MULTILINE)


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run shell lines as a reader would, with this environment's commands."""
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": commands},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_readmes_pipeline_runs_on_a_local_cloud_as_the_readme_says(tmp_path: Path) -> None:
    """The first screen's pipeline and manifest, launched by the lines for a machine without a cloud account."""
    (tmp_path / "orders.py").write_text(blocks("README.md", "python")[0])
    (tmp_path / "orders.access.toml").write_text(blocks("README.md", "toml")[0])
    (tmp_path / "orders.jsonl").write_text('{"id": 1, "quantity": 2}\n{"id": 2, "quantity": 0}\nno JSON\n')
    script = shell_block("README.md", "beam-entra local up")
    lines = script.strip().splitlines()
    assert lines[-1] == "beam-entra local down"
    curated = "abfss://curated@contosolake.dfs.core.windows.net/orders"
    look = f"""
        trap 'beam-entra local down >/dev/null' EXIT
        {script.replace(lines[-1], "")}
        for blob in $(beam-entra local ls {curated}/clean/; beam-entra local ls {curated}/dead/); do
            case $blob in */part-*) beam-entra local cat $blob;; esac
        done
        beam-entra audit verify abfss://audit@contosolake.dfs.core.windows.net/orders/ \\
            --access_manifest orders.access.toml --access_endpoints "$BEAM_ENTRA_ENDPOINTS"
    """
    done = run(look, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '{"id":1,"quantity":2}' in done.stdout
    assert '"id":2' not in done.stdout
    assert '"offset":50' in done.stdout, "the dead letter says where it stood"


class Graph:
    """Microsoft Graph as far as the README's connector needs it: it checks the token's signature and audience."""

    def __init__(self, cloud: LocalCloud) -> None:
        keys = f"{cloud.authority}/{cloud.tenant_id}/discovery/v2.0/keys"
        self._keys = jwt.PyJWKClient(keys, ssl_context=_trust(cloud))

    def answer(self, request: Request) -> Answer:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        try:
            key = self._keys.get_signing_key_from_jwt(token)
            jwt.decode(token, key, algorithms=["RS256"], audience=GRAPH)
        except jwt.PyJWTError:
            return Answer(status=401)
        user = request.path.rsplit("/", 1)[1].upper().encode()
        return Answer(headers={"Content-Type": "application/json"}, body=b'{"displayName": "%s"}' % user)


def _trust(cloud: LocalCloud) -> Any:
    import ssl  # noqa: PLC0415 - only here

    return ssl.create_default_context(cafile=str(cloud.ca_file))


@pytest.fixture
def graph(beam_entra_cloud: LocalCloud) -> Iterator[HttpsServer]:
    """A protected service under the cloud's CA."""
    folder = beam_entra_cloud.folder
    certificates = RunCertificates(
        ca_file=folder / "ca.pem", server_file=folder / "server.pem", key_file=folder / "server.key"
    )
    with HttpsServer(certificates.server_context(), ServiceHandler, Graph(beam_entra_cloud), name="graph") as server:
        yield server


def manifest(
    cloud: LocalCloud, audit: LocalContainer, *, token: str = "", read: str = "", write: str = ""
) -> AccessManifest:
    """A manifest for a job that may have tokens for `token`, read below `read` and write below `write`."""
    grants = {"token": token, "read": read, "write": write}
    given = "\n".join(f'{kind} = ["{path}"]' for kind, path in grants.items() if path)
    text = f"""
        pipeline = "names"
        environment = "test"
        [identity]
        tenant = "{cloud.tenant_id}"
        client = "{cloud.client_id}"
        credential = "federated_file"
        assertion_file = "file:assertion"
        [lifetime]
        job = "5m"
        [grants]
        {given}
        [audit]
        path = "abfss://{audit.name}@{audit.account}.dfs.core.windows.net/names/"
    """
    return AccessManifest.parse(text, file="names.access.toml").at(Endpoints.load(cloud.endpoints_file))


def test_the_readmes_connector_gets_a_token_that_its_service_accepts(
    beam_entra_cloud: LocalCloud, beam_entra_container: LocalContainer, graph: HttpsServer
) -> None:
    """The connector of the README adds names from a service that checks the token."""
    namespace: dict[str, Any] = {}
    exec(blocks("README.md", "python")[1], namespace)  # noqa: S102 - the README's own block
    seen: list[Any] = []
    connector = namespace["AddDisplayName"](graph.url, str(beam_entra_cloud.ca_file))
    access = manifest(beam_entra_cloud, beam_entra_container, token=GRAPH)
    with ScopedPipeline("FnApiRunner", EntraOptions([]), access_manifest=access) as p:
        named = p | beam.Create([{"customer": "ada"}]) | "Add names" >> Scoped(connector)
        named | beam.Map(lambda row: seen.append(row) or row) | beam.combiners.Count.Globally() | beam.Map(print)
    assert p.report is not None
    assert p.report.outcome == "ok"
    assert p.report.records["token_acquired"] == 2, "one for Storage, which holds the audit, and one for Graph"


def test_the_docs_test_is_a_test(
    beam_entra_cloud: LocalCloud, beam_entra_containers: Callable[..., LocalContainer], tmp_path: Path
) -> None:
    """The test that docs/testing.md shows passes."""
    namespace: dict[str, Any] = {}
    exec(blocks("docs/testing.md", "python")[0], namespace)  # noqa: S102 - the docs' own block
    namespace["test_orders_are_copied"](beam_entra_cloud, beam_entra_containers, tmp_path)


def test_the_docs_format_reads_what_it_writes_and_refuses_the_rest() -> None:
    """The format of docs/extending.md decodes what it encodes, and what it cannot decode is a bad record."""
    namespace: dict[str, Any] = {}
    exec(blocks("docs/extending.md", "python")[0], namespace)  # noqa: S102 - the docs' own block
    key_value = namespace["KeyValue"]()
    data = key_value.encode(("colour", "green")) + b"nothing\n" + key_value.encode(("size", "7"))
    bad: list[Any] = []
    elements = list(key_value.decode_each(Block(path="p", offset=0, data=data), bad))
    assert elements == [("colour", "green"), ("size", "7")]
    assert [(record.offset, record.record) for record in bad] == [(13, b"nothing")]


def test_the_docs_batches_of_a_format_of_ones_own_are_its_records() -> None:
    """The second format of docs/extending.md reads and writes record batches."""
    namespace: dict[str, Any] = {}
    exec("".join(blocks("docs/extending.md", "python")[:2]), namespace)  # noqa: S102 - the docs' own blocks
    key_value = namespace["KeyValueBatches"]()
    data, bad = b"colour=green\nsize=7\nnothing\n", list[Any]()
    (batch,) = key_value.decode_batches(Block(path="p", offset=0, data=data), bad)
    assert batch.to_pydict() == {"key": ["colour", "size"], "value": ["green", "7"]}
    assert [record.offset for record in bad] == [20]
    assert key_value.encode_batch(batch) == b"colour=green\nsize=7\n"


def test_the_docs_batches_are_summed_by_key(
    beam_entra_cloud: LocalCloud, beam_entra_containers: Callable[..., LocalContainer]
) -> None:
    """The pipeline of docs/formats.md reads, filters, groups and writes what it says."""
    namespace: dict[str, Any] = {}
    exec(blocks("docs/formats.md", "python")[0], namespace)  # noqa: S102 - the docs' own block
    raw, curated, audit = (beam_entra_containers(purpose) for purpose in ("raw", "curated", "audit"))
    lines = [b'{"id":"%d","key":"k%d","amount":%d}' % (number, number % 2, number) for number in range(20)]
    raw.upload("orders/a.jsonl", b"\n".join([*lines, b"oops"]))
    access = manifest(beam_entra_cloud, audit, read=raw.url("orders/"), write=curated.url("out/"))
    with ScopedPipeline("FnApiRunner", EntraOptions([]), access_manifest=access) as p:
        bad = namespace["totals"](p, raw.url("orders/*"), curated.url("out/"))
        assert_that(bad | beam.Map(lambda record: record.record), equal_to([b"oops"]))
    (totals,) = [name for name in curated.list("out/totals/") if name.endswith(".csv")]
    assert sorted(curated.download(totals).splitlines()) == [b"k0,60", b"k1,75", b"key,total"]
    written = b"".join(curated.download(name) for name in curated.list("out/large/") if name.endswith(".jsonl"))
    assert written.splitlines() == lines[11:]


class Piece(beam.PTransform):  # type: ignore[misc]  # Beam's classes are Any here
    """Lines of a page on a pipeline `p`: gives what they name `read`, and has `write` written.

    Args:
        code: The lines, fitted to the test's containers.
        names: What else they name.
        write: Elements of that name.
    """

    def __init__(self, code: str, read: str, write: dict[str, list[Any]], **names: Any) -> None:
        super().__init__()
        self.code, self.read, self.write, self.names = code, read, write, names

    def expand(self, pbegin: Any) -> Any:
        made = {name: pbegin | f"Some {name}" >> beam.Create(elements) for name, elements in self.write.items()}
        package = {name: getattr(beam_entra, name) for name in beam_entra.__all__}
        namespace = {**package, "beam": beam, "pa": pa, "p": pbegin, **made, **self.names}
        exec(self.code, namespace)  # noqa: S102 - the docs' own lines
        return namespace[self.read]


def plain(element: Any) -> Any:
    """A record batch as a list of rows, all else as it is."""
    return element.to_pylist() if isinstance(element, pa.RecordBatch) else element


def test_the_docs_formats_read_and_write_what_they_say(
    beam_entra_cloud: LocalCloud, beam_entra_containers: Callable[..., LocalContainer]
) -> None:
    """The lines under each format in docs/formats.md, on blobs of that format."""
    raw, curated, audit = (beam_entra_containers(purpose) for purpose in ("raw", "curated", "audit"))
    schema = {"type": "record", "name": "Order", "fields": [{"name": "id", "type": "long"}]}
    parquet.write_table(pa.table({"id": [1, 2], "amount": [5.5, 6.5], "year": [2024, 2023]}), columns := io.BytesIO())
    fastavro.writer(objects := io.BytesIO(), schema, [{"id": 3}])
    raw.upload("logs/a.log.gz", gzip.compress(b"one\ntwo\n"))
    raw.upload("orders/a.jsonl", b'{"id":1}\n')
    raw.upload("products.csv", b"product,price\nP,2\n")
    raw.upload("orders/a.avro", objects.getvalue())
    raw.upload("sales/a.parquet", columns.getvalue())
    raw.upload("scans/b/c.png", b"PNG")
    scan = SimpleNamespace(year=2024, id=7, image=b"PNG")
    cases: list[tuple[str, dict[str, list[Any]], dict[str, Any], list[Any]]] = [
        ("lines", {}, {}, ["one", "two"]),
        ("orders", {}, {"parse_order": lambda value: value["id"]}, [1]),
        ("products", {"rows": [{"product": "Q", "price": "3"}]}, {}, [{"product": "P", "price": "2"}]),
        ("orders", {"orders": [{"id": 4}]}, {"SCHEMA": schema}, [{"id": 3}]),
        ("sums", {"sales": [{"id": 5, "amount": 0.5}]}, {}, [[{"id": 1, "amount": 5.5}]]),
        ("files", {"scans": [scan]}, {}, [(raw.url("scans/b/c.png"), b"PNG")]),
    ]
    text = (ROOT / "docs/formats.md").read_text(encoding="utf-8")
    pieces = re.findall(r"^    \w.*\n(?:(?: {4}.*)?\n(?= {4}|\n {4}|$))*", text.partition("## Lines")[2], re.MULTILINE)
    access = manifest(beam_entra_cloud, audit, read=raw.url(""), write=curated.url("out/"))
    with ScopedPipeline("FnApiRunner", EntraOptions([]), access_manifest=access) as p:
        for number, (code, (read, write, names, expected)) in enumerate(zip(pieces, cases, strict=True)):
            fitted = re.sub(r"^    ", "", code, flags=re.MULTILINE)
            fitted = fitted.replace("abfss://raw@lake.dfs.core.windows.net/", raw.url(""))
            options = SimpleNamespace(output=curated.url(f"out/{number}/"))
            found = p | f"Piece {number}" >> Piece(fitted, read, write, options=options, **names)
            rows = found | f"Plain {number}" >> beam.Map(plain)
            assert_that(rows, equal_to(expected), label=f"Read {number}")
    written = [name for name in sorted(curated.list("out/")) if "/_" not in name]
    csv, avro, table, png = map(curated.download, written)
    assert csv.split() == [b"product,price", b"Q,3"]
    assert avro.startswith(b"Obj\x01")
    assert b"zstandard" in avro
    assert parquet.read_table(io.BytesIO(table)).to_pylist() == [{"id": 5, "amount": 0.5}]
    assert (written[-1], png) == ("out/5/2024/7.png", b"PNG")


def test_the_docs_watch_ends_when_it_is_told_to(
    beam_entra_cloud: LocalCloud, beam_entra_containers: Callable[..., LocalContainer]
) -> None:
    """The lines of docs/streaming.md read what is there, and write it window by window."""
    raw, curated, audit = (beam_entra_containers(purpose) for purpose in ("raw", "curated", "audit"))
    raw.upload("orders/a.jsonl", b'{"id":1}\n')
    raw.upload("orders/_STOP", b"")
    (code,) = blocks("docs/streaming.md", "python")
    access = manifest(beam_entra_cloud, audit, read=raw.url("orders/"), write=curated.url("orders/"))
    with ScopedPipeline("FnApiRunner", EntraOptions([]), access_manifest=access) as p:
        p | Piece(code, "orders", {}, RAW=raw.url(""), CURATED=curated.url(""), FixedWindows=FixedWindows)
    (part,) = [name for name in curated.list("orders/") if "/part-" in name]
    assert curated.download(part) == b'{"id":1}\n'
    assert re.fullmatch(r"orders/\d{8}T\d{6}Z_\d{8}T\d{6}Z/part-.*\.jsonl", part)


def test_the_docs_credential_source_is_known_by_its_name() -> None:
    """The source of docs/extending.md is one that a manifest can name."""
    block = blocks("docs/extending.md", "python")[2]
    code = f"{block}\nfrom beam_entra.identity import credential_names\nprint(credential_names())"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert "our_pipelines" in done.stdout


@pytest.mark.parametrize("block", blocks("docs/identity.md", "toml"), ids=lambda block: " ".join(block.split()[2:6:3]))
def test_the_identity_pages_manifests_are_accepted(block: str) -> None:
    """Every block of docs/identity.md is a credential that a launch takes."""
    manifest = blocks("README.md", "toml")[0]
    identity = re.search(r"\[identity\]\n.*?(?=^\[)", manifest, re.DOTALL | re.MULTILINE)
    assert identity
    who = f"""[identity]
tenant = "contoso.onmicrosoft.com"
client = "0b8e22f4-8f2d-4c1a-9b54-6b1c0d3e5a77"
{block}
"""
    check_credential(AccessManifest.parse(manifest.replace(identity[0], who), file="x").identity)


def test_the_docs_file_io_runs_under_the_docs_grants(
    beam_entra_cloud: LocalCloud, beam_entra_containers: Callable[..., LocalContainer], tmp_path: Path
) -> None:
    """The pipeline of docs/filesystem.md, with the grants that stand beside it and no others."""
    raw, curated, audit = (beam_entra_containers(purpose) for purpose in ("raw", "curated", "audit"))

    def fitted(text: str) -> str:
        return text.replace("raw@", f"{raw.name}@").replace("curated@", f"{curated.name}@")

    (granted,) = blocks("docs/filesystem.md", "toml")
    text = f"""
        pipeline = "files"
        environment = "test"
        [identity]
        tenant = "{beam_entra_cloud.tenant_id}"
        client = "{beam_entra_cloud.client_id}"
        credential = "federated_file"
        assertion_file = "file:assertion"
        [lifetime]
        job = "5m"
        {fitted(granted)}
        [audit]
        path = "{audit.url()}"
    """
    access = AccessManifest.parse(text, file="files.toml").at(Endpoints.load(beam_entra_cloud.endpoints_file))
    raw.upload("orders/a.jsonl", b"1\n2\n")
    code = fitted(blocks("docs/filesystem.md", "python")[0])
    code = code.replace("options=EntraOptions()", "options=EntraOptions(flags), access_manifest=access")
    exec(code, {"access": access, "flags": ["--prism_location=none"]})  # noqa: S102 - the docs' own block
    written = [line for name in curated.list("orders/") for line in curated.download(name).split()]
    assert sorted(written) == [b"1", b"2"]


def test_the_docs_contract_holds_for_local_files(tmp_path: Path) -> None:
    """The test class of docs/filesystem.md passes."""
    (tmp_path / "test_local_files.py").write_text(blocks("docs/filesystem.md", "python")[1])
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, f"--rootdir={tmp_path}", "test_local_files.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


DOCUMENTS = ["README.md", *(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))]


def anchors(page: Path) -> set[str]:
    """What a link into a page may name: its headlines, as GitHub writes them."""
    headlines = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", headline.lower()).replace(" ", "-") for headline in headlines}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    """A relative link of a page is a file of the project, and what it names in there is a headline."""
    page = ROOT / document
    for file, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
        target = page.parent / file if file else page
        assert target.exists(), file
        assert not anchor or anchor in anchors(target), f"{file}#{anchor}"


def test_the_readme_leads_to_every_page() -> None:
    """Each page of docs/ is one link away; decisions have a folder."""
    linked = set(re.findall(r"\]\((docs/[^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert {str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md")} <= linked


def test_the_readme_names_the_flags_that_exist() -> None:
    """The table of flags and `--help` agree."""
    table = re.findall(r"^\| `(--access_\w+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    options = EntraOptions([]).get_all_options()
    assert table
    assert all(flag.removeprefix("--") in options for flag in table)


def test_the_tests_that_the_security_page_names_exist() -> None:
    """A promise whose test was renamed or removed would be a promise without one."""
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?!promise \|)\w.*", text.partition("## The tests of the promises")[2], re.MULTILINE)
    assert len(rows) > 60
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(test_\w+))?`", row)
        assert len(named) == row.count("`tests/") > 0, row
        for file, test in named:
            wanted = rf"^def {test}\(" if test else "^def test_"
            assert re.search(wanted, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), test
