"""Releases of models: their manifests, their registry, how they are published and fetched."""
