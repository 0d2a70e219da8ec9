"""Where time and memory go: line, call and allocation profiles, roofline, ranked findings."""
