"""What the black-box tests stand on: a runtime's binary, bundles, and a look at what is left behind."""
