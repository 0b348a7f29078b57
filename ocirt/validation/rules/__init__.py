"""What no schema can say: one small function a rule, in tuples named RULES, a file a subject.

A rule is called with a configuration whose shape is right, and with the
collector of what it finds. The last line of its docstring names the sentence
that it stands on: a section of the specification or a man page, in brackets.
"""
