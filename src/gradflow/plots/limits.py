"""The limits of |log10 gradient ratio| that pictures show; diagnostics/verdict.py says why."""

CAUTION, FAIL = 1.3, 3.0
