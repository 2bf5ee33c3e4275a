"""Readers of public data sets: a root folder goes in, a stream of `Sample` comes out; `registry.SOURCES` lists them.

A reader lists folders and reads label files; it opens no image, except where only a mask tells whether a part is good
(KolektorSDD) or where a defect lies on a strip (AITEX). It knows nothing about pairs, references or splits of its own.
"""
