"""Verification: all that a run holds, read, and what is wrong with it told with its place.

store_check goes through a store's branches, tags and journals, run_check through the rest of a run;
structure, row_check (with rules) and overview_check look at one state; chunk_reader reads what they
look at; fault is what they tell.
"""

from workbench.store.verification.fault import Fault, Report
from workbench.store.verification.run_check import verify_run
from workbench.store.verification.store_check import verify_store

__all__ = ["Fault", "Report", "verify_run", "verify_store"]
