"""Preference alignment (PARS): from what was clicked to what should be shown. Stands behind evaluation, whose metrics decide what is kept."""
