"""Rules about the seccomp profile."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.spec import Config, Seccomp
    from ocirt.validation.found import Found, Rule

#: What errnoRet may be at most, by action: MAX_ERRNO of the kernel, and SECCOMP_RET_DATA.
_ERRNO_ACTIONS = {"SCMP_ACT_ERRNO": 4095, "SCMP_ACT_TRACE": 65535}

_PATH = "linux.seccomp"


def _seccomp(config: Config) -> Seccomp | None:
    return (config.get("linux") or {}).get("seccomp")


def errno_has_action(config: Config, found: Found) -> None:
    """ "When the action doesn't support an errno, the runtime MUST print and error and fail".

    [config-linux.md, Seccomp]
    """
    profile = _seccomp(config)
    if not profile:
        return
    if "defaultErrnoRet" in profile:
        _errno(profile["defaultErrnoRet"], profile["defaultAction"], f"{_PATH}.defaultErrnoRet", found)
    for index, rule in enumerate(profile.get("syscalls") or ()):
        if "errnoRet" in rule:
            _errno(rule["errnoRet"], rule["action"], f"{_PATH}.syscalls[{index}].errnoRet", found)


def _errno(number: int, action: str, path: str, found: Found) -> None:
    most = _ERRNO_ACTIONS.get(action)
    if most is None:
        found.error(path, f"{action} takes no errno, only SCMP_ACT_ERRNO and SCMP_ACT_TRACE do", number)
    elif number > most:
        found.error(path, f"must not be more than {most} for {action}", number)


def notify_can_work(config: Config, found: Found) -> None:
    """SCMP_ACT_NOTIFY needs somebody to notify, and the descriptor must get there: by a write that isn't notified.

    [seccomp_unotify(2)]
    """
    profile = _seccomp(config)
    if not profile:
        return
    used = False
    if profile["defaultAction"] == "SCMP_ACT_NOTIFY":
        used = True
        found.error(f"{_PATH}.defaultAction", "SCMP_ACT_NOTIFY cannot be used as default action")
    for index, rule in enumerate(profile.get("syscalls") or ()):
        if rule["action"] == "SCMP_ACT_NOTIFY":
            used = True
            if "write" in rule["names"]:
                path = f"{_PATH}.syscalls[{index}].names"
                found.error(path, "SCMP_ACT_NOTIFY cannot be used for the write syscall")
    elsewhere = any(k.startswith("run.oci.seccomp.") for k in config.get("annotations") or ())
    if used and not profile.get("listenerPath") and not elsewhere:
        found.error(f"{_PATH}.listenerPath", "is missing: SCMP_ACT_NOTIFY needs the socket of a seccomp agent")
    flags = profile.get("flags") or []
    if not used and "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" in flags:
        message = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs a rule with SCMP_ACT_NOTIFY"
        found.error(f"{_PATH}.flags", message, flags)


def metadata_has_path(config: Config, found: Found) -> None:
    """listenerMetadata "MUST NOT be set if listenerPath is not set".

    [config-linux.md, Seccomp]
    """
    profile = _seccomp(config)
    if profile and profile.get("listenerMetadata") and not profile.get("listenerPath"):
        message = "must not be set if listenerPath is not set"
        found.error(f"{_PATH}.listenerMetadata", message, profile.get("listenerMetadata"))


RULES: tuple[Rule, ...] = (errno_has_action, notify_can_work, metadata_has_path)
