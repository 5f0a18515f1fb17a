"""The limits of |log10 gradient ratio| of verdicts and pictures; diagnostics/verdict.py says why."""

CAUTION, FAIL = 1.3, 3.0
