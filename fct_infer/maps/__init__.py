"""Maps between embedding spaces that are solved for, not trained: what they are fitted from, and how."""

from fct_infer.maps.closed_forms import MAPS, FittedMap, fit_low_rank, fit_procrustes, fit_recipe, fit_ridge
from fct_infer.maps.recipes import Recipe
from fct_infer.maps.statistics import Statistics

__all__ = ["MAPS", "FittedMap", "Recipe", "Statistics", "fit_low_rank", "fit_procrustes", "fit_recipe", "fit_ridge"]
