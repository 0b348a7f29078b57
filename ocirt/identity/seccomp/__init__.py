"""System call filters: config.json's `linux.seccomp` compiled to classic BPF.

cache      the front door: `cached()` gives the filter of a configuration, compiled at most once
filter     the result, how it is loaded, and a small interpreter that asks it questions
compile    what the configuration means: one verdict a system call number and architecture
layout     how verdicts become a program; assemble: instructions from the end to the start
arches     architectures, tables: their system call numbers
listener   handing the notify descriptor to the agent
dump       for people; record: the smallest profile of a program that was watched
"""
