"""Prompts and heads from private class statistics: everything but the noise, as pure functions in float64.

Source: ours; docs/methods/class-statistics.md says what is from whom. The two noisy releases of a client are

    G_i = sum over x of clip(A^T (x - m0), C1)                  (`mean_rows`, one row)
    Z_ic = sum over x of class c of clip(A^T (x - m0) - g - t_c, C2)  (`residual_rows`, one row a class)

and all the rest is post-processing: `shared_mean`, `class_posterior`, `make_head`, contexts fitted to the head.
"""
