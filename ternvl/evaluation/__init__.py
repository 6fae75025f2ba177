"""Evaluation of a model over a local folder, with the prompts and the metrics of the public benchmarks."""

from ternvl.evaluation.benchmarks import BENCHMARKS, Benchmark
from ternvl.evaluation.metrics import METRICS
from ternvl.evaluation.run import Evaluation

__all__ = ["BENCHMARKS", "METRICS", "Benchmark", "Evaluation"]
