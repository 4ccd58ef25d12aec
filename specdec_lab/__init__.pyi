"""The public names of the laboratory, and the module that each comes from. `__init__.py` reads this list."""

from specdec_lab import equivalence as equivalence
from specdec_lab.measurement.diagnostics import diagnose as diagnose
from specdec_lab.monitoring.monitor import SpeculativeDecodingMonitor as SpeculativeDecodingMonitor
from specdec_lab.teaching.heuristics import AdaptiveSpeculation as AdaptiveSpeculation
from specdec_lab.teaching.heuristics import get_optimal_speculation_config as get_optimal_speculation_config
