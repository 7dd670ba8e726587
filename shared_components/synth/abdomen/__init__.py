"""Patients of the abdomen made to order: CT and MR with exact labels of six organs, from shapes drawn or real."""

from .patient import Patient, abdomen_patient
from .real import Layout, make_layout, read_layout
from .tissues import LABELS, Tissue
from .write import write_abdomen

__all__ = ["LABELS", "Layout", "Patient", "Tissue", "abdomen_patient", "make_layout", "read_layout", "write_abdomen"]
