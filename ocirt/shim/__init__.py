"""containerd-shim-ocirt-v1: the runtime inside a containerd shim (`io.containerd.ocirt.v1`).

main        the command line: start, delete, -info, -v
starting    `start`: which shim serves a container, and the answer to containerd; becomes the daemon
deleting    `delete`: what is left of a container is taken away, by a process that may be the first to hear of it
daemon      the process that serves: sockets, signals, the children that end
loop        waiting for descriptors and for time
wire, messages, ttrpc   protobuf, its messages as tables, and the protocol that carries them
service     the task service: one method a call of containerd
tasks       what is known of a container and its processes
worker, work            operations that may wait, each in a fork of the daemon
stdio, loggers          pipes, fifos, terminals, files and logging programs
events, oom, metrics, options, rootfs   one idea each
"""
