"""What a model costs, measured on the meta device, and the width that meets a budget."""

from nava_lab.budget.measure import Cost, measure
from nava_lab.budget.solve import Budget, Solution, solve

__all__ = ["Budget", "Cost", "Solution", "measure", "solve"]
