"""Whether a registration may be trusted: ok, check or failed, with a sentence for every reason.

``add_numbers`` measures what the metrics do not hold yet, ``judge`` looks at numbers alone, ``Limits`` says where they
begin to matter, ``collected`` brings the verdicts of a run to the exit code of a program. docs/verdict.md tells what is
judged and how well.
"""

from .exits import CODES, collected, exit_code, tell
from .judge import LEVELS, excess, judge, worst
from .limits import Limits
from .numbers import add_numbers, describe_view, foreground

__all__ = [
    "CODES",
    "LEVELS",
    "Limits",
    "add_numbers",
    "collected",
    "describe_view",
    "excess",
    "exit_code",
    "foreground",
    "judge",
    "tell",
    "worst",
]
