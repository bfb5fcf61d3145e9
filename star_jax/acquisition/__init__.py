"""From token statistics to the indices of the examples to label next.

Pure functions over a pool of static size: what is already labelled is marked in a boolean mask instead of being
removed, so that shapes never change between rounds and one compilation serves a whole run.
"""
