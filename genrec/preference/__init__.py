"""Preference alignment (PARS): the code decoder learns from feedback, and evaluation decides whether it is kept."""
