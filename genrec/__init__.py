"""genrec: one generative model for search and recommendation."""

import warnings

__version__ = "0.1.0"
# Libraries that import tqdm in a notebook ask for widgets; our own bar there needs none.
warnings.filterwarnings("ignore", message="IProgress not found")


def __getattr__(name: str):
    """Import the public names only when they are used, so that ``import genrec`` stays instant."""
    if name == "Recommender":
        from genrec.inference.recommender import Recommender

        return Recommender
    if name == "sample":
        from genrec.data.simulator.sample import sample

        return sample
    raise AttributeError(f"module 'genrec' has no attribute {name!r}")
