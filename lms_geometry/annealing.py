"""The schedule of a descent whose samples start spread over many output pixels and are drawn in."""

from dataclasses import replace

from lms_geometry.config import LinearizedSampling

# Of the steps. What is left is for the end, at the last sigma.
ANNEALED_SHARE = 0.75


def annealed(
    sampling: LinearizedSampling, anneal: tuple[float, float], share: float, exact_from: float
) -> LinearizedSampling:
    """The settings after a share of the steps.

    Args:
        sampling: the settings but for what changes.
        anneal: ``sigma`` at the first step and from ``ANNEALED_SHARE`` of the steps on; between it falls geometrically.
        share: of the steps that are done, 0 to 1.
        exact_from: the share from which on the row of ones is dropped, so that the value is the exact bilinear one.
    """
    first, last = anneal
    sigma = first * (last / first) ** min(share / ANNEALED_SHARE, 1.0)
    return replace(sampling, sigma=sigma, intercept=sampling.intercept and share < exact_from)
