"""What was found, on the run that LangSmith traces: counts and names, no pictures and no text."""

from __future__ import annotations

from collections.abc import Sequence

from sightrail.guardrails.telemetry import verdict_attributes
from sightrail.guardrails.verdict import Verdict


def note_on_run(verdicts: Sequence[Verdict]) -> None:
    """Add the findings to the metadata and tags of the traced run this is called in, if any.

    The tags are ``sightrail:flagged`` and the like, one for each status but clean, so that runs
    can be filtered by what was found in them.
    """
    if not verdicts:
        return
    from langsmith.run_helpers import get_current_run_tree

    run = get_current_run_tree()
    if run is None:
        return
    run.add_metadata(verdict_attributes(verdicts))
    found = {f"sightrail:{verdict.status}" for verdict in verdicts if verdict.status != "clean"}
    run.add_tags(sorted(found))
