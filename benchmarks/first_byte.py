"""The smallest of workers: `python -m benchmarks.first_byte MANIFEST ENDPOINTS BLOB` prints the blob's first byte."""

from __future__ import annotations

import sys
from contextlib import closing

from beam_entra.access import AccessManifest, Endpoints
from beam_entra.clock import utc_now
from beam_entra.paths import BlobPath
from beam_entra.session import JobScope, Session

__all__ = ["main"]


def main(manifest: str, endpoints: str, blob: str) -> None:
    """Open a session, read the byte, and let it out as soon as that may be."""
    job = AccessManifest.load(manifest).at(Endpoints.load(endpoints))
    with closing(Session(JobScope.launch(job, now=utc_now()))) as session, session.bundle("bench") as bundle:
        _, content = bundle.read_beginning(BlobPath.parse(blob), 1)
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
