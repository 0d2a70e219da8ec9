"""From data frames to pages: charts, notebook reports, exports, the study runner, the index."""

from batchgauge import extras

# Said before an import fails, which is why the imports come second.
extras.require("The study", "study", *extras.STUDY)

from batchgauge.reporting.profiles import PROFILES, Profile, profile_named  # noqa: E402
from batchgauge.reporting.report import Report  # noqa: E402
from batchgauge.reporting.result import Section  # noqa: E402
from batchgauge.reporting.score import Answer, Score, Tile  # noqa: E402

__all__ = ["PROFILES", "Answer", "Profile", "Report", "Score", "Section", "Tile", "profile_named"]
