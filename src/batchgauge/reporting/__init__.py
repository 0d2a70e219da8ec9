"""From data frames to pages: plots, notebook reports, exports, the study runner, the index."""

from batchgauge.reporting.profiles import PROFILES, Profile, profile_named
from batchgauge.reporting.report import Report, Score

__all__ = ["PROFILES", "Profile", "Report", "Score", "profile_named"]
