"""Registration of many pairs: lists of pairs, workers, completion markers, the summary and its page."""
