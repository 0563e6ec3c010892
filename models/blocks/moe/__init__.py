"""Mixtures of experts: routers, dispatch, losses."""
