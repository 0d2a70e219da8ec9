"""Did it get slower? Two revisions in alternating processes, or two stored runs."""
