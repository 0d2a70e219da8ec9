"""What a careful engineer writes first, and the rungs from there to the core."""
