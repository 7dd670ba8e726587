"""What a registration gives back: fields in the world, moved images, numbers, files."""

from .registration import Registration, measure
from .save import SaveRegistration, check_output_dir, table
from .stages import ShowStages
from .summary import PrintSummary

__all__ = ["PrintSummary", "Registration", "SaveRegistration", "ShowStages", "check_output_dir", "measure", "table"]
