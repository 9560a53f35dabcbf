"""Recipes, stages, the Dask graph, and the runs that go through it."""
