"""The kernel: one function a system call. Nothing here decides anything."""
