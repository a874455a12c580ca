"""The quantizers' public names under their first address; see `genrec.semantic_ids.quantizers`."""

from genrec.semantic_ids.quantizers import (  # noqa: F401
    Codebooks,
    balanced_assignment,
    decode,
    default_sizes,
    encode,
    fit_codebooks,
    reconstruct,
)
