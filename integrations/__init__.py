"""Linearized sampling inside existing code. Installed as ``lms_geometry.integrations``."""
