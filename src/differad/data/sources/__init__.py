"""Readers of public data sets: a root folder goes in, a stream of `Sample` comes out; `registry.SOURCES` lists them.

A reader lists folders and reads label files. It opens no image, except where only a mask says whether a sample is normal
(KolektorSDD) or where a defect is on a strip (AITEX). It knows nothing about pairs and references and makes no splits.
"""
