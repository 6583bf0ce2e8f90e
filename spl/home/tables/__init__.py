"""The tables that the index is made of.

In import order: rows (what a table holds of each line, and the way to its payload), lists (the names under which lines
are found), sstable (one file), compaction (memory becomes files, and files become fewer).
"""
