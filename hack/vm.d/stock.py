"""Debian's own kernel under QEMU: for what User-Mode Linux can't do, above all CRIU. In software, 9 to 23 times slower
than this machine; OCIRT_VM_ACCEL=kvm changes that where KVM works (that /dev/kvm is there says little: in a virtual
machine the kernel may hang at its first instructions)."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import debian
import image

TOOLS = {"qemu-system-x86_64": "qemu-system-x86", "depmod": "kmod", "busybox": "busybox-static"}

#: The modules of the initial ramdisk, besides those that they need: disk and shares, what CRIU asks the kernel for
#: (without nf_conntrack_netlink it fails with "-22 reported by netlink"), networks.
MODULES = (
    "virtio_pci", "virtio_blk", "virtio_rng", "ext4", "9p", "9pnet_virtio", "overlay", "fuse", "loop",
    "unix_diag", "inet_diag", "tcp_diag", "udp_diag", "raw_diag", "netlink_diag", "af_packet_diag",
    "nf_conntrack_netlink", "ip_tables", "iptable_filter", "iptable_nat", "ip6_tables", "ip6table_filter",
    "nf_tables", "nft_compat", "nft_ct", "nft_chain_nat", "nft_masq", "nft_fib_inet", "nft_reject_inet",
    "xt_mark", "xt_conntrack", "xt_comment", "xt_addrtype", "xt_nat", "xt_MASQUERADE", "xt_multiport", "xt_tcpudp",
    "veth", "bridge", "br_netfilter", "dummy", "tun",
)  # fmt: skip

#: Init of the ramdisk: load the modules, then go on as User-Mode Linux does, with the job's `init`.
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module; done
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=mmap job /job
umount /dev /proc
export JOB=/job
exec sh /job/init
"""


def get(cache: Path) -> tuple[Path, Path]:
    """-> (kernel, initial ramdisk); downloads the kernel and packs the ramdisk the first time."""
    debian.need(TOOLS)
    kernel, ramdisk = cache / "stock.vmlinuz", cache / "stock.initrd"
    made_of = cache / "stock.made-of"
    recipe = f"{image.suite()} {MODULES} {INIT}"
    if not (kernel.exists() and made_of.exists() and made_of.read_text() == recipe):
        with tempfile.TemporaryDirectory(prefix="stock.", dir=cache) as folder:
            _make(Path(folder), cache, kernel, ramdisk)
        made_of.write_text(recipe)
    return kernel, ramdisk


def _make(folder: Path, cache: Path, kernel: Path, ramdisk: Path) -> None:
    apt = debian.Apt(image.suite(), cache / "apt-stock")
    package = apt.depends("linux-image-amd64")
    debian.say(f"downloading {package}, once")
    root = folder / "root"
    debian.run("dpkg-deb", "-x", apt.download(package, folder), root)
    (version,) = os.listdir(root / "lib/modules")
    debian.run("depmod", "-b", root, version)
    tree = folder / "tree"
    for name in ("bin", "dev", "proc", "sys", "mnt", "job", "modules"):
        (tree / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox
    shutil.copy(busybox, tree / "bin/busybox")
    names: list[str] = []
    for module in MODULES:
        lines = debian.output("modprobe", "-d", root, "-S", version, "--show-depends", module).splitlines()
        for path in (Path(line.split()[1]) for line in lines if line.startswith("insmod ")):
            if path.name not in names:
                names.append(path.name)
                shutil.copy(path, tree / "modules")
    (tree / "modules/order").write_text("\n".join(names) + "\n")
    (tree / "init").write_text(INIT)
    (tree / "init").chmod(0o755)
    with ramdisk.with_suffix(".new").open("wb") as out:
        _pack(tree, out.fileno())
    ramdisk.with_suffix(".new").rename(ramdisk)
    shutil.copy(next((root / "boot").glob("vmlinuz-*")), kernel)


def _pack(tree: Path, out: int) -> None:
    """The cpio archive that the kernel unpacks."""
    names = [str(path.relative_to(tree)) for path in sorted(tree.rglob("*"))]
    pack = ["busybox", "cpio", "-o", "-H", "newc"]
    subprocess.run(pack, cwd=tree, input="\n".join(names).encode(), stdout=out, stderr=subprocess.DEVNULL, check=True)


def command(
    kernel: Path, ramdisk: Path, disk: Path, job: Path, shares: list[tuple[str, Path]], options: argparse.Namespace,
    out: int, err: int,
) -> list[str]:  # fmt: skip
    """The command line of QEMU: the third serial line is the console, on stdout."""
    accelerator = os.environ.get("OCIRT_VM_ACCEL") or "tcg,thread=multi,tb-size=1024"
    line = " ".join(("console=ttyS2 panic=-1 quiet mitigations=off init_on_alloc=0 nokaslr", *options.kernel_arg))
    argv = ["env", f"TMPDIR={job}", "qemu-system-x86_64", "-accel", accelerator, "-M", "q35"]
    argv += ["-cpu", "max,la57=off,smap=off,smep=off,pcid=off", "-m", options.mem, "-smp", str(max(2, options.cpus))]
    argv += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    argv += ["-kernel", str(kernel), "-initrd", str(ramdisk), "-append", line]
    for name, path in (("o", f"/dev/fd/{out}"), ("e", f"/dev/fd/{err}"), ("c", "/dev/fd/1")):
        argv += ["-chardev", f"file,id={name},path={path}", "-serial", f"chardev:{name}"]
    for index, file in enumerate((f"{disk},readonly=on", f"{job}/scratch")):
        argv += [
            "-drive",
            f"id=d{index},if=none,format=raw,file.locking=off,file={file}",
            "-device",
            f"virtio-blk-pci,drive=d{index}",
        ]
    argv += ["-device", "virtio-rng-pci"]
    for tag, mode, path in (("job", "rw", job), *((f"share{n}", *share) for n, share in enumerate(shares))):
        options = f"local,id={tag},path={path},security_model=none" + (",readonly=on" if mode == "ro" else "")
        argv += ["-fsdev", options, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
    return argv
