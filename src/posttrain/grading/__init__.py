"""The verifier: whether a completion's answer equals the gold, for rewards, rejection sampling, data and evaluation.

`extract` finds the answer, `normalise` writes it one way, `exact` decides numbers, text and `containers` without sympy,
and `symbolic` asks Math-Verify for the rest in processes that `pool` can kill.
"""
