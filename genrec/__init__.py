"""genrec: one generative model for search and recommendation."""

__version__ = "0.1.0"


def __getattr__(name: str):
    """Import the heavy public class only when it is asked for, so that ``import genrec`` stays instant."""
    if name == "Recommender":
        from genrec.inference.recommender import Recommender

        return Recommender
    raise AttributeError(f"module 'genrec' has no attribute {name!r}")
