"""Archive → layers. It knows nothing of how they were compressed."""
