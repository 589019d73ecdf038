"""What azfs needs before it runs against anything but Azure's public endpoints; nothing that makes it faster or slower.

Reading needs nothing: the connection string names the endpoint, and the environment names the CA. Writing does: azfs
renames its temporary files by a server-side copy, and builds the URL of the copy's source for blob.core.windows.net
whatever the connection string says, so that no rename would find its source.
"""

from __future__ import annotations

from apache_beam.io.azure import blobstorageio

__all__ = ["copy_within"]


def copy_within(endpoint: str) -> None:
    """Let azfs look for the source of a copy at the endpoint that it was given."""

    def url(storage_account: str, container: str, blob: str = "") -> str:
        return f"{endpoint}/{container}/{blob}"

    blobstorageio.get_azfs_url = url
