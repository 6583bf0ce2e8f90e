"""Records as values.

In import order: batch (one signature for a commit), record (form, id, envelope), namespace, levels (hash levels and
projections), filter (what a pair is sent), cursor, fingerprint (comparing two sets), snapshot, and page (feeds and
pushes), which stands above core/gate.
"""
