"""One file per command: ``USAGE`` is what ``nava --help`` says of it, ``main(arguments)`` does it.

A new file is a new command; nothing else needs to know. Files here import nothing heavy before ``main`` is called.
"""
