r"""An exponential that works on whole vector registers, for arguments that aren't positive.

With :math:`x = k \log 2 + f`, :math:`|f| \le \frac12 \log 2`, it is :math:`e^x = 2^k (1 + f + f^2 g(f))`, where g is
a polynomial of degree 9 fitted to :math:`(e^f - 1 - f) / f^2` at Chebyshev nodes (error 1e-16, so that the result is
right to about one unit in the last place). The rounding to k adds and subtracts :math:`1.5 \cdot 2^{52}`, which leaves
k in the low bits of the sum as well: no conversion to integer, which many machines can't vectorise. Below -650 the
result is 0: sums can't tell it from 1e-283, and products with a denormal number would be slow.
"""

from __future__ import annotations

from residmix.kernels.compiled import WHOLE, ZERO, Builder, Value, everywhere, multiply_add, whole

__all__ = ["LOWEST", "vector_exp"]

LOWEST = -650.0

# the coefficients of g, ascending
_G = (
    0.5000000000000001,
    0.16666666666666669,
    0.04166666666662399,
    0.008333333333330051,
    0.0013888888917281794,
    0.00019841269863105968,
    2.480152119021773e-05,
    2.7557268378684192e-06,
    2.7620138719733994e-07,
    2.5100424157005067e-08,
)
_LOG2_E = 1.4426950408889634
# log 2 in two parts: k times the first is exact for every k that can occur
_LOG_2_HIGH, _LOG_2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_SHIFTER = 6755399441055744.0
_EXPONENT_BIAS, _MANTISSA_BITS = 1023, 52


def vector_exp(b: Builder, x: Value) -> Value:
    """Emit code for the exponential of a register of numbers, none of them above 0; NaN gives 0."""
    lowest, shifter = everywhere(LOWEST), everywhere(_SHIFTER)
    # an ordered comparison is false for NaN, so that NaN takes the other branch
    in_range = b.fcmp_ordered(">", x, lowest)
    x = b.select(in_range, x, lowest)
    shifted = multiply_add(b, x, everywhere(_LOG2_E), shifter)
    k = b.fsub(shifted, shifter)
    f = multiply_add(b, k, everywhere(-_LOG_2_HIGH), x)
    f = multiply_add(b, k, everywhere(-_LOG_2_LOW), f)
    g = everywhere(_G[-1])
    for coefficient in _G[-2::-1]:
        g = multiply_add(b, g, f, everywhere(coefficient))
    mantissa = b.fadd(multiply_add(b, b.fmul(f, f), g, f), everywhere(1.0))
    bits = b.bitcast(shifted, WHOLE)
    scale = b.bitcast(b.shl(b.add(bits, whole(_EXPONENT_BIAS)), whole(_MANTISSA_BITS)), x.type)
    return b.select(in_range, b.fmul(mantissa, scale), ZERO)
