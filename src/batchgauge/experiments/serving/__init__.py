"""08 · Serving: continuous batching built, measured live, and held against its forecast."""
