"""What browsers get: markup from facts, with the style and the script beside it; loaded at the first request."""
