"""What a program or a notebook calls; the command line (`jaxar.main`) calls the same functions.

One file for each thing a person does: `training`, `loading`, `evaluation`, `encoding`, `exporting`.
No flags are needed to use them.
"""
