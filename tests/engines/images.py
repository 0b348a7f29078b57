"""The image of the tests, written by hand: busybox as one layer, as root file system tar and as OCI archive."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from tests.harness.bundle import make_rootfs

NAME = "localhost/box:1"


def make(directory: Path) -> tuple[Path, Path]:
    """(rootfs.tar, oci.tar) in `directory`."""
    rootfs = directory / "image-rootfs"
    make_rootfs(rootfs)
    plain = directory / "rootfs.tar"
    with tarfile.open(plain, "w") as archive:
        archive.add(rootfs, ".", filter=_as_root)
    return plain, _oci_archive(directory / "oci.tar", plain.read_bytes())


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _oci_archive(path: Path, layer: bytes) -> Path:
    """An image layout (image-spec image-layout.md) in a tar, named as containerd and skopeo look for it."""
    packed = gzip.compress(layer, 1, mtime=0)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin:/usr/bin"], "Cmd": ["/bin/sleep", "1000"]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
        "history": [{"created_by": "test"}],
    }
    blobs: dict[str, bytes] = {}

    def blob(data: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(json.dumps(config).encode(), "config.v1+json"),
        "layers": [blob(packed, "layer.v1.tar+gzip")],
    }
    described = blob(json.dumps(manifest).encode(), "manifest.v1+json")
    described["annotations"] = {"io.containerd.image.name": NAME, "org.opencontainers.image.ref.name": "1"}
    index = json.dumps({"schemaVersion": 2, "manifests": [described]}).encode()
    with tarfile.open(path, "w") as archive:
        files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index}
        files |= {f"blobs/sha256/{digest}": data for digest, data in blobs.items()}
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path
