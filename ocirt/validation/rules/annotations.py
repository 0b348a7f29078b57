"""Rules about the annotations that crun defines: docs/engines.md has those that are heeded."""

from __future__ import annotations

from ocirt.validation.found import key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.spec import Config
    from ocirt.validation.found import Found, Rule

PREFIX = "run.oci."
HEEDED = (
    "run.oci.delegate-cgroup",
    "run.oci.hooks.stderr",
    "run.oci.hooks.stdout",
    "run.oci.keep_original_groups",
    "run.oci.mount_context_type",
    "run.oci.pidfd_receiver",
    "run.oci.seccomp.receiver",
    "run.oci.seccomp_bpf_data",
    "run.oci.seccomp_fail_unknown_syscall",
    "run.oci.systemd.subgroup",
)
UNSUPPORTED = ("run.oci.handler", "run.oci.seccomp.plugins", "run.oci.systemd.force_cgroup_v1")


def known_annotations(config: Config, found: Found) -> None:
    """Unknown annotations are no error, but what has this prefix is meant for the runtime.

    "Implementations that are reading/processing this configuration file MUST NOT generate an error if they encounter
    an unknown annotation key."
    [config.md, Annotations]
    """
    for name in config.get("annotations") or ():
        if not name.startswith(PREFIX) or name in HEEDED:
            continue
        if name in UNSUPPORTED:
            found.warn(key("annotations", name), "is not supported and has no effect")
        else:
            from ocirt.validation.near import nearest

            near = nearest(name, HEEDED)
            hint = f"did you mean {near}?" if near else ""
            found.warn(key("annotations", name), "is unknown and has no effect", hint=hint)


RULES: tuple[Rule, ...] = (known_annotations,)
