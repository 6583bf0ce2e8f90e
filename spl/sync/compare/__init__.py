"""Whether two sides hold the same: each pair compared in the background, and what is missing fetched."""
