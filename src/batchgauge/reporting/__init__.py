"""From data frames to pages: plots, notebook reports, exports, the study runner, the index."""
