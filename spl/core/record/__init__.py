"""Records as values: canonical form, envelopes, pages, cursors."""
