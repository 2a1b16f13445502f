"""How many variants a study needs: the power of the t test and of the sign-flip test."""

from __future__ import annotations

import bisect
import math

from hbr_fast.evaluation.statistics import sign_flip_p
from hbr_fast.seeding import Stream, generator

# Up to this many variants the sign-flip test has clearly less power than the t test, because its p-values are few.
_FEW_VARIANTS, _SIMULATED = 12, 4000


def power(effect_size: float, variants: int, *, level: float = 0.05) -> float:
    """Chance that the t test over V variants finds an effect, that is, that the t interval excludes 0: in [0, 1].

    The sign-flip test, whose p-value `paired_difference` reports, has less with few variants: see `variants_needed`.

    Parameters
    ----------
    effect_size : float
        True difference over the standard deviation of variant means (Cohen's d_z).
    variants : int
        V, at least 2.
    level : float
        Two-sided significance level, in (0, 1).
    """
    from scipy import stats  # here: it takes a second to import

    if variants < 2 or not 0 < level < 1:
        raise ValueError(f"power needs at least 2 variants and a level in (0, 1), got {variants} and {level}")
    freedom, shift = variants - 1, effect_size * math.sqrt(variants)
    critical = stats.t.ppf(1 - level / 2, freedom)
    return float(stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift))


def sign_flip_power(effect_size: float, variants: int, *, level: float = 0.05) -> float:
    """Chance that the sign-flip test over V variants finds an effect: in [0, 1], to about 0.01.

    By 4000 simulated studies with normal variant means up to 12 variants; beyond, where the two differ by less than the
    simulation error, that of the t test.

    Parameters
    ----------
    effect_size, variants, level
        As for `power`.
    """
    if variants > _FEW_VARIANTS:
        return power(effect_size, variants, level=level)
    noise = generator(0, Stream.PLANNING).standard_normal((_SIMULATED, _FEW_VARIANTS))
    return float((sign_flip_p(effect_size + noise[:, :variants]) <= level).mean())


def variants_needed(effect_size: float, *, wanted_power: float = 0.8, level: float = 0.05) -> int:
    """Number of variants with which a study finds an effect of this size with this probability.

    Large enough for both the t interval and the sign-flip test of `paired_difference`. It is never
    fewer than the sign-flip test needs to reach the level at all (2 / 2^V <= level: 6 for 0.05).

    Parameters
    ----------
    effect_size : float
        See `power`; not 0.
    wanted_power : float
        In (level, 1).
    level : float
        Two-sided significance level, in (0, 1).

    Raises
    ------
    ValueError
        If an argument is out of range, or more than a million variants would be needed.

    Examples
    --------
    >>> variants_needed(1.5)
    7
    """
    if not 0 < level < wanted_power < 1 or effect_size == 0 or not math.isfinite(effect_size):
        raise ValueError(
            f"planning needs an effect size other than 0 and 0 < level < power < 1, got {effect_size}, {level} and "
            f"{wanted_power}"
        )
    fewest = max(2, math.ceil(math.log2(2 / level)))
    most = 10**6
    if power(effect_size, most, level=level) < wanted_power:
        raise ValueError(f"an effect size of {effect_size} needs more than {most:,} variants: it is practically zero")
    needed = bisect.bisect_left(
        range(most + 1), wanted_power, lo=fewest, key=lambda variants: power(effect_size, variants, level=level)
    )
    while sign_flip_power(effect_size, needed, level=level) < wanted_power:
        needed += 1
    return needed
