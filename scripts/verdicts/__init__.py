"""Two hundred constructed cases for the verdict: good pairs and spoilt ones, runs, limits, the table."""
